"""The real worker with something planted in it: `python -m tests.faults.planted PLANT... -- work ...`.

    kill=POINT:N     SIGKILL to itself the Nth time it passes POINT (see POINTS)
    clock=FILE       time.time() is off by the seconds that stand in FILE, whatever is written there meanwhile
    order=key        what `Limits.order` says, as the command line has no option for it
    budget=SECONDS   another stop budget than the usual one

Everything else is the command line's own code, in its own process. A plant whose place in the product has gone fails.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

POINTS = {
    "taken": ("sluiceway.core.stream", "Stream.fetched", "after"),
    "decoded": ("sluiceway.work", "Desk._decode", "after"),
    "before_call": ("sluiceway.models.pool", "Pool.call", "before"),
    "reply_in_hand": ("sluiceway.models.pool", "Pool.call", "after"),
    "before_ack": ("aiokafka", "AIOKafkaProducer.send_batch", "after"),
    "acked": ("sluiceway.kafka.jobs", "RunningJobs._acked", "before"),
    "settled": ("sluiceway.core.stream", "Stream.settle", "after"),
}
"""The seven points of a job's way at which a worker may die, and the function whose beginning or end each one is."""


def _counted(number: int) -> Callable[[], None]:
    passed = 0

    def passing() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return passing


def _kill(at: str) -> None:
    point, _, number = at.partition(":")
    module, path, when = POINTS[point]
    owner_name, name = path.split(".")
    owner = getattr(__import__(module, fromlist=[owner_name]), owner_name)
    original = getattr(owner, name)
    passing = _counted(int(number))

    @wraps(original)
    def plain(*args: Any, **more: Any) -> Any:
        if when == "before":
            passing()
        found = original(*args, **more)
        # Falsy: nothing was fetched, or nothing was settled.
        if when == "after" and found:
            passing()
        return found

    @wraps(original)
    async def later(*args: Any, **more: Any) -> Any:
        if when == "before":
            passing()
        found = await original(*args, **more)
        if when == "after":
            passing()
        return found

    setattr(owner, name, later if asyncio.iscoroutinefunction(original) else plain)


def _clock(file: str) -> None:
    path, real = Path(file), time.time

    def off() -> float:
        try:
            return real() + float(path.read_text() or 0)
        except ValueError:  # it is being written
            return real()

    time.time = off


def _options(**changes: Any) -> None:
    """Every worker of this process runs with other options."""
    from sluiceway import worker

    original = worker.run

    def run(options: worker.WorkOptions) -> int:
        order = changes.get("order")
        limits = replace(options.limits, order=order) if order else options.limits
        budget = changes.get("stop_budget", options.stop_budget)
        return original(replace(options, limits=limits, stop_budget=budget))

    worker.run = run


def plant(words: list[str]) -> None:
    for word in words:
        name, _, value = word.partition("=")
        if name == "kill":
            _kill(value)
        elif name == "clock":
            _clock(value)
        elif name == "order":
            from sluiceway.core.stream import Order

            _options(order=Order(value))
        elif name == "budget":
            _options(stop_budget=float(value))
        else:
            raise ValueError(f"no plant is called {name!r}")


if __name__ == "__main__":
    place = sys.argv.index("--")
    plant(sys.argv[1:place])
    sys.argv = ["sluiceway", *sys.argv[place + 1 :]]
    from sluiceway.cli import main

    main()
