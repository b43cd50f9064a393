"""Our side of the bench: the real Runner, Cascade and Pool, from a read job to its outcome, under a small policy.

`python -m tests.bench._ours` obeys like `_peers.py`; `--bodies FILE` writes the bodies that its requests have, so that
the peers post the same.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from sluiceway import garbage
from sluiceway.clock import WallClock
from sluiceway.core import job as jobs
from sluiceway.core.held import Limits
from sluiceway.core.job import Job
from sluiceway.core.outcome import Escalation, Result, Review
from sluiceway.models.openai import OpenAIFormat
from sluiceway.policyfile import open_runner, read_policy
from sluiceway.ports import Models
from tests.bench._peers import Opened, obey

JOBS = 512
LABELS = ("billing", "login", "refund", "delivery", "card lost", "limits", "fees", "other")
_TEXT = (
    "my card was lost abroad and the payment that i made last week still shows as pending please tell me when the "
    "money comes back and whether a new card can be sent to another address before friday thank you very much"
)

_POLICY = """\
models:
  cheap:    {{provider: bench, api: openai, model: bench, base_url: "{url}/v1",
             params: {{max_tokens: 50, temperature: 0}}, price: {{input_mtok: 0.15, output_mtok: 0.6}}}}
  frontier: {{provider: bench, api: openai, model: big, base_url: "{url}/v1",
             params: {{max_tokens: 200}}, price: {{input_mtok: 5, output_mtok: 25}}}}
tasks:
  ticket-triage:
    ladder: [cheap, frontier]
    prompt: Classify this ticket of a bank's customer by what it is about.
    labels: [{labels}]
    gate: {{score: label_logprob, threshold: 0.85}}
"""


class _NoMeter:
    def finished(self, record: Result | Review | Escalation, *, known: int) -> None:
        pass


def read_jobs() -> list[Job]:
    dice, words = random.Random(7), _TEXT.split()
    texts = [" ".join(dice.choices(words, k=40)) for _ in range(JOBS)]
    raw = [{"id": f"job-{number}", "task": "ticket-triage", "input": text} for number, text in enumerate(texts)]
    return [
        jobs.admit(record, origin=f"bench/jobs/0/{number}", default_id=f"job-{number}")
        for number, record in enumerate(raw)
    ]


async def ours(url: str, _bodies: list[bytes]) -> Opened:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(_POLICY.format(url=url, labels=", ".join(LABELS)))
        policy = read_policy(path)
    runner, pool = open_runner(policy, clock=WallClock(), meter=_NoMeter(), environ={})
    ready = read_jobs()
    garbage.expect(Limits().jobs)  # as `sluiceway work` does
    garbage.keep()

    async def call(number: int) -> None:
        record = await runner.run(ready[number % JOBS])
        assert isinstance(record, Result), record

    return call, pool.close


async def make_bodies() -> bytes:
    """The bytes that each job's request has on the wire, one body a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(_POLICY.format(url="http://127.0.0.1:1", labels=", ".join(LABELS)))
        policy = read_policy(path)
    runner, pool = open_runner(policy, clock=WallClock(), meter=_NoMeter(), environ={})
    bodies: list[bytes] = []
    form = OpenAIFormat(policy.models["cheap"])

    class _Keeps:
        async def call(self, call):  # type: ignore[no-untyped-def]  # stands in for Models for one line
            bodies.append(form.encode(call))
            raise StopAsyncIteration

        async def close(self) -> None:
            pass

    keeps: Models = _Keeps()
    runner._models = keeps  # the bodies that the real prompt and cascade make, without a server
    for job in read_jobs():
        try:
            await runner.run(job)
        except StopAsyncIteration:
            continue
    await pool.close()
    return b"\n".join(bodies)


if __name__ == "__main__":
    import uvloop

    if sys.argv[1:2] == ["--bodies"]:
        Path(sys.argv[2]).write_bytes(uvloop.run(make_bodies()))
    else:
        obey(ours, [])
