"""When a role's partitions are committed, and with what: a watermark, with the map of what is finished above it."""

from __future__ import annotations

from collections.abc import Iterable

from sluiceway.core.held import Commit, Held, Limits
from sluiceway.core.offsets import encode_finished


class Commits:
    """One commit is under way at a time. It comes on time, on count, or at once for a partition without an offset."""

    def __init__(self, limits: Limits) -> None:
        self.last: float | None = None  # acked
        self.wanted: float | None = None  # since when there has been something to commit
        self.metadata_chars = limits.metadata_chars
        self._limits = limits
        self._under_way = False
        self._from = 0.0
        self._settled = 0

    def due(self, held: Iterable[Held], settled: int, now: float, *, force: bool) -> list[Commit]:
        """The commits of what has changed; empty while one is under way, too early, or when nothing changed.

        `settled`: jobs of this role since its start. After a commit that failed, not before its time.
        """
        if self._under_way:
            return []
        changed = [one for one in held if one.changes != one.committed_changes]
        if not changed:
            self.wanted = None
            return []
        if self.wanted is None:
            self.wanted = now
        limits = self._limits
        due = (
            force
            or (settled - self._settled >= limits.commit_count and now >= self._from)
            or now >= self._from + limits.commit_interval
            or (now >= self._from and any(one.committed is None for one in changed))
        )
        if not due:
            return []
        self._under_way = True
        self._settled = settled
        return [self._commit(one) for one in changed]

    def _commit(self, held: Held) -> Commit:
        offset = held.ledger.watermark
        text, left_out = encode_finished(offset, held.ledger.finished(), self.metadata_chars)
        held.map_full = left_out > 0 or len(text) > self.metadata_chars * 9 // 10
        return Commit(held.partition, held.epoch, offset, text, held.changes)

    def acked(self, now: float) -> None:
        self._under_way = False
        self._from = self.last = now
        self.wanted = None

    def age(self, now: float) -> float:
        """Seconds since there has been something to commit; 0 where there is nothing."""
        return 0.0 if self.wanted is None else now - self.wanted

    def failed(self, now: float, retry_after: float) -> None:
        """Made again not before `retry_after` seconds."""
        self._under_way = False
        self._from = now + retry_after - self._limits.commit_interval
