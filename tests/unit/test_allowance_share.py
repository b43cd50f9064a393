"""A part of an endpoint's limits: none, some, and what was saved up meanwhile."""

from __future__ import annotations

from math import inf

import pytest

from sluiceway.core.bucket import BURST
from sluiceway.core.catalog import Limits
from sluiceway.core.permit import Allowance, Ended, Ending, Need, Permit, Permits, Waiting
from sluiceway.core.ratelimit import RateLimit, RateLimits

NEED = Need("t", "", 1e9, 10, 10)
RATE = 10  # a second


def granted(permits: Permits, now: float) -> int:
    """How many calls go at once."""
    count = 0
    while isinstance(got := permits.ask(NEED, now), Permit):
        permits.end(got, Ended(Ending.SUCCESS, 0.01, 10, 10), now)
        count += 1
    permits.give_up(got, now) if isinstance(got, Waiting) else None
    return count


def test_without_a_part_calls_wait_until_there_is_one_and_begin_with_nothing_saved() -> None:
    """However long that took: the others have used the limit until then."""
    allowance = Allowance(Limits(rpm=60 * RATE), 0.0)
    permits = Permits([allowance], 0.0)
    allowance.share(0.0, 0.0)
    waits = permits.ask(NEED, 0.0)
    assert isinstance(waits, Waiting)
    assert permits.wake_at == inf
    assert permits.turn(100.0) == []
    allowance.share(0.5, 100.0)
    assert permits.turn(100.0) == []
    ((served, permit),) = permits.turn(100.0 + 2 / RATE)
    assert served is waits
    assert isinstance(permit, Permit)


def test_a_part_that_shrinks_takes_its_part_of_what_was_saved_with_it() -> None:
    """Half the limit, half the burst: two halves are no more than the whole was."""
    allowance = Allowance(Limits(rpm=60 * RATE), 0.0)
    permits = Permits([allowance], 0.0)
    permits.ask(NEED, 0.0)
    allowance.share(0.5, 100.0)
    assert granted(permits, 100.0) == BURST * RATE / 2
    assert granted(permits, 110.0) == BURST * RATE / 2


def test_a_limit_that_was_learned_while_there_was_no_part_holds_once_there_is_one() -> None:
    """Headers may come with the answer to a call that went out before."""
    allowance = Allowance(Limits(), 0.0)
    permits = Permits([allowance], 0.0)
    first = permits.ask(NEED, 0.0)
    assert isinstance(first, Permit)
    allowance.share(0.0, 1.0)
    told = RateLimits("openai", RateLimit(60.0 * RATE, None, 60.0))
    permits.end(first, Ended(Ending.SUCCESS, 1.0, 10, 10, told=told), 1.0)
    assert isinstance(permits.ask(NEED, 50.0), Waiting)
    allowance.share(0.25, 60.0)
    assert len(permits.turn(60.5)) == 1
    assert granted(permits, 60.5) == 0


def test_what_has_no_limit_needs_no_part() -> None:
    """Nothing is shared where nothing is limited."""
    allowance = Allowance(Limits(), 0.0)
    allowance.share(0.0, 0.0)
    assert isinstance(Permits([allowance], 0.0).ask(NEED, 0.0), Permit)


@pytest.mark.parametrize("part", [1.0, 0.4])
def test_names_that_count_against_one_limit_are_given_no_more_than_it_together(part: float) -> None:
    """From the first call on, and with another part: two names of one model are one model to its provider."""
    names = [Permits([Allowance(Limits(rpm=60 * RATE), 0.0, names=2)], 0.0) for _ in range(2)]
    if part == 1.0:  # as it is without a word of other workers
        assert sum(granted(one, 0.0) for one in names) <= BURST * RATE
    for one in names:
        one.endpoints[0].share(part, 0.0)
    assert sum(granted(one, 100.0) for one in names) == part * BURST * RATE
    went = sum(granted(one, 100.0 + second) for second in range(1, 61) for one in names)
    assert went == pytest.approx(part * 60 * RATE, abs=2)
