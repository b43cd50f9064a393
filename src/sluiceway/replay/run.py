"""Running a backlog: rows in, the same cascades as through Kafka, one outcome line each.

An escalation is taken up at once by the other role, from the very bytes that a topic would carry. A run that stops (by
its limits, by Ctrl-C, by a kill) is gone on with by running it again: only jobs in flight at a kill are asked twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import orjson

from sluiceway.archive.backlog import BadRow, Row
from sluiceway.archive.outcomes import OutcomeLog, Whose
from sluiceway.core import outcome as outcomes
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job
from sluiceway.core.outcome import DeadLetterReason, HandOver, Result, Review, outcome_id
from sluiceway.runner import Runner

DEAD_LETTER = "sluiceway.dead-letter/1"


class Ended(StrEnum):
    """Why a run took no more jobs."""

    FINISHED = "finished"
    LIMIT = "limit"
    MAX_COST = "max_cost"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one run may do. `max_cost` is in pico-dollars; jobs in flight when it is reached are still finished."""

    in_flight: int = 64
    limit: int | None = None
    max_cost: int | None = None


class Watcher(Protocol):
    """Told of each row that was done with; `made` is None for one that an earlier run finished."""

    def done(self, made: Result | Review | None, spent: int) -> None: ...


async def run(
    runner: Runner,
    rows: Iterable[Row | BadRow],
    log: OutcomeLog,
    bounds: Bounds,
    watcher: Watcher,
    stop: asyncio.Event,
) -> Ended:
    """Why it ended; all that it took is in `log`. Set `stop` to take no more.

    Raises InputError for a file that breaks off, Bug, OSError where an outcome can't be written.
    """
    feed = _Feed(runner, rows, log, bounds, watcher, stop)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(bounds.in_flight):
                group.create_task(feed.work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the first one cancelled the others
    if feed.broken is not None:
        raise feed.broken
    return feed.ended


async def climb(runner: Runner, job: Job) -> Result | Review:
    """The outcome of `job`: both roles, one after the other. Raises InputError where it is a dead letter."""
    plan = runner.plans.get(job.task)
    if plan is None:
        known = ", ".join(runner.plans)
        raise InputError(DeadLetterReason.UNKNOWN_TASK, f"the policy has no task of that name (it has {known})")
    made = await runner.run(job)
    while isinstance(made, HandOver):
        made = await runner.resume(outcomes.decode(type(made), outcomes.encode(made)))
    return made


class _Feed:
    """The rows, shared by all that work on them: each is taken once, and only while the run may go on."""

    def __init__(
        self,
        runner: Runner,
        rows: Iterable[Row | BadRow],
        log: OutcomeLog,
        bounds: Bounds,
        watcher: Watcher,
        stop: asyncio.Event,
    ) -> None:
        self._runner, self._log, self._bounds, self._watcher, self._stop = runner, log, bounds, watcher, stop
        self._rows = self._read(rows)
        self._taken: set[Whose] = set()  # in flight: a second row of the same job waits for no one and is not asked
        self._count = 0
        self.ended = Ended.FINISHED
        self.broken: InputError | None = None  # the file breaks off; what was read of it is finished first

    async def work(self) -> None:
        while (row := self._take()) is not None:
            await self._answer(row)
            await asyncio.sleep(0)  # recorded models never wait: without this nobody would hear Ctrl-C

    def _take(self) -> Row | BadRow | None:
        """The next row to be asked, None when there is none or the run may take no more."""
        ended = self._bound()
        if ended is not None:
            self.ended = ended
            return None
        for row in self._rows:
            if self._log.has(whose := whose_outcome(row)) or whose in self._taken:
                self._watcher.done(None, self._runner.spent)
                continue
            self._taken.add(whose)
            self._count += 1
            return row
        return None

    def _read(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        try:
            yield from rows
        except InputError as error:
            self.broken = error

    def _bound(self) -> Ended | None:
        bounds = self._bounds
        if self._stop.is_set():
            return Ended.INTERRUPTED
        if bounds.limit is not None and self._count >= bounds.limit:
            return Ended.LIMIT
        if bounds.max_cost is not None and self._runner.spent >= bounds.max_cost:
            return Ended.MAX_COST
        return None

    async def _answer(self, row: Row | BadRow) -> None:
        whose = whose_outcome(row)
        made: Result | Review | None = None
        try:
            line = outcomes.encode(made := await self._climb(row))
        except InputError as error:
            line = _dead_letter(row, error)
        self._log.append(whose, line)
        self._taken.discard(whose)
        self._watcher.done(made, self._runner.spent)

    async def _climb(self, row: Row | BadRow) -> Result | Review:
        if isinstance(row, BadRow):
            raise InputError(row.reason, row.detail)
        plan = self._runner.plans.get(row.job.task)
        if plan is not None and (size := len(row.record)) > plan.task.max_bytes:
            detail = f"{size} bytes; the task's max_bytes is {plan.task.max_bytes}"
            raise InputError(DeadLetterReason.TOO_LARGE, detail)
        return await climb(self._runner, row.job)


def whose_outcome(row: Row | BadRow) -> Whose:
    """Whose the row's outcome is; bytes that are no job have only themselves to be known by."""
    if isinstance(row, BadRow):
        return Whose(row.sha256[:32])
    return Whose(outcome_id(row.job.id, row.job.round), row.job.task, row.job.tenant)


def _dead_letter(row: Row | BadRow, error: InputError) -> bytes:
    known = set(DeadLetterReason)
    return orjson.dumps(
        {
            "outcome_id": whose_outcome(row).outcome_id,
            "job_id": None if isinstance(row, BadRow) else row.job.id,
            "round": 0 if isinstance(row, BadRow) else row.job.round,
            "task": None if isinstance(row, BadRow) else row.job.task,
            "tenant": None if isinstance(row, BadRow) else row.job.tenant,
            "origin": row.origin if isinstance(row, BadRow) else row.job.origin,
            "reason": error.reason if error.reason in known else DeadLetterReason.INVALID,
            "detail": error.detail,
            "schema": DEAD_LETTER,
        }
    )
