"""The flood guard of one partition: when so many of its jobs become dead letters that a person should look first.

A publisher's mistake, or ours after an upgrade, would else empty a topic into dead letters.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FLOOD = "flood"
"""The reason of `Stream.hold` and `release` for a partition with too many dead letters."""


@dataclass(frozen=True, slots=True)
class Flood:
    """Too much: `run` dead letters one after another, or more than `ratio` of the last `window` jobs."""

    run: int = 100
    ratio: float = 0.5
    window: int = 400


class FloodGuard:
    """Mutable; one for each partition and epoch."""

    __slots__ = ("_bounds", "_dead", "_last", "_run")

    def __init__(self, bounds: Flood) -> None:
        self._bounds = bounds
        self._run = 0
        self._dead = 0
        self._last: deque[bool] = deque()

    def settled(self, dead: bool) -> bool:
        """True when this job makes a flood."""
        bounds, last = self._bounds, self._last
        self._run = self._run + 1 if dead else 0
        self._dead += dead
        last.append(dead)
        if len(last) > bounds.window:
            self._dead -= last.popleft()
        return self._run >= bounds.run or (len(last) == bounds.window and self._dead > bounds.ratio * bounds.window)

    def reset(self) -> None:
        """Count from nothing: a person has looked."""
        self._run = self._dead = 0
        self._last.clear()
