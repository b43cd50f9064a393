"""What recent calls say about each model: its p95 latency, whether it is out, and a task's share of failed escalations.

Mutable state with time passed in. (`core/permit.py` of the endpoint engine will refine `out_until` into a breaker.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_WINDOW = 128  # calls that p95 is taken over
_FAILURES_IN_A_ROW = 5
_OUT_SECONDS = 10.0
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Health:
    """`p95` in seconds, None while too few calls were seen; the model is left alone until `out_until`."""

    p95: float | None = None
    out_until: float = 0.0


@dataclass(slots=True)
class _Model:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    failures: int = 0
    out_until: float = 0.0
    replied_at: float = 0.0
    seen: int = 0
    p95: float | None = None


class HealthBoard:
    """The health of every model, as calls report it."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._snapshot: dict[str, Health] = {}

    def observe(self, model: str, seconds: float, *, failed: bool, now: float) -> None:
        """One call ended. Five failures in a row take a model out for ten seconds; one reply brings it back.

        In a row are calls that began after its last reply: those that one of its endpoints has kept until their
        time-out end together, between two replies of another one.
        """
        state = self._models.get(model)
        if state is None:
            state = self._models[model] = _Model()
        if failed:
            state.failures += not now - seconds < state.replied_at <= now
            if state.failures >= _FAILURES_IN_A_ROW:
                state.out_until = now + _OUT_SECONDS
        else:
            state.failures, state.out_until, state.replied_at = 0, 0.0, now
            state.seconds.append(seconds)
            state.seen += 1
            if state.seen % 16 == 0:
                ordered = sorted(state.seconds)
                state.p95 = ordered[int(0.95 * (len(ordered) - 1))]
        known = self._snapshot.get(model)
        if known is None or known.p95 != state.p95 or known.out_until != state.out_until:
            self._snapshot[model] = Health(state.p95, state.out_until)

    def view(self) -> Mapping[str, Health]:
        return self._snapshot


class FailedShare:
    """How many of a task's jobs of the last minute may be escalated as `failed`: share x jobs, and always one."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._jobs, self._failed = _Minute(), _Minute()

    def job(self, now: float) -> None:
        self._jobs.add(now)

    def allows(self, now: float) -> bool:
        return self._share > 0 and self._failed.at(now) < max(1.0, self._share * self._jobs.at(now))

    def failed(self, now: float) -> None:
        self._failed.add(now)


class _Minute:
    """A count of the last minute, kept by the second: a time for each job would be megabytes that come and go."""

    __slots__ = ("_seconds", "count")

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()  # each with its count
        self.count = 0  # as of the last look

    def add(self, now: float) -> None:
        second, seconds = int(now), self._seconds
        if seconds and seconds[-1][0] == second:
            seconds[-1][1] += 1
        else:
            seconds.append([second, 1])
            self.at(now)
        self.count += 1

    def at(self, now: float) -> int:
        """A second counts as long as any of it is less than a minute ago."""
        seconds = self._seconds
        while seconds and seconds[0][0] + 1 <= now - _MINUTE:
            self.count -= seconds.popleft()[1]
        return self.count
