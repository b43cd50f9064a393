"""What waits to be published: one lane a partition, with the one batch of it that is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sluiceway.ports import Outgoing

_BATCH_HEADER = 61  # Kafka record batch v2
_RECORD_OVERHEAD = 32  # varints, timestamp delta, attributes: the most a record can take, and some


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The record does not fit its topic. `size` is our upper bound of it and `limit` what the topic takes, in bytes."""

    topic: str
    size: int
    limit: int


OnAck = Callable[[Any, Outgoing, TooLarge | None], None]
"""Called with the sender's own ticket, the record, and what became of it: None for acked."""


class Entry:
    """One record on its way. `since` is the loop's time at which it came; `done` once it was acked or handed back."""

    __slots__ = ("done", "on_ack", "outgoing", "since", "size", "ticket")

    def __init__(self, outgoing: Outgoing, on_ack: OnAck, ticket: Any, size: int, since: float) -> None:
        self.outgoing = outgoing
        self.on_ack = on_ack
        self.ticket = ticket
        self.size = size
        self.since = since
        self.done = False


class Lane:
    """One partition's way out: what waits, and the one batch that is under way."""

    __slots__ = ("first_failure", "number", "producer", "sending", "single", "topic", "waiting")

    def __init__(self, topic: str, number: int) -> None:
        self.topic = topic
        self.number = number
        self.waiting: deque[Entry] = deque()
        self.sending: list[Entry] | None = None
        self.producer = 0  # which of the publisher's producers has it
        self.first_failure: float | None = None
        self.single = False  # one record a batch


class WrittenTopic:
    """A topic that is written to: its partitions' lanes, and the largest record it takes, in bytes."""

    __slots__ = ("lanes", "limit")

    def __init__(self, name: str, partitions: int, limit: int) -> None:
        self.lanes = [Lane(name, number) for number in range(partitions)]
        self.limit = limit


def size_of(outgoing: Outgoing) -> int:
    """The most that the record takes as a batch of its own, in bytes."""
    size = _BATCH_HEADER + _RECORD_OVERHEAD + len(outgoing.key or b"") + len(outgoing.value or b"")
    for name, content in outgoing.headers:
        size += len(name.encode()) + len(content or b"") + 10
    return size
