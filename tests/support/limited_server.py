"""A model API on virtual time that allows so many requests and tokens a minute, and workers that keep it busy.

The real `core/permit.py` drives it: what a simulated minute shows is a law of the decisions, not a timing of this
machine. Tokens are charged at admission, as the call will use them.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from sluiceway.core.permit import Barred, Ended, Ending, Need, Permit, Permits, Waiting
from sluiceway.core.ratelimit import RateLimit, RateLimits


class Meter(Protocol):
    """What decides whether a request is admitted at `now`."""

    def admit(self, tokens: int, now: float) -> float | None:
        """None: admitted. Else the seconds after which it might be."""

    def told(self, now: float) -> RateLimits | None: ...


@dataclass
class ContinuousMeter:
    """Token buckets refilled continuously, five seconds' burst. `family` None: no headers."""

    rpm: float
    tpm: float
    family: str | None = "openai"
    burst: float = 5.0
    requests: float = field(init=False)
    tokens: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.requests = self.rpm / 60 * self.burst
        self.tokens = self.tpm / 60 * self.burst

    def _refill(self, now: float) -> None:
        passed = now - self.at
        self.at = now
        self.requests = min(self.rpm / 60 * self.burst, self.requests + self.rpm / 60 * passed)
        self.tokens = min(self.tpm / 60 * self.burst, self.tokens + self.tpm / 60 * passed)

    def admit(self, tokens: int, now: float) -> float | None:
        self._refill(now)
        if self.requests < 1 or self.tokens < tokens:
            return max((1 - self.requests) / (self.rpm / 60), (tokens - self.tokens) / (self.tpm / 60), 0.0)
        self.requests -= 1
        self.tokens -= tokens
        return None

    def told(self, now: float) -> RateLimits | None:
        self._refill(now)
        if self.family is None:
            return None
        rounded = round(self.tokens, -3) if self.family == "anthropic" else self.tokens
        reset = (self.tpm / 60 * self.burst - self.tokens) / (self.tpm / 60)
        return RateLimits(
            self.family,
            RateLimit(self.rpm, float(int(self.requests)), 1.0),
            RateLimit(self.tpm, max(rounded, 0.0), reset),
        )


@dataclass
class WindowMeter:
    """Fixed minutes: the count starts anew with each. It tells nothing but when the next one begins."""

    rpm: float
    tpm: float
    window: int = -1
    requests: float = 0.0
    tokens: float = 0.0

    def admit(self, tokens: int, now: float) -> float | None:
        if int(now // 60) != self.window:
            self.window, self.requests, self.tokens = int(now // 60), 0.0, 0.0
        if self.requests + 1 > self.rpm or self.tokens + tokens > self.tpm:
            return 60.0 - now % 60.0
        self.requests += 1
        self.tokens += tokens
        return None

    def told(self, now: float) -> RateLimits | None:  # noqa: ARG002  the protocol's
        return None


@dataclass
class Seen:
    """What the server saw: (time, tokens) of each admitted request, and the times of the refused ones."""

    admitted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    most_open: int = 0

    def used(self, start: float, seconds: float) -> tuple[float, float]:
        """Requests and tokens admitted in [start, start + seconds)."""
        first = bisect_left(self.admitted, (start, 0))
        inside = self.admitted[first : bisect_left(self.admitted, (start + seconds, 0))]
        return len(inside), sum([tokens for _, tokens in inside])


@dataclass
class Simulation:
    """`jobs` calls are always wanted; each takes `latency()` seconds and `sizes()` (counted, true, answer) tokens."""

    permits: Permits
    meter: Meter
    latency: Callable[[random.Random], float]
    seed: int
    jobs: int = 500
    sizes: Callable[[random.Random], tuple[int, int, int]] = lambda dice: (400, dice.randint(380, 460), 20)
    longest_answer: int = 200
    says_when: bool = True
    wire: float = 0.01  # seconds until a refusal is back
    longest_wait: float = 3600.0  # seconds a refused job waits at most before it asks again
    seen: Seen = field(default_factory=Seen)
    now: float = 0.0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._open = 0
        self._timer = float("inf")
        for _ in range(self.jobs):
            self._at(0.0, self._wanted)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, act))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if self.permits.wake_at < self._timer:
                self._timer = self.permits.wake_at
                self._at(self._timer, partial(self._wake, self._timer))
        self.now = until

    def _wake(self, timer: float) -> None:
        if timer == self._timer:  # else an earlier one took its place
            self._timer = float("inf")
            self._serve(self.permits.turn(self.now))

    def _wanted(self, *, retry: bool = False) -> None:
        counted, true, answer = self.sizes(self._dice)
        need = Need("t", "", self.now + 3600, counted, self.longest_answer, retry)
        got = self.permits.ask(need, self.now)
        if isinstance(got, Permit):
            self._sent(got, true, answer)
        elif isinstance(got, Barred):
            self._at(max(got.until, self.now + 0.1), lambda: self._wanted(retry=retry))
        else:
            self._waits[got] = (true, answer)

    _waits: dict[Waiting, tuple[int, int]] = field(default_factory=dict)

    def _serve(self, served: object) -> None:
        for waiting, got in served:  # type: ignore[attr-defined]  # Sequence[Served]
            true, answer = self._waits.pop(waiting)
            if isinstance(got, Permit):
                self._sent(got, true, answer)
            else:
                self._at(max(got.until, self.now + 0.1), self._wanted)

    def _sent(self, permit: Permit, true: int, answer: int) -> None:
        self._open += 1
        self.seen.most_open = max(self.seen.most_open, self._open)
        wait = self.meter.admit(true + answer, self.now)
        told = self.meter.told(self.now)
        if wait is None:
            self.seen.admitted.append((self.now, true + answer))
            seconds = self.latency(self._dice)
            ended = Ended(Ending.SUCCESS, seconds, true, answer, told=told)
        else:
            self.seen.refused.append(self.now)
            seconds = self.wire
            asked = float(int(wait) + 1) if self.says_when else None
            ended = Ended(Ending.DROPPED, seconds, 0, 0, refused=True, retry_after=asked, told=told)
        self._at(self.now + seconds, lambda: self._ended(permit, ended))

    def _ended(self, permit: Permit, ended: Ended) -> None:
        self._open -= 1
        # As models/line.py counts them: jobs that failed here and have not been answered since.
        self.permits.retries_due += ended.refused - permit.retry
        self._serve(self.permits.end(permit, ended, self.now))
        if ended.refused:
            self._at(self.now + min(ended.retry_after or 0.5, self.longest_wait), lambda: self._wanted(retry=True))
        else:
            self._wanted()

    def least_used(self, start: float, end: float, rpm: float, tpm: float, window: float = 10.0) -> float:
        """The least share of whichever limit binds that was used in any `window` seconds between the two times."""
        least, at = float("inf"), start
        while at + window <= end:
            requests, tokens = self.seen.used(at, window)
            least = min(least, max(requests / (rpm / 60 * window), tokens / (tpm / 60 * window)))
            at += 1.0
        return least

    def refused_share(self) -> float:
        return len(self.seen.refused) / max(1, len(self.seen.refused) + len(self.seen.admitted))
