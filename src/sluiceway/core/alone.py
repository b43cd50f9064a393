"""Jobs that run alone, each in its turn: what runs is finished first, and nothing of the role starts beside them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluiceway.core.held import Held
    from sluiceway.core.queue import Taken


class Alone:
    """`waiting`: it is their turn; `running`: the one that does."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Taken] = deque()
        self.running: Taken | None = None

    def start(self) -> list[Taken]:
        """The next one, which runs from now on."""
        self.running = self.waiting.popleft()
        return [self.running]

    def ended(self, job: Taken) -> None:
        """By its place: a driver settles what it has joined, which may be another `Taken` of the same record."""
        alone = self.running
        if alone is not None and alone.held is job.held and alone.record.offset == job.record.offset:
            self.running = None

    def revoked(self) -> None:
        """Epochs have ended."""
        if self.running is not None and self.running.held.gone:
            self.running = None

    def forget(self, held: Held) -> list[Taken]:
        """Those of `held` that have not run, which wait no more."""
        gone = [job for job in self.waiting if job.held is held]
        for job in gone:
            self.waiting.remove(job)
        return gone
