"""A circuit breaker: an endpoint that keeps failing is left alone for a while, then tried by one probe at a time.

Pure: time is passed in. Refusals for rate (429) are no failures here: the endpoint works, we are too fast.
"""

from __future__ import annotations

_HALF_WINDOW = 5.0  # seconds; the newest and the one before it are counted together
_LEAST_FAILURES = 5
_SHARE = 0.5
_FIRST_OPEN = 1.0  # seconds; doubled with each probe that fails
_LONGEST_OPEN = 30.0


class Breaker:
    """Closed while calls succeed; open after half of the last ten seconds' calls, and five at least, have failed.

    `open_until` is None while closed. After it one probe may go; its success closes the breaker, its failure opens it
    for twice as long. `reason` is what the last failure was.
    """

    __slots__ = ("_counts", "_last_open", "_probing", "_window", "open_until", "reason")

    def __init__(self) -> None:
        self._window = 0.0
        self._counts = [0, 0, 0, 0]  # newest half window: succeeded, failed; the one before it
        self._last_open = 0.0
        self._probing = False
        self.open_until: float | None = None
        self.reason = ""

    def allows(self, now: float) -> bool:
        return self.open_until is None or (now >= self.open_until and not self._probing)

    def shut(self, now: float) -> bool:
        """Whether no call may go and none is being tried: what waits for this endpoint waits for nothing."""
        return self.open_until is not None and (now < self.open_until or self._probing)

    def began(self) -> bool:
        """A call goes out. True: it is the probe, and its end must be told as such."""
        if self.open_until is None:
            return False
        self._probing = True
        return True

    def succeeded(self, now: float, *, probe: bool) -> None:
        if probe:
            self._probing = False
            self.open_until, self._last_open = None, 0.0
            self._counts = [0, 0, 0, 0]
        if self.open_until is None:
            self._turn(now)
            self._counts[0] += 1

    def failed(self, now: float, reason: str, *, probe: bool) -> None:
        self.reason = reason
        if probe:
            self._probing = False
            self._open(now)
        elif self.open_until is None:
            self._turn(now)
            self._counts[1] += 1
            failures = self._counts[1] + self._counts[3]
            if failures >= _LEAST_FAILURES and failures >= _SHARE * sum(self._counts):
                self._open(now)

    def ignored(self, *, probe: bool) -> None:
        """The call said nothing of the endpoint. A probe that did is followed by another."""
        if probe:
            self._probing = False

    def bar(self, now: float, seconds: float, reason: str) -> None:
        """Open for `seconds` at once: nothing that is sent there can succeed."""
        self.reason = reason
        self.open_until = max(self.open_until or 0.0, now + seconds)

    def _open(self, now: float) -> None:
        self._last_open = min(_LONGEST_OPEN, self._last_open * 2 or _FIRST_OPEN)
        self.open_until = now + self._last_open
        self._counts = [0, 0, 0, 0]

    def _turn(self, now: float) -> None:
        age = now - self._window
        if age >= _HALF_WINDOW:
            self._counts = [0, 0, *self._counts[:2]] if age < 2 * _HALF_WINDOW else [0, 0, 0, 0]
            self._window = now
