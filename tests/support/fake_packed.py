"""A fake model that is asked for several jobs at once: it answers each as it would alone, in one object by number.

It knows nothing of who packs: it reads the fences with numbers out of the prompt, as a model has to. A share of the
answers can be left out or come malformed, by hash of the job's own text and only beside neighbours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.support.fake_scripts import FakeAnswer, FakeFault, FakeRequest, Script
from tests.support.fake_wire import job_text

_JOB = re.compile(
    r'^<job-(?P<tag>[0-9a-f]+) "(?P<number>\d+)">\n(?P<inner>.*?)\n</job-(?P=tag)>$', re.MULTILINE | re.DOTALL
)


def jobs_of(request: FakeRequest) -> dict[str, FakeRequest]:
    """Each job of a packed request as the request it would be alone, by its number; empty where it is not packed."""
    if not request.user.startswith("<job-"):
        return {}
    return {
        found["number"]: replace(
            request, user=found["inner"], text=job_text(found["inner"]), schema=_answer(request.schema, found["number"])
        )
        for found in _JOB.finditer(request.user)
    }


def _answer(schema: Mapping[str, Any] | None, number: str) -> Mapping[str, Any] | None:
    if schema is None:
        return None
    part: Any = schema["properties"][number]
    while "$ref" in part:
        found: Any = schema
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return {**part, "$defs": schema["$defs"]}


def packed(otherwise: Script, *, missing: float = 0.0, malformed: float = 0.0, seed: int = 0) -> Script:
    """Answers jobs that come together; whatever comes alone, and each of those, is answered by `otherwise`.

    `missing`, `malformed`: shares of the jobs whose answer is left out beside neighbours, or is no answer.
    """

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        jobs = jobs_of(request)
        if not jobs:
            return otherwise(request)
        value: dict[str, Any] = {}
        sure: dict[str, float] = {}
        delay = 0.0
        for number, job in jobs.items():
            said = otherwise(job)
            if isinstance(said, FakeFault):
                return said
            delay = max(delay, said.delay)
            if said.refusal is not None or job.share("missing", seed) < missing:
                continue
            value[number] = {"nonsense": 1} if job.share("malformed", seed) < malformed else _said(said)
            sure[number] = said.confidence if isinstance(said.confidence, float) else 0.99
        return FakeAnswer(value=value, confidence=sure, delay=delay)

    return script


def _said(answer: FakeAnswer) -> Any:
    if answer.text is None:
        return answer.value
    try:
        return json.loads(answer.text)
    except ValueError:
        return answer.text
