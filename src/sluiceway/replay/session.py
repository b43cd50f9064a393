"""One `sluiceway replay`: policy, backlog and folder opened, the run watched and stopped, its report written."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from sluiceway.archive.atomic import write_whole
from sluiceway.archive.backlog import Backlog
from sluiceway.archive.outcomes import OutcomeLog
from sluiceway.archive.packed import STDIN
from sluiceway.clock import WallClock
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import Ending
from sluiceway.core.policy import Policy
from sluiceway.policyfile import open_runner
from sluiceway.replay import gold
from sluiceway.replay.gold import Held
from sluiceway.replay.report import Summary, summarize
from sluiceway.replay.run import Bounds, Ended, Watcher, run

SUMMARY, GOLD = "summary.json", "gold.json"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What `sluiceway replay` was asked for."""

    backlog: Backlog
    policy: Policy
    out: Path
    gold: str | None = None
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Replayed:
    """Why the run ended and what stands in its folder; `held` is None without gold, or while jobs are missing."""

    ended: Ended
    summary: Summary
    held: list[Held] | None


class _NoMeter:
    """Implements `ports.Meter`: the outcomes are all that a replay counts."""

    def finished(self, record: Ending, *, known: int) -> None:
        pass


def replay(options: ReplayOptions, watcher: Watcher) -> Replayed:
    """Runs it. The first Ctrl-C takes no more jobs and finishes those in flight; the second leaves at once.

    Raises InputError, before any call is made, for whatever the user has to mend.
    """
    if options.gold is not None:
        if options.backlog.path == STDIN:
            raise InputError("gold", "--gold reads the file twice, and standard input can't be. Mend: name a file")
        gold.require(options.backlog, options.gold)
    return asyncio.run(_replay(options, watcher))


def only_task(policy: Policy) -> str:
    """The task of rows that name none: the policy's own, where it has but one."""
    return next(iter(policy.tasks)) if len(policy.tasks) == 1 else ""


async def _replay(options: ReplayOptions, watcher: Watcher) -> Replayed:
    backlog, policy = options.backlog, options.policy
    runner, pool = open_runner(policy, clock=WallClock(), meter=_NoMeter())
    try:
        with OutcomeLog.open(options.out, policy=policy.digest, source=backlog.name) as log:
            with _signals() as stop:
                ended = await run(runner, backlog.rows(), log, options.bounds, watcher, stop)
            log.sync()
            summary = summarize(log.lines())
            _write(options.out / SUMMARY, {**summary.as_json(), "policy": policy.digest, "ended": ended})
            held = None
            if options.gold is not None and ended is not Ended.INTERRUPTED:
                held = await gold.hold(backlog, options.gold, runner.plans, pool, log.lines())
                _write(options.out / GOLD, [one.as_json() for one in held])
            return Replayed(ended, summary, held)
    finally:
        await pool.close()


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second cancels the run."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def asked() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, asked)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _write(path: Path, value: object) -> None:
    write_whole(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))
