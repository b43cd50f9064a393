"""What the inner layers need from the outside, as small Protocols; edges implement them, tests fake them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.tokens import Tokens as Tokens

if TYPE_CHECKING:
    from sluiceway.core.job import Job
    from sluiceway.core.outcome import Escalation, Result, Review

Headers = tuple[tuple[str, bytes | None], ...]  # Kafka lets a header have no value


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as it was read. `timestamp` is in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One Kafka record to be written; the partition follows from the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


Work = Callable[[Record], Awaitable[Outgoing | None]]
"""A job's whole work: record in, its one outgoing record out; None settles it with nothing to write (a tombstone).

It never raises for the job's sake. An exception is a Bug: the worker stops with the record unsettled.
"""


class Models(Protocol):
    """Calls models. Whatever an endpoint does wrong is returned as a Failure; only a Bug raises."""

    async def call(self, call: Call) -> Reply | Failure: ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """Seconds since the epoch that never run backwards while the process lives."""

    def now(self) -> float: ...

    async def sleep_until(self, time: float) -> None: ...


class Journal(Protocol):
    """Remembers calls across restarts, so that no reply is paid for twice."""

    def held(self, job: Job, call: Call) -> Reply | None: ...

    async def started(self, job: Job, call: Call) -> None: ...

    def ended(self, job: Job, call: Call, event: Reply | Failure) -> None: ...


class NoJournal:
    """Remembers nothing: replay keeps its own outcomes, and tests need none."""

    def held(self, job: Job, call: Call) -> Reply | None:  # noqa: ARG002  the protocol's signature
        return None

    async def started(self, job: Job, call: Call) -> None:
        pass

    def ended(self, job: Job, call: Call, event: Reply | Failure) -> None:
        pass


class Meter(Protocol):
    """Counts what happened; never decides, never raises."""

    def finished(self, record: Result | Review | Escalation, *, known: int) -> None:
        """A cascade ended in `record`; the first `known` steps of its trail were counted by an earlier role."""
