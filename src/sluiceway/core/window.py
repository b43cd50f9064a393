"""Which outcomes a reader has seen: each round's effective outcome is passed on once, within a bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from sluiceway.core.outcome import Result, Review


class Window:
    """Remembers the last outcome of the last `size` jobs. A duplicate that comes later than that passes as new."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a window holds at least one job")
        self._size = size
        self._seen: OrderedDict[str, tuple[int, bool]] = OrderedDict()  # job id -> round, and whether it was a result

    def admits(self, outcome: Result | Review) -> bool:
        """True for the first outcome of a round, and for a result after no more than a review of the same round.

        In line with `outcome.effective`: the highest round, so nothing of a round that a later one has overtaken; then
        result over review, then the earliest.
        """
        standing = outcome.round, isinstance(outcome, Result)
        known = self._seen.get(outcome.job_id)
        if known is not None and standing <= known:
            return False
        self._seen[outcome.job_id] = standing
        self._seen.move_to_end(outcome.job_id)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._seen)
