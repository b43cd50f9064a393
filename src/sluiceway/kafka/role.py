"""What a role is told (settings), whom it asks (holds) and what it tells (stats)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sluiceway.core.stream import Limits, Partition, PartitionStats, Pause
from sluiceway.kafka.start import Start
from sluiceway.ports import Record

Batched = Callable[[str, str, str, float], None]
"""Told of each `poll` that brought records and each `commit` that was acked: which, topic, group, and its seconds."""


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """Budgets and intervals in seconds. `start` is for a group without offsets only; `instance` is a static member's.

    `revoke_budget`: the whole group waits while we drain. `stop_budget` is the default of `stop()`: nobody waits.
    `delays`: the retry topics among `topics`, with the seconds from a record's time to its start; they are our own, and
    always read from their beginning. `wall` is the time records are stamped with, in seconds since the epoch.
    """

    group: str
    topics: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    start: Start | None = None
    instance: str | None = None
    revoke_budget: float = 3.0
    stop_budget: float = 25.0
    commit_timeout: float = 10.0
    retry_pause: float = 0.5
    delays: Mapping[str, float] = field(default_factory=dict)
    dead_letters: str = ""  # the topic whose records count as dead letters to the flood guard
    tenant: Callable[[Record], str] | None = None
    wall: Callable[[], float] = time.time
    batched: Batched | None = None


class Holds(Protocol):
    """Remembers, for the whole group and across restarts, which partitions wait for an operator."""

    async def known(self, group: str) -> Collection[Partition]:
        """Those that are held, as far as anybody has said by now."""

    def flooded(self, group: str, partition: Partition) -> None:
        """Puts it on record that this partition is held for its dead letters."""


class NoHolds:
    """A hold that ends with the process."""

    async def known(self, group: str) -> Collection[Partition]:  # noqa: ARG002  the protocol's signature
        return ()

    def flooded(self, group: str, partition: Partition) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RoleStats:
    """`detached`: jobs of ended epochs that still run; `unacked`: those of the running that wait for their ack.

    `lag` in records, `last_commit` in seconds ago (None: never), `commit_age` in seconds with something to commit.
    """

    running: int
    unacked: int
    queued: int
    detached: int
    taken: int
    settled: int
    lag: dict[Partition, int]
    partitions: list[PartitionStats]
    pauses: Counter[str]
    last_commit: float | None
    commit_age: float
    idle: float  # seconds since anything was taken, started or settled

    @property
    def watermark_age(self) -> float:
        """Of the partitions that nobody holds."""
        flowing = [row for row in self.partitions if Pause.HELD not in row.pauses]
        return max((row.watermark_age for row in flowing), default=0.0)
