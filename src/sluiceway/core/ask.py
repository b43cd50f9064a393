"""What a cascade asks for, what it is told, and the states it can be in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.outcome import Ending


class State(StrEnum):
    READY = "ready"
    CALLING = "calling"  # a rung's reply is awaited
    SCORING = "scoring"  # the local classifier that judges an answer is awaited
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Start:
    pass


@dataclass(frozen=True, slots=True)
class Woke:
    pass


@dataclass(frozen=True, slots=True)
class Left:
    """Instead of sleeping the job leaves, through a topic that holds it back for `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Come back with Woke at `until`, or with Left before it; `deadline` is the job's. Times of the runner's clock."""

    until: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Finish:
    record: Ending


Ask = Call | Wait | Finish
Event = Start | Reply | Failure | Woke | Left
