"""What the inner layers need from the outside, as small Protocols; edges implement them, tests fake them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.tokens import Tokens as Tokens
from sluiceway.core.value import value

if TYPE_CHECKING:
    from sluiceway.core.catalog import Clearance
    from sluiceway.core.held import Commit
    from sluiceway.core.job import Job
    from sluiceway.core.outcome import Ending
    from sluiceway.core.sharing import Kept
    from sluiceway.core.trail import Role

Headers = tuple[tuple[str, bytes | None], ...]  # Kafka lets a header have no value


@value
class Record:
    """One Kafka record as it was read. `timestamp` is in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: Headers


@value
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


Sending = Callable[[Outgoing], tuple[Outgoing, Callable[[str | None], None]]]
"""A record about to be written, as it is to be written; and what is told once it was acked: None, or why it was not."""


class Models(Protocol):
    """Calls models. Whatever an endpoint does wrong is returned as a Failure; only a Bug raises."""

    async def call(self, call: Call) -> Reply | Failure: ...

    async def close(self) -> None: ...


class Tracer(Protocol):
    """Shows from outside what a job does; it decides nothing."""

    async def job(self, job: Job, role: Role, climb: Awaitable[Ending]) -> Ending:
        """What `climb` comes to."""

    def calls(self, models: Models) -> Models:
        """The same models."""


class Clock(Protocol):
    """Seconds since the epoch that never run backwards while the process lives."""

    def now(self) -> float: ...

    async def sleep_until(self, time: float) -> None: ...


class Entry(Protocol):
    """What a journal knows of one call."""

    @property
    def reply(self) -> Reply | None:
        """The one that this very call got before."""

    def started(self) -> Awaitable[None]:
        """Returns when it is on record that the call is made."""

    def ended(self, event: Reply | Failure) -> None:
        """It came back."""


class Journal(Protocol):
    """Remembers calls across restarts, so that no reply is paid for twice."""

    def entry(self, job: Job, call: Call) -> Entry | None:
        """None where nothing is to be remembered of the call."""


class NoJournal:
    """Remembers nothing: replay keeps its own outcomes, and tests need none."""

    def entry(self, job: Job, call: Call) -> Entry | None:  # noqa: ARG002  the protocol's signature
        return None


class Flight(Protocol):
    """What one role had in flight, remembered across the death of its process. Coordinates say which record it was."""

    def was_published(self, record: Record) -> bool:
        """True if its outgoing record was acked and no commit could say so: the process died, or lost its partition."""

    def suspect(self, record: Record) -> bool:
        """True if it was in flight at three deaths of a process: it is to run alone."""

    def condemned(self, record: Record) -> bool:
        """True if a process died while it ran alone: it is not to run again."""

    def take(self, record: Record, *, alone: bool) -> None:
        """Puts on record, before a task that is made now has its first turn, that the job runs."""

    def begin(self, record: Record) -> None:
        """To be called in the task that works on it. Raises Bug when it could not be put on record that it runs."""

    def publish(self, record: Record) -> None:
        """Its outgoing record is acked; a commit is still to come."""

    def drop(self, record: Record) -> None:
        """It ended with nothing of it counting (an ended epoch, a stop)."""

    def blame(self, record: Record) -> None:
        """The process ends because of it: that counts as a death though all else stops in order."""

    def cover(self, commit: Commit) -> None:
        """The broker has acked it: what was published of what it says to be done needs no memory."""


class NoFlight:
    """Remembers nothing: what a worker without --state does."""

    def was_published(self, record: Record) -> bool:  # noqa: ARG002  the protocol's signature
        return False

    def suspect(self, record: Record) -> bool:  # noqa: ARG002  the protocol's signature
        return False

    def condemned(self, record: Record) -> bool:  # noqa: ARG002  the protocol's signature
        return False

    def take(self, record: Record, *, alone: bool) -> None:
        pass

    def begin(self, record: Record) -> None:
        pass

    def publish(self, record: Record) -> None:
        pass

    def drop(self, record: Record) -> None:
        pass

    def blame(self, record: Record) -> None:
        pass

    def cover(self, commit: Commit) -> None:
        pass


class Answers(Protocol):
    """Answers that outlive the process, by the keys of `core.sharing`. Whoever finds one judges its age."""

    def find(self, key: bytes) -> Kept | None:
        """The answer under `key`, None where none is held or what is held can't be read."""

    def keep(self, key: bytes, kept: Kept, clearance: Clearance) -> None:
        """Holds an answer to data of `clearance`, unless such data may not lie there."""


class NoAnswers:
    """Holds nothing: answers last as long as the process."""

    def find(self, key: bytes) -> Kept | None:  # noqa: ARG002  the protocol's signature
        return None

    def keep(self, key: bytes, kept: Kept, clearance: Clearance) -> None:
        pass


class Meter(Protocol):
    """Counts what happened; never decides, never raises."""

    def finished(self, record: Ending, *, known: int) -> None:
        """A cascade ended in `record`; the first `known` steps of its trail were counted by an earlier role."""
