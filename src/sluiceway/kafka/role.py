"""What a role is told (settings) and what it tells (stats)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sluiceway.core.stream import Limits, Partition, PartitionStats
from sluiceway.kafka.start import Start


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """Budgets and intervals in seconds. `start` is for a group without offsets only; `instance` is a static member's.

    `revoke_budget`: the whole group waits while we drain. `stop_budget` is the default of `stop()`: nobody waits.
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


@dataclass(frozen=True, slots=True)
class RoleStats:
    """`detached`: jobs of ended epochs that still run. `lag` in records, `last_commit` in seconds ago (None: never)."""

    running: int
    queued: int
    detached: int
    taken: int
    settled: int
    lag: dict[Partition, int]
    partitions: list[PartitionStats]
    pauses: Counter[str]
    last_commit: float | None
    idle: float  # seconds since anything was taken, started or settled

    @property
    def watermark_age(self) -> float:
        return max((row.watermark_age for row in self.partitions), default=0.0)
