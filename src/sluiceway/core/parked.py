"""What is taken of retry topics before its time: a few records of each partition, whose head is the next one due.

It waits for as long as the topic's delay, so it may take no more than a small part of what jobs share: records, bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluiceway.core.held import Held

RECORDS = 10
"""Of a partition, at most."""

_PART = 8  # of the records and of the bytes, one in so many


class Parked:
    """`bytes` of the jobs that are taken and have not started."""

    __slots__ = ("_most", "_records", "bytes")

    def __init__(self, limit: int, records: int) -> None:
        self._most = limit / _PART
        self._records = records // _PART
        self.bytes = 0

    @property
    def excess(self) -> int:
        """Bytes that are over the part: one record of each partition may be more than that."""
        return max(0, self.bytes - int(self._most))

    def ahead(self, held: Held, partitions: int) -> int:
        """How many more records of this one of so many partitions may be taken; one where none is.

        By the size of those that came last: of a partition of which nothing came yet, one.
        """
        fit = int(self._most / partitions / held.record_size) if held.record_size else 1
        queued = len(held.queue)
        return max(0 if queued else 1, min(RECORDS, fit, self._records // partitions) - queued)
