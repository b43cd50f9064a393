"""A bucket: an amount a minute, refilled continuously, that calls take from and settle with.

Pure: time is passed in. It may be overdrawn by one take and by settlements; the debt is refilled before the next take.
Law: what is taken, less what settlements gave back, is at most capacity + rate x time + one take.
"""

from __future__ import annotations

BURST = 5.0  # seconds' worth that an idle bucket gathers
NO_TIME = 1e-5  # seconds; less is no wait: times since the epoch do not tell it apart
_FIRST = 1.0  # seconds' worth it starts with, so that a fixed window just begun is not overrun


class Bucket:
    """`per_minute` is the limit; `taken` counts all that was ever taken, for what headers say of earlier instants."""

    __slots__ = ("_at", "_capacity", "_level", "_rate", "taken")

    def __init__(self, per_minute: float, now: float, *, burst: float = BURST) -> None:
        self._rate = per_minute / 60.0
        self._capacity = self._rate * burst
        # One worth less than a call's amount starts full: the first call of a small limit need not wait.
        self._level = self._capacity if self._rate * _FIRST < 1.0 else min(self._rate * _FIRST, self._capacity)
        self._at = now
        self.taken = 0.0

    @property
    def per_minute(self) -> float:
        return self._rate * 60.0

    @property
    def capacity(self) -> float:
        """What it holds when it is full."""
        return self._capacity

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._capacity, self._level + self._rate * (now - self._at))
            self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken: 0.0 for now. More than fits in it may be taken once it is full."""
        self._refill(now)
        seconds = (min(amount, self._capacity) - self._level) / self._rate
        return 0.0 if seconds <= NO_TIME else seconds

    def take(self, amount: float, now: float) -> None:
        self._refill(now)
        self._level -= amount
        self.taken += amount

    def settle(self, reserved: float, actual: float, now: float) -> None:
        """A call that took `reserved` has used `actual`."""
        self._refill(now)
        self._level = min(self._capacity, self._level + reserved - actual)
        self.taken += actual - reserved

    def believe(self, remaining: float, now: float) -> None:
        """The endpoint itself says that no more than `remaining` is left."""
        self._refill(now)
        self._level = min(self._level, max(remaining, -self._capacity))

    def resize(self, per_minute: float, now: float, *, burst: float = BURST) -> None:
        """The limit is another from now on."""
        rate = per_minute / 60.0
        if rate != self._rate:
            self._refill(now)
            self._rate, self._capacity = rate, rate * burst
            self._level = min(self._level, self._capacity)

    def __repr__(self) -> str:
        return f"Bucket({self._level:.1f} of {self._capacity:.1f}, {self.per_minute:.0f} a minute)"
