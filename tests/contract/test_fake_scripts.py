"""The fake model server's scripts and tokens: what is answered, without a server."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.fake_models import FakeAnswer, FakeFault, labels, named
from tests.support.fake_scripts import FakeRequest, Script, faulty
from tests.support.fake_tokens import compact, speak
from tests.support.fake_wire import job_text

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "bills", "login", "refund"]}},
}


def test_an_unknown_script_is_named_and_not_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_models", "--script", "lables"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert "lables" in done.stderr
    assert "Traceback" not in done.stderr


_NAMES = st.text(min_size=1, max_size=12)


@given(
    labels_=st.lists(_NAMES, min_size=1, max_size=6, unique=True),
    tags=st.lists(_NAMES, max_size=4),
    number=st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    sure=st.floats(0.01, 0.999),
    straddle=st.booleans(),
)
def test_spoken_tokens_join_to_the_answer_and_each_scalar_carries_its_confidence(
    labels_: list[str], tags: list[str], number: Any, sure: float, straddle: bool
) -> None:
    """Whatever the answer, its tokens joined are its compact JSON, and each scalar has one doubted token."""
    value = {"label": labels_[0], "tags": tags, "deep": {"n": number}}
    schema = {"properties": {"label": {"enum": labels_}}}
    request = FakeRequest(1, "openai", "m", "", "x", "x", schema=schema)
    spoken = speak(FakeAnswer(value=value, confidence=sure, straddle=straddle), request)
    assert b"".join(token.token for token in spoken) == compact(value).encode("utf-8", "surrogatepass")
    doubts = [token.logprob for token in spoken if token.logprob < -1e-4]
    assert len(doubts) == 2 + len(tags)
    assert all(abs(doubt - math.log(sure)) < 1e-9 for doubt in doubts)


def test_job_text_is_what_stands_in_our_data_fences_else_in_the_last_fence() -> None:
    passage = "<context-7>\nold\n</context-7>\n"
    assert job_text("plain") == "plain"
    assert job_text(passage + "<job>\nthe text\nof it\n</job>\nAnswer.") == "the text\nof it"
    assert (
        job_text("<data-1>\na <b>\nc\n</b>\n</data-1>\nand\n<data-2>\nd\n</data-2>\n" + passage) == "a <b>\nc\n</b>\nd"
    )


def test_scripts_are_pure() -> None:
    """The same request gets an equal answer from a fresh script, in any order."""
    requests = [FakeRequest(n, "openai", "m", "", f"t {n}", f"t {n}", schema=SCHEMA) for n in range(50)]
    spec = "labels doubt=20% | any share=9% of=502+html | 503 share=9% | malformed share=9% | refuse share=9%"
    forward: list[Any] = [named(spec)(request) for request in requests]
    script: Script = named(spec)
    backward = [script(request) for request in reversed(requests)]
    assert forward == backward[::-1]
    assert len({type(answer) for answer in forward}) == 2
    assert faulty(labels(), FakeFault("hang"), share=0.0)(requests[0]) == labels()(requests[0])
