"""The retry budget: how many calls may be second tries, so that a sick endpoint is not buried under them.

Each first call earns a fifth of a retry, each retry spends one (after Finagle's RetryBudget); no more is kept than a
fifth of the calls in flight. Where little or nothing new arrives time earns a little, so that what an outage left
behind gets its turn; while first calls keep coming it earns nothing beside them. Pure: time is passed in.
"""

from __future__ import annotations

from sluiceway.core.bucket import NO_TIME

SHARE = 0.2
_LEAST = 10.0  # kept at least
_REFILL = 0.1  # of what may be kept, a second
_INSTEAD = 0.5  # of a retry that time would have earned is not, for each first call
_SECONDS = 5.0  # of such earning that first calls may stand for at most, once they cease


class RetryBudget:
    __slots__ = ("_at", "_balance", "_instead")

    def __init__(self, now: float) -> None:
        self._balance = _LEAST
        self._at = now
        self._instead = 0.0

    def first_call(self) -> None:
        self._balance += SHARE
        self._instead += _INSTEAD

    def wait(self, in_flight: int, now: float) -> float:
        """Seconds until a retry may go; 0.0 for now. `in_flight`: jobs with a call open or a retry due."""
        most = max(_LEAST, SHARE * in_flight)
        refill = most * _REFILL
        earned = refill * max(0.0, now - self._at)
        instead = min(self._instead, refill * _SECONDS)
        self._instead = max(0.0, instead - earned)
        self._balance = min(most, self._balance + max(0.0, earned - instead))
        self._at = max(now, self._at)
        lacking = (1.0 - self._balance) / refill
        return 0.0 if lacking <= NO_TIME else lacking + self._instead / refill

    def spend(self) -> None:
        self._balance -= 1.0
