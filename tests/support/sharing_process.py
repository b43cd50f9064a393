"""A process that calls one limited model as fast as it may: `python -m tests.support.sharing_process ...`.

Pool, Control and Shares as a worker has them, and nothing else. It prints each change of its part and ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace

from sluiceway.clock import WallClock
from sluiceway.core.catalog import Limits
from sluiceway.kafka.control import Control
from sluiceway.kafka.security import read_connection
from sluiceway.kafka.shares import Shares, worker_name
from sluiceway.models import tokens
from sluiceway.models.pool import Pool
from tests.support.model_calls import call, model

CALLERS = 60


async def run(given: argparse.Namespace) -> None:
    clock = WallClock()
    one = model(given.url, limits=Limits(rpm=given.rpm))
    pool = Pool.open({one.name: one}, clock, tokens.default(), environ={})
    control = Control(read_connection(given.bootstrap, given.setting), given.topic)
    await control.start()

    def told(parts: Mapping[str, float]) -> None:
        pool.share(parts)
        print("part", *parts.values(), flush=True)

    shares = Shares(control, worker_name("w"), pool.limits, told, clock.now, seconds=given.lease)
    if given.shared:
        await shares.start()
    numbers = itertools.count()

    async def calls() -> None:
        while True:
            await pool.call(replace(call(one, seconds=60), job_id=f"{given.name}-{next(numbers)}"))

    callers = [asyncio.create_task(calls()) for _ in range(CALLERS)]
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    clean = await shares.stop(5.0) and await control.stop(5.0)
    await pool.close()
    sys.exit(0 if clean else 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("url")
    parser.add_argument("--name", default="w")
    parser.add_argument("--rpm", type=int, default=60)
    parser.add_argument("--lease", type=float, default=5.0)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--setting", action="append", default=[])
    asyncio.run(run(parser.parse_args()))
