"""Our side of the limits bench: the real Runner, Cascade and Pool, with a backlog that always has more.

`python -m tests.bench._limited_ours` says `open`, then reads runs from stdin, one a line: `{"url", "headers",
"seconds", "in_flight", "characters"}`, and answers each with `{"jobs", "stalled"}`: the longest time in seconds that
its loop did not run, be it for want of a core. Its policy writes no limit: what it holds to is told by headers.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from sluiceway.clock import WallClock
from sluiceway.core import job as jobs
from sluiceway.core.outcome import Escalation, Result, Review
from sluiceway.policyfile import open_runner, read_policy

TASK = "ticket-triage"
LABELS = ("billing", "login", "refund", "other")
_TEXT = "my card was lost abroad and the payment that i made last week still shows as pending please tell"
_LOOK = 0.05  # seconds
_KEY = {"BENCH_KEY": "bench"}


def texts(characters: int, seed: int = 7) -> Iterator[str]:
    """Texts of about so many characters, a half more or less, no two of them alike."""
    dice, known = random.Random(seed), _TEXT.split()
    for number in count():
        words = dice.choices(known, k=dice.randint(characters // 10, characters * 3 // 10))
        yield f"ticket {number}: {' '.join(words)}"


def policy(url: str, headers: str, limits: Mapping[str, int] | None = None) -> dict[str, Any]:
    """One model at `url` serves; jobs that are refused wait for it. The reference is never asked."""
    one = {
        "provider": "bench",
        "api": headers,
        "model": "bench",
        "base_url": f"{url}/v1",
        "api_key_env": "BENCH_KEY",
        "params": {"max_tokens": 50},
        "price": {"input_mtok": 0.15, "output_mtok": 0.6},
        "limits": dict(limits or {}),
    }
    never = {**one, "model": "never", "base_url": "http://127.0.0.1:1/v1", "limits": {}}
    task = {
        "ladder": ["cheap", "frontier"],
        "prompt": "Classify this ticket.",
        "labels": list(LABELS),
        "gate": {"score": "none"},
        "on_failure": "wait",
        "deadline": "30m",
    }
    return {"models": {"cheap": one, "frontier": never}, "tasks": {TASK: task}}


class _NoMeter:
    def finished(self, record: Result | Review | Escalation, *, known: int) -> None:
        pass


async def run(asked: Mapping[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(yaml.safe_dump(policy(asked["url"], asked["headers"])))
        runner, pool = open_runner(read_policy(path), clock=WallClock(), meter=_NoMeter(), environ=_KEY)
    backlog = enumerate(texts(asked["characters"]))
    done = 0

    async def worker() -> None:
        nonlocal done
        for number, text in backlog:
            name = f"job-{number}"
            record = {"id": name, "task": TASK, "input": text}
            ending = await runner.run(jobs.admit(record, origin=f"bench/jobs/0/{number}", default_id=name))
            if not isinstance(ending, Result):
                raise SystemExit(f"{name} became {ending!r}")
            done += 1

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker()) for _ in range(asked["in_flight"])]
        ends = time.monotonic() + asked["seconds"]
        stalled, woken = 0.0, time.monotonic()
        while woken < ends:  # the measured time itself
            await asyncio.sleep(_LOOK)
            stalled, woken = max(stalled, time.monotonic() - woken - _LOOK), time.monotonic()
        for each in workers:
            each.cancel()
    await pool.close()
    return {"jobs": done, "stalled": stalled}


if __name__ == "__main__":
    import uvloop

    print("open", flush=True)
    for line in sys.stdin:
        print(json.dumps(uvloop.run(run(json.loads(line)))), flush=True)
