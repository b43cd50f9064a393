"""Which outcomes a reader has seen: each round's effective outcome is passed on once, within a bounded memory.

A job is its tenant, task and id: tenants choose their ids by themselves, and so may the publishers of two tasks.
"""

from __future__ import annotations

from collections import OrderedDict

from sluiceway.core.outcome import Result, Review

_Job = tuple[str | None, str, str]  # tenant, task, job id


class Window:
    """Remembers the last outcome of the last `size` jobs. A duplicate that comes later than that passes as new."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a window holds at least one job")
        self._size = size
        self._seen: OrderedDict[_Job, tuple[int, bool]] = OrderedDict()  # -> round, and whether it was a result

    def admits(self, outcome: Result | Review) -> bool:
        """True for the first outcome of a round, and for a result after no more than a review of the same round.

        In line with `outcome.effective`: the highest round, so nothing of a round that a later one has overtaken; then
        result over review, then the earliest.
        """
        standing = outcome.round, isinstance(outcome, Result)
        job = outcome.tenant, outcome.task, outcome.job_id
        known = self._seen.get(job)
        if known is not None and standing <= known:
            return False
        self._seen[job] = standing
        self._seen.move_to_end(job)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._seen)
