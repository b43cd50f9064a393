"""The pace: the requests a second an endpoint has shown to take, learned from its refusals alone.

It stands in where nobody tells the true limit, or where what was told no longer holds. After a refusal: a little less
than what was accepted just before; then it rises by one per cent a second, until the next refusal or until nothing is
left to learn. While it is well below what was accepted before, each answer raises it by one request a second; a refusal
on its own, with hardly a call before it, holds for two seconds. Pure: time is passed in.
"""

from __future__ import annotations

from collections import deque

from sluiceway.core.bucket import NO_TIME

_WINDOW = 1.0  # seconds of grants that the accepted rate is taken over, and
_LEAST = 16  # grants at least
_KEPT = 512  # grants remembered
_UNDER = 0.97
_AGAIN = 0.85  # refused soon after a cut: what was accepted before it was still a burst
_SOON = 2.0  # seconds
_RISE = 0.01  # of the pace, a second
_RISE_THIN = 0.5  # the same where the grants were few and far between: that was the demand, perhaps not the limit
_DENSE = 4.0  # seconds within which grants must lie to tell of a limit at their first refusal
_SLOWEST = 0.2  # requests a second
_FORGOTTEN = 2.0  # risen to this many times its beginning without a refusal: there is no such limit
_NEAR = 0.9  # of the rate last seen to be accepted: up to here answers alone raise the pace
_BURST = 1.0  # seconds' worth


class Sent:
    """One grant, as the pace remembers it."""

    __slots__ = ("at", "refused")

    def __init__(self, at: float) -> None:
        self.at = at
        self.refused = False


class Pace:
    """`active` while a limit is held to."""

    __slots__ = ("_answered", "_base", "_cut_at", "_good", "_level", "_refilled_at", "_rise", "_sent", "active")

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque(maxlen=_KEPT)
        self.active = False
        self._base = 0.0
        self._rise = _RISE
        self._good = 0.0  # the rate last seen to be accepted
        self._answered = False  # a request that went out since the last cut
        self._cut_at = float("-inf")
        self._level = 0.0
        self._refilled_at = 0.0

    def rate(self, now: float) -> float:
        """Requests a second, while active."""
        return self._base * (1.0 + self._rise * max(0.0, now - self._cut_at))

    def wait(self, now: float) -> float:
        """Seconds until the next request may go; 0.0 for now."""
        if not self.active:
            return 0.0
        rate = self.rate(now)
        if rate >= self._base * _FORGOTTEN:
            self.active = False
            return 0.0
        capacity = max(1.0, rate * _BURST)
        self._level = min(capacity, self._level + rate * (now - self._refilled_at))
        self._refilled_at = now
        seconds = (1.0 - self._level) / rate
        return 0.0 if seconds <= NO_TIME else seconds

    def sent(self, now: float) -> Sent:
        """A request goes out now."""
        if self.active:
            self._level -= 1.0
        sent = Sent(now)
        self._sent.append(sent)
        return sent

    def accepted(self, sent: Sent, now: float) -> None:
        """The endpoint has answered that request."""
        if self.active and sent.at >= self._cut_at:
            self._answered = True
            below = _NEAR * self._good - self.rate(now)
            if below > 0:
                self._base += min(1.0, below)

    def refused(self, sent: Sent, now: float) -> None:
        """The endpoint would not take that request."""
        sent.refused = True
        if sent.at < self._cut_at:
            return  # it went out at the old pace
        accepted, first = 0, sent.at
        for other in reversed(self._sent):
            if other.at > sent.at:
                continue
            if sent.at - other.at > _WINDOW and accepted >= _LEAST:
                break
            accepted += not other.refused
            first = other.at
        if accepted >= _LEAST and sent.at - first <= _DENSE:
            self._rise = _RISE
        else:  # what is refused again and again at a few a second is a limit after all
            self._rise = max(_RISE, self._rise / 2) if self.active else _RISE_THIN
        # While everything is refused nothing is learned of the rate that will be accepted after it.
        if not self.active:
            self._good = accepted / max(sent.at - first, _WINDOW)
        elif self._answered:
            self._good = min(self._good, self.rate(now))
        self._answered = False
        base = max(1.0, accepted / max(sent.at - first, _WINDOW) * _UNDER)
        if self.active:
            present = self.rate(now)
            base = max(_SLOWEST, min(base, present * (_AGAIN if now - self._cut_at < _SOON else _UNDER)))
        self._base, self._cut_at, self.active = base, now, True
        self._level, self._refilled_at = min(self._level, 0.0), now

    def __repr__(self) -> str:
        return f"Pace({self._base:.2f} a second)" if self.active else "Pace()"
