"""Whether a worker still gets on: facts and bounds in, findings out. Pure; time comes as an argument, in seconds.

Two findings. *Slow*: it is late, so it is not ready; it may mend itself. *Wedged*: only a new process mends it. Wedged
are a loop that does not turn, and jobs that are held and of which none gets on. What waits for others is never a wedge,
however long: jobs that wait by rule (a retry's pause, a budget, a breaker) or for the broker's ack, a commit that the
broker does not take, a watermark behind a partition that somebody holds. A new process would only wait as well, and the
jobs in flight would have one more death to their name.

Silence is counted in looks, not by the clock: a process that was frozen with its watchdog finds hours gone, and has
lost nothing but time.
"""

from __future__ import annotations

from dataclasses import dataclass

_WATERMARK = 900.0


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """One role at one instant. Ages in seconds.

    `running`: jobs that were started and are not settled; `waiting`: those of them that wait by rule or for an ack.
    `idle`: since a job was last taken, started or settled, or got a reply. `watermark_age`: how long the oldest
    unsettled record is held, of partitions that nobody holds. `commit_age`: since the last commit, 0 while none is due.
    """

    group: str
    running: int
    waiting: int
    idle: float
    watermark_age: float
    commit_age: float


@dataclass(frozen=True, slots=True)
class Facts:
    """A worker at one instant. `unacked_age`: seconds that the oldest outgoing record has waited for its ack."""

    roles: tuple[RoleFacts, ...]
    unacked_age: float = 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """In seconds. `held` is for jobs of which none gets on: past it the worker is slow, past twice of it wedged.

    `silent`: past it a loop that has not turned is wedged. The others make a worker slow, never wedged.
    """

    held: float
    watermark: float = _WATERMARK
    commit: float = 60.0
    unacked: float = 30.0
    lag: float = 2.0
    silent: float = 60.0

    def __post_init__(self) -> None:
        if min(self.held, self.watermark, self.commit, self.unacked, self.lag, self.silent) <= 0:
            raise ValueError("bounds must be positive")

    @classmethod
    def for_jobs(cls, longest: float, *, margin: float = 30.0, silent: float = 60.0) -> Bounds:
        """For jobs that show something within `longest` seconds at the latest, when all is well.

        That is the longest deadline of a task where `RoleFacts.idle` counts settled jobs only, the longest time-out of
        a model where it counts replies too. `margin` is for what a policy does not bound: publishing, a busy machine.
        """
        held = longest + margin
        return cls(held=held, watermark=max(_WATERMARK, 3 * held), silent=silent)


@dataclass(frozen=True, slots=True)
class Findings:
    """`slow` and `wedged` in words, for an operator; `held`: consumer group -> seconds in which no held job got on."""

    slow: tuple[str, ...] = ()
    wedged: tuple[str, ...] = ()
    held: tuple[tuple[str, float], ...] = ()


class Watch:
    """What a row of looks tells; each look is to come `interval` seconds after the one before."""

    def __init__(self, bounds: Bounds, *, interval: float) -> None:
        self.bounds = bounds
        self._longest_step = 2 * interval  # more than that between two looks: we were not there, and it does not count
        self._last: float | None = None
        self._held: dict[str, float] = {}

    def look(self, facts: Facts, lag: float, now: float) -> Findings:
        """The findings; `lag` is how much later than asked the loop turned, in seconds."""
        passed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        step = min(passed, self._longest_step)
        bounds = self.bounds
        slow: list[str] = []
        wedged: list[str] = []
        before, self._held = self._held, {}
        for role in facts.roles:
            jobs = role.running - role.waiting
            # The first look at held jobs, or a job that got on since the last look, begins anew.
            goes_on = jobs > 0 and role.group in before and role.idle >= passed
            if jobs > 0:
                self._held[role.group] = before[role.group] + step if goes_on else 0.0
            held = self._held.get(role.group, 0.0)
            if held > bounds.held:
                text = f"{role.group}: {jobs} jobs held, none has got on for {held:.0f} s"
                slow.append(text)
                if held > 2 * bounds.held:
                    wedged.append(text)
            if jobs > 0 and role.watermark_age > bounds.watermark:
                slow.append(f"{role.group}: one record held for {role.watermark_age:.0f} s")
            if role.commit_age > bounds.commit:
                slow.append(f"{role.group}: nothing committed for {role.commit_age:.0f} s")
        if facts.unacked_age > bounds.unacked:
            slow.append(f"publisher: no ack for {facts.unacked_age:.0f} s")
        if lag > bounds.lag:
            slow.append(f"the loop turned {lag:.1f} s late")
        return Findings(tuple(slow), tuple(wedged), tuple(self._held.items()))


class Ear:
    """Listens for a loop's beats from outside it; each `listen` is to come `interval` seconds after the one before."""

    def __init__(self, bounds: Bounds, *, interval: float) -> None:
        self._bounds = bounds
        self._longest_step = 2 * interval
        self._beats: int | None = None
        self._last = 0.0
        self._silent = 0.0

    def listen(self, beats: int, now: float) -> tuple[str, ...]:
        """The reason why the loop is wedged, or none; `beats` is how many were heard so far."""
        if beats != self._beats:
            self._beats, self._silent = beats, 0.0
        else:
            self._silent += min(max(0.0, now - self._last), self._longest_step)
        self._last = now
        if self._silent > self._bounds.silent:
            return (f"the loop has not turned for {self._silent:.0f} s",)
        return ()
