"""Permits against an oracle: any order of asks, ends, give-ups and passing time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.catalog import Limits
from sluiceway.core.permit import Allowance, Barred, Ended, Ending, Need, Permit, Permits, Waiting
from sluiceway.core.ratelimit import RateLimit, RateLimits

SUCCESS = Ended(Ending.SUCCESS, 0.2, 30, 5)
ENDS = (
    SUCCESS,
    Ended(Ending.SUCCESS, 9.0, 300, 0),
    Ended(Ending.IGNORED),
    Ended(Ending.DROPPED, reason="timeout"),
    Ended(Ending.DROPPED, 0.1, 0, 0, refused=True, retry_after=2.0),
    Ended(Ending.DROPPED, 0.1, 0, 0, refused=True),
    Ended(Ending.SUCCESS, 0.2, 30, 5, told=RateLimits("openai", RateLimit(600, 3, 1.0), RateLimit(60_000, 50, 1.0))),
    Ended(Ending.IGNORED, barred=True, reason="insufficient_quota"),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 3), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("retry"), st.integers(0, 3), st.sampled_from(["a", "b"])),
        st.tuples(st.just("end"), st.integers(0, 30), st.integers(0, len(ENDS) - 1)),
        st.tuples(st.just("give up"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("pass"), st.integers(1, 4000), st.just(0)),
    ),
    max_size=150,
)
LIMITS = st.builds(
    Limits,
    rpm=st.none() | st.integers(1, 2000),
    tpm=st.none() | st.integers(100, 100_000),
    max_parallel_requests=st.none() | st.integers(1, 9),
)


class World:
    """The permits under test, and what an onlooker counts."""

    def __init__(self, limits: list[Limits]) -> None:
        self.now = 1_790_000_000.0
        self.limits = limits
        self.permits = Permits([Allowance(one, self.now) for one in limits], self.now)
        self.out: list[Permit] = []
        self.waiting: list[Waiting] = []
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.began = self.now
        self.granted = [0] * len(limits)

    def _got(self, got: Permit | Barred) -> None:
        self.counts[type(got).__name__] += 1
        self.log.append(f"{got!r} {getattr(got, 'until', '')}")
        if isinstance(got, Permit):
            self.out.append(got)
            self.granted[got.endpoint] += 1
            # Law: at the instant of a grant no limit is passed.
            allowance = self.permits.endpoints[got.endpoint]
            assert allowance.in_flight <= int(allowance.limit.limit)
            most = self.limits[got.endpoint].max_parallel_requests
            assert most is None or allowance.in_flight <= most
            rpm = self.limits[got.endpoint].rpm
            if rpm is not None:
                assert self.granted[got.endpoint] <= rpm / 60 * (self.now - self.began + 5.0) + 1 + 1e-6

    def _served(self, served: object) -> None:
        for waiting, got in served:  # type: ignore[attr-defined]  # Sequence[Served]
            self.waiting.remove(waiting)
            self._got(got)

    def step(self, verb: str, number: int, other: object) -> None:
        match verb:
            case "ask" | "retry":
                self.counts["asked"] += 1
                need = Need(str(number), str(other), self.now + 60, 40 * (number + 1), 50, verb == "retry")
                got = self.permits.ask(need, self.now)
                if isinstance(got, Waiting):
                    self.waiting.append(got)
                else:
                    self._got(got)
            case "end" if self.out:
                permit = self.out.pop(number % len(self.out))
                self.counts["ended"] += 1
                assert isinstance(other, int)
                self._served(self.permits.end(permit, ENDS[other], self.now))
            case "give up" if self.waiting:
                waiting = self.waiting.pop(number % len(self.waiting))
                self.counts["given up"] += 1
                self._served(self.permits.give_up(waiting, self.now))
            case "pass":
                self.now += number / 100
                if self.now >= self.permits.wake_at:
                    self._served(self.permits.turn(self.now))
        # Law: grants are conserved.
        assert len(self.out) == self.permits.in_flight
        assert len(self.waiting) == self.permits.waiting
        counts = self.counts
        assert counts["asked"] == counts["Permit"] + counts["Barred"] + counts["given up"] + len(self.waiting)
        assert counts["Permit"] == counts["ended"] + len(self.out)


@given(st.lists(LIMITS, min_size=1, max_size=3), STEPS)
@settings(max_examples=400, deadline=None)
def test_no_limit_is_passed_and_every_grant_is_conserved(
    limits: list[Limits], steps: list[tuple[str, int, object]]
) -> None:
    """After each event: permits out = in flight, places = waiting, and no grant above a limit."""
    world = World(limits)
    for step in steps:
        world.step(*step)


@given(st.lists(LIMITS, min_size=1, max_size=3), STEPS)
@settings(max_examples=100, deadline=None)
def test_the_same_events_give_the_same_decisions(limits: list[Limits], steps: list[tuple[str, int, object]]) -> None:
    """No clock, no dice, no order of a hash."""
    logs = []
    for _ in range(2):
        world = World(limits)
        for step in steps:
            world.step(*step)
        logs.append(world.log)
    assert logs[0] == logs[1]


@given(st.lists(LIMITS, min_size=1, max_size=3), STEPS)
@settings(max_examples=200, deadline=None)
def test_nobody_who_waits_is_left_waiting(limits: list[Limits], steps: list[tuple[str, int, object]]) -> None:
    """Once every call ends well and nothing new comes, all who wait are served by the ends and `wake_at` alone."""
    world = World(limits)
    for step in steps:
        world.step(*step)
    for _ in range(5000):
        if not world.waiting:
            break
        if world.out:
            world.now += 0.01
            world.step("end", 0, 0)
        else:
            assert world.permits.wake_at < world.now + 20_000, "nobody would ever wake them"
            world.now = max(world.now, world.permits.wake_at) + 1e-4
            world.step("pass", 0, 0)
    assert not world.waiting


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_each_task_and_each_tenant_in_it_gets_its_turns(arrivals: list[tuple[str, str]]) -> None:
    """While two tasks wait, neither is served twice more than the other; the same for two tenants of one task."""
    permits = Permits([Allowance(Limits(max_parallel_requests=1), 0.0)], 0.0)
    permit = permits.ask(Need("first", "", 9.0, 1, 1), 0.0)
    for task, tenant in arrivals:
        assert isinstance(permits.ask(Need(task, tenant, 9.0, 1, 1), 0.0), Waiting)
    left, had = Counter(arrivals), Counter[tuple[str, str]]()
    while permits.waiting:
        assert isinstance(permit, Permit)
        ((waiting, permit),) = permits.end(permit, SUCCESS, 0.0)
        served = (waiting.need.task, waiting.need.tenant)
        left[served] -= 1
        had[served] += 1
        for one in "abc":
            for other in "abc":
                if all(left[one, tenant] + left[other, tenant] == 0 for tenant in "xy"):
                    continue
                if sum(left[one, tenant] for tenant in "xy") and sum(left[other, tenant] for tenant in "xy"):
                    assert abs(sum(had[one, t] for t in "xy") - sum(had[other, t] for t in "xy")) <= 1
        for task in "abc":
            if left[task, "x"] and left[task, "y"]:
                assert abs(had[task, "x"] - had[task, "y"]) <= 1
