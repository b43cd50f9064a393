"""Jobs that run alone, each in its turn: what runs is finished first, and nothing of the process starts beside them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluiceway.core.held import Held
    from sluiceway.core.queue import Taken
    from sluiceway.core.stream import Stream


class Alone:
    """One for all `roles` of a process. `waiting`: it is their turn, in this order; `running`: the one that does."""

    __slots__ = ("roles", "running", "waiting")

    def __init__(self) -> None:
        self.roles: list[Stream] = []
        self.waiting: deque[Taken] = deque()
        self.running: Taken | None = None

    def start(self, role: Stream) -> list[Taken]:
        """The next one, which runs from now on; empty where it is another role's, or something still runs."""
        job = self.waiting[0]
        if not role.owns(job.held) or any(one.running or one.beside() for one in self.roles):
            return []
        self.running = self.waiting.popleft()
        job.held.running += 1
        return [job]

    def ended(self, job: Taken, role: Stream) -> None:
        """By its place: a driver settles what it has joined, which may be another `Taken` of the same record."""
        alone = self.running
        if alone is not None and alone.held is job.held and alone.record.offset == job.record.offset:
            self.running = None
            self.tell(role)

    def revoked(self, role: Stream) -> None:
        """Epochs of the role have ended."""
        if self.running is not None and self.running.held.gone:
            self.running = None
        self.tell(role)

    def forget(self, held: Held) -> list[Taken]:
        """Those of `held` that have not run, which wait no more."""
        gone = [job for job in self.waiting if job.held is held]
        for job in gone:
            self.waiting.remove(job)
        return gone

    def tell(self, role: Stream) -> None:
        """Another may start: the other roles first, so that one with many to run alone keeps none of them waiting."""
        for one in self.roles:
            if one is not role:
                one.wake()
        role.wake()
