"""Workers that share one limit: `sluiceway work` processes on Apache Kafka, one, then three, then one again.

The jobs lie on their topic before the first worker starts. The limit's parts go through the control topic, as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from tests.bench._limited_ours import TASK, policy, texts
from tests.bench.main_job import cluster
from tests.support.outgoing import JOBS
from tests.support.processes import Child
from tests.support.rig import Rig, job

PARTITIONS = 12
IN_FLIGHT = 200
THREE, KILLED, ONE = 0.2, 0.5, 0.7  # of the time: two more start, one of those is killed, the other one is stopped
_ENVIRONMENT = {"BENCH_KEY": "bench"}

Steps = list[tuple[float, str]]
"""What was done, and when by the steady clock."""


async def course(url: str, headers: str, characters: int, rpm: int, minutes: float, folder: Path) -> Steps:
    """Returns when the last worker has ended; `rpm` says how many jobs will do."""
    steps: Steps = []

    async def done(at: float, what: str, act: Callable[[], Any]) -> None:
        await asyncio.sleep(max(0.0, began + at * 60 * minutes - time.monotonic()))  # the course's own time
        steps.append((time.monotonic(), what))
        await asyncio.to_thread(act)

    async with AsyncExitStack() as stack:
        rig = Rig(await stack.enter_async_context(cluster("apache", folder)), folder)
        stack.push_async_callback(rig.close)
        written = policy(url, headers)
        await rig.open(written["models"], written["tasks"], partitions=PARTITIONS)
        count = int(rpm * minutes * 1.5) + 10 * IN_FLIGHT
        backlog = enumerate(islice(texts(characters), count))
        await rig.publish(JOBS, [job(number, text, TASK) for number, text in backlog])

        def worker(name: str) -> Child:
            arguments = ("--role", "jobs", "--in-flight", str(IN_FLIGHT), "--instance", name)
            return rig.worker(*arguments, "--state", str(folder / name), environment=_ENVIRONMENT)

        one = worker("one")
        await rig.ready(one)
        began = time.monotonic()
        others: list[Child] = []
        await done(THREE, "two more start", lambda: others.extend((worker("two"), worker("three"))))
        await done(KILLED, "kill -9 of one", lambda: others[0].kill())
        await done(ONE, "one is stopped", lambda: others[1].stop(60.0))
        await done(1.0, "the end", one.terminate)
        await asyncio.to_thread(one.wait, 60.0)
    return steps


def workers(url: str, headers: str, characters: int, rpm: int, minutes: float, folder: Path) -> Steps:
    return asyncio.run(course(url, headers, characters, rpm, minutes, folder))
