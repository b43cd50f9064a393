"""A partition while it is held, and the values that `core.stream` speaks in. Only `Stream` changes a `Held`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from sluiceway.core.flood import Flood, FloodGuard
from sluiceway.core.offsets import METADATA_LIMIT, SPAN_LIMIT, OffsetLedger
from sluiceway.core.queue import Queue, Taken


class Partition(NamedTuple):
    """Equal to aiokafka's and Faust's pairs of topic and partition number."""

    topic: str
    partition: int


class Order(StrEnum):
    NONE = "none"
    KEY = "key"
    PARTITION = "partition"


class Pause(StrEnum):
    """Why a partition is not fetched. A partition may have several reasons; it flows when it has none."""

    JOBS = "jobs"  # enough jobs are taken
    BYTES = "bytes"
    SPAN = "span"  # a slow job holds the watermark back
    MAP = "map"  # the commit text is nearly full
    HELD = "held"  # by a flood of dead letters, or a fault of this partition
    DRAIN = "drain"  # stopping, or about to be revoked


@dataclass(frozen=True, slots=True)
class Limits:
    """`jobs` run at once, and as many may wait for their acks; `queue` more are taken ahead of them.

    `burst` are started at once: jobs that start together go on in step, and so call their model in bunches for ever.
    `bytes` counts all of them; `span` is per partition. `commit_interval` is in seconds; `commit_count` settled jobs
    bring a commit forward; `limit` ends the intake.
    """

    jobs: int = 500
    burst: int = 32
    queue: int = 4000
    bytes: int = 64 << 20
    span: int = 10_000
    commit_interval: float = 0.1
    commit_count: int = 10_000
    metadata_chars: int = METADATA_LIMIT
    order: Order = Order.NONE
    limit: int | None = None
    flood: Flood = field(default_factory=Flood)

    def __post_init__(self) -> None:
        if min(self.jobs, self.burst, self.queue, self.bytes, self.commit_count) < 1 or self.commit_interval <= 0:
            raise ValueError("limits must be positive")
        if not 1 <= self.span <= SPAN_LIMIT:
            raise ValueError(f"span must be 1 to {SPAN_LIMIT}: a wider one does not fit the commit's metadata")


class Held:
    """A partition under one epoch; only `Stream` changes it. `gone` once the epoch has ended."""

    __slots__ = (
        "bytes", "changes", "committed", "committed_changes", "draining", "epoch", "flood", "gone", "handed", "head",
        "head_since", "ledger", "map_full", "partition", "queue", "reasons", "record_size", "running",
    )  # fmt: skip

    def __init__(
        self,
        partition: Partition,
        epoch: int,
        ledger: OffsetLedger,
        committed: int | None,
        queue: Queue,
        flood: FloodGuard,
    ) -> None:
        self.partition = partition
        self.epoch = epoch
        self.ledger = ledger
        self.queue = queue
        self.flood = flood
        self.running = 0  # started and not settled
        self.handed = 0  # of these: handed over
        self.bytes = 0
        self.record_size = 0.0  # mean of the last batch, in bytes
        self.draining = self.gone = self.map_full = False
        self.reasons: set[str] = set()  # held by others than the limits
        self.committed = committed
        self.changes = 0
        self.committed_changes = -1 if committed is None else 0
        self.head, self.head_since = ledger.watermark, 0.0

    @property
    def active(self) -> int:
        """Jobs that hold a slot."""
        return self.running - self.handed

    def stop(self, job: Taken) -> None:
        """The job runs no more."""
        self.running -= 1
        self.bytes -= job.size
        self.handed -= job.handed

    def pauses(self, limits: Limits, *, jobs: bool, size: bool) -> list[str]:
        """Why it is not fetched now; `jobs` and `size` say whether its role has enough of them."""
        reasons: list[str] = []
        if self.draining:
            reasons.append(Pause.DRAIN)
        if self.reasons:
            reasons.append(Pause.HELD)
        if jobs:
            reasons.append(Pause.JOBS)
        if size:
            reasons.append(Pause.BYTES)
        if self.ledger.span >= limits.span:
            reasons.append(Pause.SPAN)
        if self.map_full and self.ledger.open:
            reasons.append(Pause.MAP)
        return reasons

    def stats(self, now: float, pauses: tuple[str, ...]) -> PartitionStats:
        ledger = self.ledger
        watermark = ledger.watermark
        # One that waits in a retry topic for its time holds nothing up.
        if watermark != self.head or not ledger.open or (self.queue.delay and not self.running):
            self.head, self.head_since = watermark, now
        age = now - self.head_since
        return PartitionStats(
            self.partition, self.epoch, watermark, ledger.position, self.committed, ledger.open, age, pauses
        )


class Wanted(NamedTuple):
    partition: Partition
    epoch: int
    records: int  # at most


class Commit(NamedTuple):
    """Commit `offset` with `metadata` for the partition, under the epoch's own group generation only."""

    partition: Partition
    epoch: int
    offset: int
    metadata: str
    changes: int


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """`watermark_age`: seconds since the watermark last moved while something was open, as far as was looked."""

    partition: Partition
    epoch: int
    watermark: int
    position: int
    committed: int | None
    open: int
    watermark_age: float
    pauses: tuple[str, ...]
