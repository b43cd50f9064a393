"""The adaptive limit: how many calls an endpoint may have open, learned from how they end.

Additive increase, multiplicative decrease: it grows while it is used and calls succeed, shrinks by a tenth on a drop
(429, overload, time-out), at most once for the calls that were open at the same time. A latency gradient shrinks it too
where calls take more than twice what the same task's usually take (after Netflix's Gradient2). Pure: time is passed in.
"""

from __future__ import annotations

from math import sqrt

START, FLOOR, CEILING = 512, 4, 4096
UNSEEN = 16  # calls open until the first answer, where the policy writes no rate: it may tell of limits

_GROWTH = 2.0  # a success in slow start adds this: the limit triples in one round of calls
_BACKOFF = 0.9
_TOLERANCE = 2.0
_SLACK = 0.5  # seconds; a smaller rise says more of our own loop than of the endpoint
_FAST, _SLOW = 0.05, 0.002  # weights of one call in the recent ratio and in a task's usual time
_KNOWN = 100  # calls of a task before its usual time is one
_TASKS = 256  # tasks whose usual time is remembered


class AdaptiveLimit:
    """`limit` stays within `floor`..`ceiling`; it is `unseen` until the first answer, then `start`."""

    __slots__ = ("_borne", "_changed_at", "_ratio", "_slow_start", "_start", "_usual", "ceiling", "floor", "limit")

    def __init__(
        self, start: int = START, floor: int = FLOOR, ceiling: int = CEILING, *, unseen: int | None = None
    ) -> None:
        self.ceiling = ceiling
        self.floor = min(floor, ceiling)
        self._start = min(max(start, self.floor), ceiling)
        self.limit = float(self._start if unseen is None else min(unseen, self._start))
        self._slow_start = True
        self._changed_at = float("-inf")
        self._borne = 0.0  # the most calls that were open beside one that was answered; it fades with time-outs
        self._ratio = 1.0
        self._usual: dict[str, tuple[float, int]] = {}  # mean seconds, calls

    def succeeded(self, task: str, seconds: float, granted_at: float, in_flight: int, now: float) -> None:
        """A call of `task`, granted at `granted_at` and `seconds` long, was answered; it was one of `in_flight`."""
        if in_flight > self._borne:
            self._borne = float(in_flight)
        if self.limit < self._start and self._slow_start:
            self.limit = float(self._start)
        usual, calls = self._usual.get(task, (seconds, 0))
        if not calls and len(self._usual) >= _TASKS:
            self._usual.clear()
        calls += 1
        usual += (seconds - usual) * (_SLOW if calls * _SLOW > 1.0 else 1.0 / calls)
        self._usual[task] = (usual, calls)
        if calls > _KNOWN and usual > 0:
            self._ratio += (min(seconds / usual, 8.0) - self._ratio) * _FAST
        if self._ratio > _TOLERANCE and (self._ratio - 1.0) * usual > _SLACK:
            self._shrink(max(0.5, _TOLERANCE / self._ratio), self.limit, granted_at, now)
        elif self.limit < self.ceiling and in_flight * 2 >= self.limit:
            self.limit = min(self.ceiling, self.limit + (_GROWTH if self._slow_start else 1.0 / sqrt(self.limit)))

    def dropped(self, granted_at: float, in_flight: int, now: float, *, refused: bool) -> None:
        """A call, one of `in_flight`, ended in a refusal or a time-out.

        So many were too many, unless as many have been borne: then a time-out says more of its call than of the load,
        and costs a tenth of the limit, not of what is in flight.
        """
        base = self.limit
        if refused or in_flight > self._borne:
            base = min(base, max(in_flight, 1))
        elif granted_at >= self._changed_at:
            self._borne *= _BACKOFF  # once for a batch, as the limit
        self._shrink(_BACKOFF, base, granted_at, now)

    def _shrink(self, factor: float, base: float, granted_at: float, now: float) -> None:
        # Calls granted before the last change say nothing of the limit that it set.
        if granted_at >= self._changed_at:
            self._changed_at = now
            self._slow_start = False
            self.limit = max(self.floor, min(self.limit, base * factor))

    def __repr__(self) -> str:
        return f"AdaptiveLimit({self.limit:.0f} in {self.floor}..{self.ceiling})"
