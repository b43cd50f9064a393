"""Performs the commits that `core.stream` asks for: one at a time, each attempt bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from sluiceway.core.stream import Commit, Stream
from sluiceway.kafka.group import Committed, Group
from sluiceway.kafka.meter import Meter
from sluiceway.kafka.role import RoleSettings
from sluiceway.ports import Flight


class Committer:
    """`generation` is that of the last assignment: commits of any other are void. What none can mend calls `fail`."""

    def __init__(
        self,
        stream: Stream,
        group: Group,
        settings: RoleSettings,
        meter: Meter,
        flight: Flight,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.generation = -1
        self.failures = 0  # in a row
        self._void = False  # the last attempt was refused for good: another one would be too
        self._stream = stream
        self._group = group
        self._settings = settings
        self._meter = meter
        self._flight = flight
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def due(self, *, force: bool = False) -> bool:
        """Starts a commit if one is due and none is under way; True if it did."""
        if self.busy:
            return False
        commits = self._stream.commit_due(self._loop.time(), force=force)
        if commits:
            self._task = asyncio.create_task(self._commit(commits, self.generation))
        return bool(commits)

    async def now(self, until: float) -> bool:
        """True if everything that is settled is committed before the loop's time `until`."""
        while (left := until - self._loop.time()) > 0:
            if not self.busy and not self.due(force=True):
                return True
            if self._task is not None:
                await asyncio.wait([self._task], timeout=left)
            if not self.busy and self.failures:
                if self._void:
                    return False
                await asyncio.sleep(min(0.1, max(0.0, until - self._loop.time())))
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._stream.commit_failed(self._loop.time())
        return False

    async def _commit(self, commits: Sequence[Commit], generation: int) -> None:
        try:
            await self._attempt(commits, generation)
        except Exception as error:  # noqa: BLE001  top of the task: nobody else would hear of it, or commit again
            self.failures += 1
            self._void = True
            self._stream.commit_failed(self._loop.time())
            self._fail(error)

    async def _attempt(self, commits: Sequence[Commit], generation: int) -> None:
        began = self._loop.time()
        outcome = await self._group.commit(commits, generation, self._settings.commit_timeout)
        now = self._loop.time()
        self._void = outcome is Committed.REBALANCED
        if outcome is Committed.DONE:
            self.failures = 0
            self._stream.committed(commits, now)
            if self._settings.batched is not None:
                for topic in dict.fromkeys([commit.partition.topic for commit in commits]):
                    self._settings.batched("commit", topic, self._settings.group, now - began)
            for commit in commits:
                self._flight.cover(commit)
            return
        self.failures += 1
        self._stream.commit_failed(now, self._settings.retry_pause)
        if outcome is Committed.TOO_LARGE:
            limit = self._stream.shrink_metadata()
            self._meter.notice("commit_metadata_refused", group=self._settings.group, limit=limit)
        else:
            self._meter.notice("commit_retried", group=self._settings.group, outcome=outcome.value)
