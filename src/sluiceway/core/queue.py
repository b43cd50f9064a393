"""The jobs of one partition that are taken and may start, in the order they were read, but for three rules.

`order: key` keeps a job back until the one before it with the same key is settled. Where more wait than may start,
tenants take turns. A partition of a retry topic gives a job out when its delay is over, and not before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sluiceway.core.held import Held
    from sluiceway.core.slots import Slots

TenantOf = Callable[[Any], str]
"""A record's tenant, "" where it names none; asked only where slots run short."""


class Fetched(Protocol):
    """What the stream looks at in a record; it never looks into `value`. `timestamp` is in seconds since the epoch."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


def weigh(record: Fetched) -> int:
    """Bytes that a record takes while it is open."""
    value, key = record.value, record.key
    size = 100 + (len(value) if value else 0) + (len(key) if key else 0)
    if record.headers:
        size += sum(len(name) + len(content or b"") for name, content in record.headers)
    return size


class Taken:
    """One open offset under its epoch. `due`: not to be started before, on the clock of `now`."""

    __slots__ = ("alone", "due", "handed", "held", "record", "size", "tenant")

    def __init__(self, held: Held, record: Fetched, size: int, due: float = 0.0) -> None:
        self.held = held
        self.record = record
        self.size = size
        self.due = due
        self.handed = False  # its outgoing record waits for its ack
        self.alone = False  # it was there when processes died: nothing else of the role runs beside it
        self.tenant: str | None = None  # None until it was asked for


class Queue:
    """`len()` counts all; `waiting` of them are kept back behind a job of the same key.

    `slots` are the role's, and None where tenants take no turns.
    """

    __slots__ = ("_by_key", "_fresh", "_lines", "_of_tenants", "_slots", "_tenants", "delay", "waiting")

    def __init__(self, *, by_key: bool = False, slots: Slots | None = None, delay: float = 0.0) -> None:
        self.delay = delay  # seconds, from a record's own time
        self.waiting = 0
        self._by_key = by_key
        self._slots = slots
        self._fresh: deque[Taken] = deque()
        self._lines: dict[bytes, deque[Taken]] = {}  # who waits behind a key's queued or running job
        self._tenants: dict[str, deque[Taken]] = {}  # the next in turn first; none is empty
        self._of_tenants = 0

    def __len__(self) -> int:
        return len(self._fresh) + self._of_tenants + self.waiting

    @property
    def startable(self) -> int:
        """How many no other job keeps back; their time may be still to come."""
        return len(self._fresh) + self._of_tenants

    def due(self) -> float | None:
        """When the first may start, None where there is none."""
        return self._fresh[0].due if self._fresh else 0.0 if self._of_tenants else None

    def has(self, now: float) -> bool:
        """True if one may start now."""
        return bool(self._of_tenants or (self._fresh and self._fresh[0].due <= now))

    def push(self, job: Taken) -> None:
        key = job.record.key
        if self._by_key and key is not None:
            line = self._lines.get(key)
            if line is not None:
                line.append(job)
                self.waiting += 1
                return
            self._lines[key] = deque()
        self._fresh.append(job)

    def settled(self, job: Taken) -> None:
        """The next of its key may start."""
        key = job.record.key
        if not self._lines or key is None:
            return
        line = self._lines.get(key)
        if line:
            self.waiting -= 1
            self._fresh.append(line.popleft())
        elif line is not None:
            del self._lines[key]

    def pop(self, count: int, now: float, share: int, left: int) -> list[Taken]:
        """At most `count` jobs to start now, `left` being free of the partition's `share` of slots.

        Fewer where what is free is kept for other tenants.
        """
        fresh, slots = self._fresh, self._slots
        if self.delay:
            return self._pop_due(count, now, share, left)
        if slots is not None and (slots.short or self._of_tenants or count < len(fresh)):
            return self._pop_in_turn(slots, count, share, left)
        jobs = [fresh.popleft() for _ in range(min(count, len(fresh)))]
        if slots is not None:
            for job in jobs:
                slots.take(job)
        return jobs

    def _pop_due(self, count: int, now: float, share: int, left: int) -> list[Taken]:
        fresh, slots = self._fresh, self._slots
        jobs: list[Taken] = []
        while fresh and len(jobs) < count and fresh[0].due <= now:
            if slots is not None:
                if slots.short and not slots.may(slots.name(fresh[0]), share, left - len(jobs)):
                    break
                slots.take(fresh[0])
            jobs.append(fresh.popleft())
        return jobs

    def _pop_in_turn(self, slots: Slots, count: int, share: int, left: int) -> list[Taken]:
        tenants = self._tenants
        self._of_tenants += len(self._fresh)
        while self._fresh:
            job = self._fresh.popleft()
            tenants.setdefault(slots.name(job), deque()).append(job)
        jobs: list[Taken] = []
        while len(jobs) < count:
            # Those who may not have slots: they are few.
            name = next((name for name in tenants if slots.may(name, share, left - len(jobs))), None)
            if name is None:
                break
            line = tenants.pop(name)
            job = line.popleft()
            slots.take(job)
            jobs.append(job)
            if line:
                tenants[name] = line  # behind the others
        self._of_tenants -= len(jobs)
        return jobs

    def clear(self) -> list[Taken]:
        """All of them, which are forgotten."""
        dropped = [
            *self._fresh,
            *(job for line in self._tenants.values() for job in line),
            *(job for line in self._lines.values() for job in line),
        ]
        self._fresh.clear()
        self._tenants.clear()
        self._lines.clear()
        self.waiting = self._of_tenants = 0
        return dropped
