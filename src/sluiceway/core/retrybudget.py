"""The retry budget: how many calls may be second tries, so that a sick endpoint is not buried under them.

Each first call earns a fifth of a retry, each retry spends one (after Finagle's RetryBudget); no more is kept than a
fifth of the calls in flight, and a little is earned with time, so that what an outage left behind gets its turn when
nothing new arrives. Pure: time is passed in.
"""

from __future__ import annotations

from sluiceway.core.bucket import NO_TIME

SHARE = 0.2
_LEAST = 10.0  # kept at least
_REFILL = 0.1  # of what may be kept, a second


class RetryBudget:
    __slots__ = ("_at", "_balance")

    def __init__(self, now: float) -> None:
        self._balance = _LEAST
        self._at = now

    def first_call(self) -> None:
        self._balance += SHARE

    def wait(self, in_flight: int, now: float) -> float:
        """Seconds until a retry may go; 0.0 for now. `in_flight`: jobs with a call open or a retry due."""
        most = max(_LEAST, SHARE * in_flight)
        self._balance = min(most, self._balance + most * _REFILL * max(0.0, now - self._at))
        self._at = max(now, self._at)
        seconds = (1.0 - self._balance) / (most * _REFILL)
        return 0.0 if seconds <= NO_TIME else seconds

    def spend(self) -> None:
        self._balance -= 1.0
