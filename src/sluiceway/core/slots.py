"""The slots that jobs run in, and how many of them each tenant has.

While tenants compete, the last twentieth of the slots is for those that have few: a large tenant's burst fills the
rest, and a small one's job starts at once. A tenant that is alone has them all. Whose a job is, is asked only where
slots run short, as asking reads the job.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluiceway.core.queue import Taken, TenantOf

_KEPT = 20  # one slot in so many, rounded
_RECENT = 60.0  # seconds for which a tenant counts as a competitor after it was last met

Place = tuple[int, int]
"""A job's epoch, which no two partitions share, and its offset."""


class Slots:
    """The slots of one role. Jobs that run alone take none: there is nobody beside them."""

    __slots__ = ("_counts", "_latest", "_latest_at", "_now", "_other_at", "_running", "_tenant", "jobs", "short")

    def __init__(self, jobs: int, tenant: TenantOf) -> None:
        self.jobs = jobs
        self.short = False  # as of the last `look`: what is queued would take slots that are kept
        self._tenant = tenant
        self._running: dict[Place, Taken] = {}
        self._counts: dict[str, int] = {}  # of the running jobs whose tenant is known; none is 0
        self._now = 0.0
        self._latest: str | None = None  # the tenant that was met last, when, and when another one was
        self._latest_at = self._other_at = -inf

    @property
    def free(self) -> int:
        return self.jobs - len(self._running)

    def look(self, queued: int, now: float) -> None:
        """Before jobs are picked out of `queued`: tenants are told apart from here on, if need be."""
        self._now = now
        was_short, self.short = self.short, queued > self.free - _kept(self.jobs)
        if self.short and not was_short:
            for job in self._running.values():
                if job.tenant is None:
                    self._count(self.name(job), 1)

    def name(self, job: Taken) -> str:
        """The job's tenant, which is met by this."""
        if job.tenant is None:
            job.tenant = self._tenant(job.record)
        if job.tenant != self._latest:
            self._latest, self._other_at = job.tenant, self._latest_at
        self._latest_at = self._now
        return job.tenant

    def may(self, tenant: str, share: int, left: int) -> bool:
        """Whether the next slot can be this tenant's, in a partition with `left` of its `share` of slots."""
        if self._other_at <= self._now - _RECENT:
            return True
        has = self._counts.get(tenant, 0)
        return self._open(self.jobs, self.free, has) and self._open(share, left, has)

    @staticmethod
    def _open(slots: int, free: int, has: int) -> bool:
        kept = _kept(slots)
        return free > kept or has < kept

    def take(self, job: Taken) -> None:
        """The job runs, or waits until it runs alone."""
        if job.alone:
            return
        self._running[job.held.epoch, job.record.offset] = job
        if self.short:
            self.name(job)
        if job.tenant is not None:
            self._count(job.tenant, 1)

    def leave(self, epoch: int, offset: int) -> None:
        """The job of that place runs no more; nothing where it had no slot."""
        job = self._running.pop((epoch, offset), None)
        if job is not None and job.tenant is not None:
            self._count(job.tenant, -1)

    def end(self, epoch: int) -> None:
        """The epoch has ended, and its jobs count no more."""
        for place in [place for place in self._running if place[0] == epoch]:
            self.leave(*place)

    def _count(self, tenant: str, change: int) -> None:
        count = self._counts.get(tenant, 0) + change
        if count:
            self._counts[tenant] = count
        else:
            del self._counts[tenant]

    def __repr__(self) -> str:
        return f"Slots({self.free} of {self.jobs} free, {len(self._counts)} tenants known)"


def _kept(slots: int) -> int:
    return (slots + _KEPT // 2) // _KEPT
