"""What a cascade asks for, what it is told, and the states it can be in."""

from __future__ import annotations

from enum import StrEnum

from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.outcome import Ending
from sluiceway.core.value import value


class State(StrEnum):
    READY = "ready"
    CALLING = "calling"  # a rung's reply is awaited
    SCORING = "scoring"  # the local classifier that judges an answer is awaited
    WAITING = "waiting"
    DONE = "done"


@value
class Start:
    pass


@value
class Woke:
    pass


@value
class Left:
    """Instead of sleeping the job leaves, through a topic that holds it back for `delay` seconds."""

    delay: float


@value
class Wait:
    """Come back with Woke at `until`, or with Left before it; `deadline` is the job's. Times of the runner's clock."""

    until: float
    deadline: float


@value
class Finish:
    record: Ending


Ask = Call | Wait | Finish
Event = Start | Reply | Failure | Woke | Left
