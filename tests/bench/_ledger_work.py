"""Our side of the ledger bench, in a process of its own: `python -m tests.bench._ledger_work SETTINGS`.

The real runner, sharing, packing, pool and transport, and the local store, as the worker opens them; jobs come from a
file and outcomes go to one, as lines that a kill can't cut: to write one is to publish it. Both roles, one after the
other. SETTINGS is JSON: {"policy", "state", "jobs", "out", "in_flight"}. A job that has its outcome in `out` is not run
again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import uvloop

from sluiceway.archive.answers import open_answers
from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, open_store
from sluiceway.clock import WallClock
from sluiceway.core import job as jobs
from sluiceway.core import outcome as outcomes
from sluiceway.core.job import Job
from sluiceway.core.outcome import Ending, Escalation
from sluiceway.core.trail import Attempt
from sluiceway.policyfile import open_runner, read_policy
from sluiceway.ports import Record
from sluiceway.runner import Runner
from sluiceway.telemetry.metrics import Metrics

KEYS = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}


class Out:
    """The file of outcomes."""

    def __init__(self, path: Path) -> None:
        self.done = {line["id"] for line in read_lines(path) if "id" in line}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, line: dict[str, Any]) -> None:
        raw = orjson.dumps(line) + b"\n"
        assert os.write(self._fd, raw) == len(raw)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file of JSON lines; none where there is no file."""
    raw = path.read_bytes() if path.exists() else b""
    return [orjson.loads(line) for line in raw.split(b"\n")[:-1]]


async def climbed(runner: Runner, job: Job) -> Ending:
    """The job's outcome, by the jobs role and, where it hands on, by the reference."""
    record = await runner.run(job)
    if isinstance(record, Escalation):
        return await runner.resume(outcomes.decode(Escalation, outcomes.encode(record)))
    return record


def said(attempt: Attempt) -> dict[str, Any]:
    """What an attempt says of its call."""
    return {
        "model": attempt.model,
        "endpoint": attempt.endpoint,
        "response_id": attempt.response_id,
        "failure": attempt.failure,
        "seconds": attempt.seconds,
        "packed": attempt.packed,
        "usage": asdict(attempt.usage),
        "cost": attempt.cost_picousd,
    }


async def work(settings: dict[str, Any]) -> None:
    clock, out = WallClock(), Out(Path(settings["out"]))
    policy = read_policy(settings["policy"])
    with open_store(Path(settings["state"]), bounds=Bounds(), now=clock.now, instance="bench") as store:
        for lost in store.lost:
            out.say({"lost": lost.job_id, "model": lost.model})
        runner, pool = open_runner(
            policy,
            clock=clock,
            meter=Metrics(),
            environ=KEYS,
            journal=Journal(store),
            answers=open_answers(store, policy.sharing),
        )
        flight = StoreFlight(store, "bench")
        room = asyncio.Semaphore(settings["in_flight"])

        async def one(line: dict[str, Any], taken: Record) -> None:
            flight.begin(taken)
            job = jobs.admit(line, origin=f"bench/jobs/0/{taken.offset}", default_id=line["id"])
            try:
                record = await climbed(runner, job)
            finally:
                room.release()
            tried = [said(attempt) for attempt in record.trail.attempts]
            out.say({"id": job.id, "kind": type(record).__name__, "cost": record.trail.cost_picousd, "tried": tried})
            flight.publish(taken)

        async with asyncio.TaskGroup() as running:
            for number, line in enumerate(read_lines(Path(settings["jobs"]))):
                if line["id"] not in out.done:
                    await room.acquire()
                    taken = Record("jobs", 0, number, 0.0, None, b"", ())
                    flight.take(taken, alone=False)
                    running.create_task(one(line, taken))
        await pool.close()
        out.say({"spent": runner.spent})


if __name__ == "__main__":
    uvloop.run(work(json.loads(sys.argv[1])))
