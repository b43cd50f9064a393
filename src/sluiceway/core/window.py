"""Which outcomes a reader has seen: each round's effective outcome is passed on once, within a bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from sluiceway.core.outcome import Result, Review


class Window:
    """Remembers the last `size` outcomes by their id. A duplicate that comes later than that passes as new."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a window holds at least one outcome")
        self._size = size
        self._seen: OrderedDict[str, bool] = OrderedDict()  # outcome id -> whether it was a result

    def admits(self, outcome: Result | Review) -> bool:
        """True for the first outcome of a round, and for a result after no more than a review of the same round.

        In line with `outcome.effective`: result over review, then the earliest.
        """
        is_result = isinstance(outcome, Result)
        known = self._seen.get(outcome.outcome_id)
        if known is not None and (known or not is_result):
            return False
        self._seen[outcome.outcome_id] = is_result
        self._seen.move_to_end(outcome.outcome_id)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._seen)
