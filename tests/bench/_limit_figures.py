"""What a limited server's journal says of its clients: how much of the limit they used, and how often they passed it.

Pure. A window's share is of whichever limit binds: the greater of its requests' and its tokens'.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

WINDOW = 10.0  # seconds, sliding
STEP = 0.5  # seconds it slides at a time
BURST = 5.0  # seconds' worth that the server's buckets hold


class Limit(NamedTuple):
    """In force from `at`."""

    at: float
    rpm: float
    tpm: float


class Journal:
    """`requests` are (steady seconds, tokens, admitted), in the order of their arrival."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.requests: Sequence[tuple[float, int, bool]] = tree["requests"]
        self.limits = [Limit(*each) for each in tree["limits"]]
        admitted = [(at, tokens) for at, tokens, ok in self.requests if ok]
        self._at = [at for at, _ in admitted]
        self._tokens = [0, *accumulate(tokens for _, tokens in admitted)]

    @property
    def began(self) -> float:
        return self.requests[0][0]

    @property
    def ended(self) -> float:
        return self.requests[-1][0]

    def share(self, limit: Limit, start: float, seconds: float = WINDOW) -> float:
        """The share of `limit` that was used from `start` on."""
        first, last = bisect_left(self._at, start), bisect_left(self._at, start + seconds)
        a_minute = 60.0 / seconds
        tokens = self._tokens[last] - self._tokens[first]
        return max((last - first) * a_minute / limit.rpm, tokens * a_minute / limit.tpm)

    def shares(self, limit: Limit, start: float, end: float) -> list[tuple[float, float]]:
        """(start, share) of every window that lies between the two times."""
        count = int((end - WINDOW - start) / STEP) + 1
        return [(at, self.share(limit, at)) for at in (start + STEP * number for number in range(max(0, count)))]

    def refused(self, start: float, end: float) -> float:
        """The share of the requests in that time that were refused."""
        inside = [ok for at, _, ok in self.requests if start <= at < end]
        return inside.count(False) / max(1, len(inside))

    def most_asked(self, limit: Limit, start: float, end: float, seconds: float) -> float:
        """The most that was asked for in any window of `seconds`, over what the buckets could ever give in it."""
        asked = [(at, tokens) for at, tokens, _ in self.requests if start <= at < end]
        allowed = (seconds + BURST) / 60.0
        most, first, tokens = 0.0, 0, 0
        for number, (at, more) in enumerate(asked):
            tokens += more
            while asked[first][0] <= at - seconds:
                tokens -= asked[first][1]
                first += 1
            most = max(most, (number - first + 1) / (limit.rpm * allowed), tokens / (limit.tpm * allowed))
        return most

    def most_admitted(self, seconds: float) -> float:
        """The same of what was admitted under the first limit: more than 1 would be the server's own fault."""
        before = self.limits[1].at if len(self.limits) > 1 else float("inf")
        only = Journal({"requests": [each for each in self.requests if each[2]], "limits": self.limits})
        return only.most_asked(self.limits[0], 0.0, before, seconds) if only.requests else 0.0

    def back_within(self, least: float) -> float:
        """Seconds from the last change of the limit until the last 10 s have used `least` of it, from then on always.

        Infinite where the last window still had less, or where there was none.
        """
        limit = self.limits[-1]
        windows = self.shares(limit, limit.at, self.ended)
        if not windows or windows[-1][1] < least:
            return float("inf")
        low = [at for at, share in windows if share < least]
        return low[-1] + STEP + WINDOW - limit.at if low else 0.0
