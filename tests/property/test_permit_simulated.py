"""The real permits against simulated servers on virtual time: used to the limit, hardly ever refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.support.limited_server import ContinuousMeter, Simulation, WindowMeter

from sluiceway.core.catalog import Limits
from sluiceway.core.permit import Allowance, Permits


def _fast(dice: random.Random) -> float:
    return dice.uniform(0.04, 0.08)


def _slow(dice: random.Random) -> float:
    return dice.uniform(0.5, 3.0)


def _simulated(
    limits: Limits, meter: ContinuousMeter | WindowMeter, latency: Callable[[random.Random], float]
) -> Simulation:
    return Simulation(Permits([Allowance(limits, 0.0)], 0.0), meter, latency, seed=11)


@pytest.mark.parametrize("latency", [_fast, _slow])
@pytest.mark.parametrize("family", ["openai", "anthropic"])
@pytest.mark.parametrize(("rpm", "tpm"), [(600, 10_000_000), (60_000, 200_000)])
def test_a_limit_told_by_headers_is_used_and_not_passed(
    family: str, rpm: int, tpm: int, latency: Callable[[random.Random], float]
) -> None:
    """Nothing in the policy: 95% of what binds in any 10 s of five minutes, under 1% refused; and again within 30 s
    after both limits halve without notice.
    """
    meter = ContinuousMeter(rpm, tpm, family)
    world = _simulated(Limits(), meter, latency)
    world.run(300)
    assert world.least_used(10, 300, rpm, tpm) >= 0.95
    assert world.refused_share() < 0.01
    meter.rpm, meter.tpm = rpm / 2, tpm / 2
    world.run(400)
    assert world.least_used(330, 400, rpm / 2, tpm / 2) >= 0.9
    assert world.refused_share() < 0.01


@pytest.mark.parametrize("latency", [_fast, _slow])
def test_a_limit_that_nobody_tells_is_learned_from_refusals(latency: Callable[[random.Random], float]) -> None:
    """No headers, no policy, no Retry-After: 85% of it is used, and after it halves the new one is."""
    meter = ContinuousMeter(6000, 60_000_000, None)
    world = _simulated(Limits(), meter, latency)
    world.says_when = False
    world.run(120)
    assert world.least_used(30, 120, 6000, 60_000_000) >= 0.85
    meter.rpm = 3000
    world.run(200)
    assert world.least_used(150, 200, 3000, 60_000_000) >= 0.85
    assert world.refused_share() < 0.03


def test_a_policy_that_allows_more_than_the_endpoint_is_corrected_by_refusals() -> None:
    """The written limit is a bound, not a belief."""
    meter = ContinuousMeter(3000, 60_000_000, None)
    world = _simulated(Limits(rpm=6000), meter, _fast)
    world.run(120)
    assert world.least_used(30, 120, 3000, 60_000_000) >= 0.85
    assert world.refused_share() < 0.03


@pytest.mark.parametrize("latency", [_fast, _slow])
def test_fixed_windows_refuse_hardly_anything(latency: Callable[[random.Random], float]) -> None:
    """The other kind of server: a count that starts anew each minute."""
    world = _simulated(Limits(rpm=6000, tpm=6_000_000), WindowMeter(6000, 6_000_000), latency)
    world.run(300)
    assert world.refused_share() < 0.01
    requests, tokens = world.seen.used(60, 240)
    assert max(requests / (6000 * 4), tokens / (6_000_000 * 4)) >= 0.9


def test_a_healthy_endpoint_is_filled_whatever_its_answers_take() -> None:
    """2,000 in flight, answers of 1 s to 20 s: the adaptive limit grows past them and stays."""
    meter = ContinuousMeter(10_000_000, 10_000_000_000, None)
    world = Simulation(
        Permits([Allowance(Limits(), 0.0)], 0.0), meter, lambda dice: dice.uniform(1.0, 20.0), seed=5, jobs=2000
    )
    world.run(60)
    assert world.permits.in_flight == 2000
    assert world.permits.waiting == 0


class _Storm(ContinuousMeter):
    """Refuses everything between two times, and asks for `asked` seconds."""

    begins, ends, asked = 60.0, 120.0, 5.0

    def admit(self, tokens: int, now: float) -> float | None:
        return self.asked if self.begins <= now < self.ends else super().admit(tokens, now)


@pytest.mark.parametrize("asked", [0.1, 5.0, 10.0**9])
def test_a_storm_of_429_is_over_within_a_minute_of_its_end(asked: float) -> None:
    """60 s of nothing but refusals, whatever Retry-After they carry: few calls are lost, then all is as before."""
    meter = _Storm(6000, 60_000_000, "openai")
    meter.asked = asked
    world = _simulated(Limits(), meter, _fast)
    world.longest_wait = 60.0
    world.run(60)
    before = len(world.seen.refused)
    world.run(120)
    assert len(world.seen.refused) - before <= 0.2 * len(world.seen.admitted)
    world.run(240)
    assert world.least_used(180, 240, 6000, 60_000_000) >= 0.9


@pytest.mark.parametrize("latency", [_fast, _slow])
@pytest.mark.parametrize("family", ["openai", "anthropic"])
@pytest.mark.parametrize("burst", [5.0, 1.0])
def test_a_bucket_told_to_the_last_token_is_not_emptied_to_it(
    burst: float, family: str, latency: Callable[[random.Random], float]
) -> None:
    """Nothing is left of the tokens when their limit halves, or a second's worth is all the endpoint ever holds: calls
    that are longer than they were counted are not refused one after another.
    """
    meter = ContinuousMeter(60_000, 300_000, family, burst)
    world = _simulated(Limits(), meter, latency)
    world.run(300)
    assert world.least_used(10, 300, 60_000, 300_000) >= 0.95
    meter.tpm, meter.tokens = 150_000, 0.0
    world.run(400)
    assert world.least_used(330, 400, 60_000, 150_000) >= 0.9
    assert world.refused_share() < 0.01
