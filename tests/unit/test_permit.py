"""Permits: what each kind of end teaches, and who goes next."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sluiceway.core.catalog import Limits
from sluiceway.core.errors import Bug
from sluiceway.core.permit import Allowance, Barred, Ended, Ending, Need, Permit, Permits, Waiting
from sluiceway.core.ratelimit import RateLimit, RateLimits

GOOD = Ended(Ending.SUCCESS, 0.5, 100, 10)
TIMEOUT = Ended(Ending.DROPPED, 30.0, reason="timeout")
REFUSED = Ended(Ending.DROPPED, 0.01, 0, 0, refused=True, reason="rate_limit_exceeded")


def need(task: str = "triage", tenant: str = "", deadline: float = 100.0, **given: Any) -> Need:
    return Need(task, tenant, deadline, given.pop("tokens", 100), given.pop("answer", 10), **given)


def permits(*limits: Limits, weights: list[int] | None = None) -> Permits:
    return Permits([Allowance(one, 0.0) for one in limits or (Limits(),)], 0.0, weights)


def granted(of: Permits, now: float = 0.0, **given: Any) -> Permit:
    got = of.ask(need(**given), now)
    assert isinstance(got, Permit), got
    return got


def warm(of: Permits) -> None:
    """One good call to each endpoint, so that none is unseen."""
    for _ in of.endpoints:
        of.end(granted(of), GOOD, 0.0)


def fail(of: Permits, times: int, now: float, ended: Ended = TIMEOUT) -> None:
    for _ in range(times):
        of.end(granted(of, now), ended, now)


def test_a_permit_ends_once() -> None:
    """A second end would make room that is not there."""
    one = permits()
    permit = granted(one)
    one.end(permit, GOOD, 1.0)
    with pytest.raises(Bug):
        one.end(permit, GOOD, 1.0)


def test_one_429_does_not_take_out_a_healthy_endpoint() -> None:
    """A known complaint: a router's cool-down that takes out a healthy deployment after one 429."""
    one = permits()
    warm(one)
    open_ = [granted(one) for _ in range(50)]
    one.end(open_.pop(), REFUSED, 0.1)
    for permit in open_:
        one.end(permit, GOOD, 0.5)
    assert all(isinstance(one.ask(need(), 1.0 + number / 20), Permit) for number in range(20))


def test_an_endpoint_that_asks_for_a_pause_gets_it_but_an_absurd_one_is_cut() -> None:
    """Retry-After holds new calls for so long; one of a day holds them for half a minute."""
    for asked, waits in ((7.0, 7.0), (86400.0, 30.0)):
        one = permits()
        one.end(granted(one), REFUSED._replace(retry_after=asked), 0.0)
        assert isinstance(one.ask(need(), 1.0), Waiting)
        assert one.wake_at == pytest.approx(waits, abs=1.5)
        assert len(one.turn(one.wake_at)) == 1


def test_drops_lower_the_limit_once_for_all_calls_that_were_open_together() -> None:
    """Ten time-outs of one moment are one sign, and the limit never falls below its floor."""
    one = permits()
    warm(one)
    open_ = [granted(one) for _ in range(100)]
    for permit in open_[:10]:
        one.end(permit, TIMEOUT._replace(refused=True), 1.0)
    assert one.endpoints[0].limit.limit == pytest.approx(90.0, abs=10)
    for number in range(200):
        later = one.ask(need(), 2.0 + number)
        if isinstance(later, Permit):
            one.end(later, REFUSED, 2.0 + number)
    assert one.endpoints[0].limit.limit >= one.endpoints[0].limit.floor


def test_a_call_that_never_ends_takes_no_room_from_those_that_are_answered() -> None:
    """Its endpoint has borne as many: the time-out says nothing of the load, be the call the only one by then."""
    one = permits()
    warm(one)
    hung = granted(one, 1.0)
    for number in range(40):
        open_ = [granted(one, 1.05 + number / 20) for _ in range(10)]
        for permit in open_:
            one.end(permit, GOOD, 1.1 + number / 20)
    one.end(hung, TIMEOUT, 3.2)
    one.end(granted(one, 4.0), TIMEOUT, 6.0)
    assert all(isinstance(one.ask(need(), 7.0), Permit) for _ in range(100))


def test_time_outs_again_and_again_lower_what_counts_as_borne() -> None:
    """An endpoint that bore much once, and bears nothing now, is asked for less and less."""
    one = permits()
    open_ = [granted(one) for _ in range(16)]
    for permit in open_:
        one.end(permit, GOOD, 0.5)
    limit = one.endpoints[0].limit
    for number in range(60):
        limit.dropped(1.0 + number, 16, 1.5 + number, refused=False)
    assert limit.limit < 16


def test_time_outs_of_one_batch_lower_once_what_counts_as_borne() -> None:
    """As they lower the limit once: the next time-out of a call still costs a tenth of it, not of what is open."""
    one = permits()
    warm(one)
    for permit in [granted(one, 1.0) for _ in range(16)]:
        one.end(permit, GOOD, 1.5)
    for permit in [granted(one, 2.0) for _ in range(12)]:
        one.end(permit, TIMEOUT, 32.0)
    limit = one.endpoints[0].limit
    before = limit.limit
    limit.dropped(40.0, 12, 70.0, refused=False)
    assert limit.limit == pytest.approx(0.9 * before)


def test_time_outs_of_all_that_is_open_lower_the_limit_to_less_than_was_open() -> None:
    """It never bore as many: they were too many, however high the limit was."""
    one = permits()
    warm(one)
    open_ = [granted(one, 1.0) for _ in range(50)]
    one.end(open_[0], TIMEOUT, 31.0)
    assert one.endpoints[0].limit.limit == pytest.approx(45.0, abs=1)


def test_calls_that_take_much_longer_than_their_task_usually_does_lower_the_limit() -> None:
    """The latency gradient; a task of long answers beside it is no such sign."""
    for task, lowered in (("triage", True), ("summary", False)):
        one = permits()
        for _ in range(200):
            open_ = [granted(one) for _ in range(2)]
            for permit in open_:
                one.end(permit, GOOD, 0.0)
        before = one.endpoints[0].limit.limit
        for number in range(60):
            one.end(granted(one, float(number), task=task), GOOD._replace(seconds=20.0), float(number))
        assert (one.endpoints[0].limit.limit < before) is lowered


def test_a_breaker_opens_on_failures_lets_one_probe_through_and_closes_on_its_success() -> None:
    """Five failures and no success; then one call at a time; a failed probe doubles the wait."""
    one = permits()
    fail(one, 5, 1.0)
    shut = one.ask(need(), 1.5)
    assert isinstance(shut, Barred)
    assert (shut.until, shut.reason) == (2.0, "timeout")
    probe = granted(one, 2.0)
    assert isinstance(one.ask(need(), 2.0), Barred)
    one.end(probe, TIMEOUT, 2.5)
    again = one.ask(need(), 3.0)
    assert isinstance(again, Barred)
    assert again.until == 4.5
    one.end(granted(one, 4.5), GOOD, 5.0)
    granted(one, 5.0)
    granted(one, 5.0)


def test_failures_among_many_successes_open_no_breaker() -> None:
    """30% of calls fail: they are retried, the endpoint stays in."""
    one = permits()
    for number in range(300):
        now = number / 30
        one.end(granted(one, now), TIMEOUT if number % 10 < 3 else GOOD, now)


def test_refusals_open_no_breaker() -> None:
    """429 says too fast, not broken."""
    one = permits()
    for number in range(50):
        got = one.ask(need(), number * 10.0)
        assert not isinstance(got, Barred)
        if isinstance(got, Permit):
            one.end(got, REFUSED, number * 10.0)


def test_an_endpoint_without_quota_is_left_alone_at_once() -> None:
    """insufficient_quota: no call there can succeed, so none is made for a minute."""
    one = permits(Limits(), Limits())
    permit = granted(one)
    one.end(permit, Ended(Ending.IGNORED, barred=True, reason="insufficient_quota"), 0.0)
    assert {granted(one, 30.0).endpoint for _ in range(10)} == {1 - permit.endpoint}


def test_waiting_calls_hear_at_once_that_the_last_endpoint_is_shut() -> None:
    """Nobody waits for an endpoint that takes no calls."""
    one = permits(Limits(max_parallel_requests=5))
    open_ = [granted(one) for _ in range(5)]
    waiting = one.ask(need(), 0.0)
    served = [pair for permit in open_ for pair in one.end(permit, TIMEOUT, 30.0)]
    assert [got for place, got in served if place is waiting and isinstance(got, Permit)] or isinstance(
        one.ask(need(), 30.0), Barred
    )


def test_a_hung_endpoint_costs_only_its_own_permits() -> None:
    """One of two never answers: it gets a bounded share, and the other serves all the rest."""
    one = permits(Limits(), Limits())
    warm(one)
    hung: list[Permit] = []
    good = 0
    for number in range(1000):
        permit = granted(one, number / 100)
        if permit.endpoint == 0:
            hung.append(permit)
        else:
            good += 1
            one.end(permit, GOOD, number / 100)
    assert len(hung) <= 5
    assert good >= 995


@pytest.mark.parametrize("open_at_once", [1, 20])
def test_calls_are_balanced_by_weight(open_at_once: int) -> None:
    """3 to 1, whether one call is open or many."""
    one = permits(Limits(), Limits(), weights=[3, 1])
    had: Counter[int] = Counter()
    for _ in range(400 // open_at_once):
        open_ = [granted(one) for _ in range(open_at_once)]
        had.update(permit.endpoint for permit in open_)
        for permit in open_:
            one.end(permit, GOOD, 0.5)
    assert 2.5 <= had[0] / had[1] <= 3.5


def test_the_faster_of_two_endpoints_gets_more() -> None:
    """Four times as fast, at least twice the calls; the slow one is still seen."""
    one = permits(Limits(), Limits())
    had: Counter[int] = Counter()
    for _ in range(400):
        permit = granted(one)
        had[permit.endpoint] += 1
        one.end(permit, GOOD._replace(seconds=0.2 if permit.endpoint else 0.8), 0.5)
    assert had[1] >= 2 * had[0] > 0


def test_a_second_try_goes_to_another_endpoint() -> None:
    """While the other is not shut, even where it must be waited for."""
    one = permits(Limits(max_parallel_requests=1), Limits(max_parallel_requests=1))
    warm(one)
    for failed in (0, 1):
        again = granted(one, 1.0, retry=True, avoid=frozenset({failed}))
        assert again.endpoint == 1 - failed
        assert isinstance(one.ask(need(retry=True, avoid=frozenset({failed})), 1.0), Waiting)
        ((_, following),) = one.end(again, GOOD, 1.5)
        assert isinstance(following, Permit)
        assert following.endpoint == 1 - failed
        one.end(following, GOOD, 2.0)


@pytest.mark.parametrize("rate", [1000, 100, 10])
def test_second_tries_are_at_most_a_fifth_of_the_calls(rate: int) -> None:
    """A known complaint: retries that multiply. Whatever fails, and at whatever pace jobs come, 1,000 of them make
    1,200 calls and few more.
    """
    one = permits()
    warm(one)
    retries: list[Permit] = []
    for number in range(1000):
        now = number / rate
        served = list(one.end(granted(one, now), GOOD, now))
        got = one.ask(need(retry=True), now)
        retries += [each for each in (got, *(pair[1] for pair in served)) if isinstance(each, Permit)]
        for permit in retries:
            if not permit.ended:
                one.end(permit, TIMEOUT, now)
    assert 180 <= len(retries) <= 200 + 12


def test_second_tries_get_their_turn_when_nothing_new_comes() -> None:
    """The budget refills with time: what an outage left behind is not left for ever."""
    one = permits()
    warm(one)
    got = [one.ask(need(retry=True), 1.0) for _ in range(40)]
    served = sum(isinstance(each, Permit) for each in got)
    while one.waiting:
        served += len(one.turn(one.wake_at))
    assert served == 40


def test_tokens_are_reserved_by_estimate_and_corrected_when_the_usage_is_known() -> None:
    """A call that was thought small and was not is paid for before the next one goes."""
    one = permits(Limits(tpm=6000))
    permit = granted(one, 10.0, tokens=100, answer=50)
    following = granted(one, 10.0, tokens=100, answer=50)
    one.end(permit, Ended(Ending.SUCCESS, 1.0, 1000, 50), 10.0)
    assert isinstance(one.ask(need(tokens=100, answer=50), 10.0), Waiting)
    assert one.wake_at > 17.0
    one.end(following, Ended(Ending.SUCCESS, 1.0, 0, 0), 10.0)


def test_a_call_larger_than_the_burst_goes_once_the_bucket_is_full() -> None:
    """It is overdrawn, and the next call waits for the debt."""
    one = permits(Limits(tpm=600))
    one.end(granted(one, 1.0, tokens=10, answer=1), Ended(Ending.SUCCESS, 1.0, 10, 1), 1.0)
    assert isinstance(one.ask(need(tokens=500, answer=1), 1.0), Waiting)
    assert one.wake_at <= 6.0
    ((_, large),) = one.turn(one.wake_at)
    assert isinstance(large, Permit)
    assert isinstance(one.ask(need(tokens=10, answer=1), 6.1), Waiting)
    assert one.wake_at > 45


def test_limits_that_headers_tell_bind_from_the_next_call_on() -> None:
    """60 requests a minute; Groq's day and Together's second are converted; the policy's own may only be lower."""
    for told, a_minute in (
        (RateLimit(60, None, None), 60),
        (RateLimit(14400, None, None, 86400.0), 10),
        (RateLimit(2, None, None, 1.0), 90),
    ):
        one = permits(Limits(rpm=90))
        one.end(granted(one), GOOD._replace(told=RateLimits("openai", told)), 0.0)
        went, now = 0, 0.0
        while now < 60.0:
            got = one.ask(need(), now)
            if isinstance(got, Waiting):
                now = one.wake_at
                got = one.turn(now)[0][1] if now < 60.0 else got
            if isinstance(got, Permit):
                went += 1
                one.end(got, GOOD, now)
        assert went == pytest.approx(a_minute, abs=9)


def test_what_the_endpoint_says_is_left_holds() -> None:
    """Another process uses the same key: nothing is left, so the next call waits for the refill."""
    one = permits(Limits(rpm=600))
    granted(one, 100.0)
    permit = granted(one, 100.0)
    one.end(permit, GOOD._replace(told=RateLimits("openai", RateLimit(600, 0, 60.0))), 100.0)
    assert isinstance(one.ask(need(), 100.0), Waiting)


def test_a_share_of_the_limits_binds_like_a_smaller_limit() -> None:
    """Several workers on one key: each uses its part."""
    one = permits(Limits(rpm=600))
    one.endpoints[0].share(0.25, 0.0)
    went = sum(isinstance(one.ask(need(), 100.0), Permit) for _ in range(40))
    assert went == 12  # five seconds' worth of 150 a minute


def test_the_earliest_deadline_of_a_tenant_goes_first_and_who_gives_up_is_skipped() -> None:
    """Order of arrival does not matter within one tenant."""
    one = permits(Limits(max_parallel_requests=1))
    permit = granted(one)
    places = {deadline: one.ask(need(deadline=deadline), 0.0) for deadline in (50.0, 20.0, 30.0)}
    left = places[20.0]
    assert isinstance(left, Waiting)
    assert not one.give_up(left, 0.0)
    ((place, _),) = one.end(permit, GOOD, 1.0)
    assert place is places[30.0]


def test_until_an_endpoint_has_answered_once_few_calls_go_there() -> None:
    """Its first headers may tell of limits; a policy that writes a rate needs no such care."""
    cases = ((Limits(), 16), (Limits(rpm=60_000), 512), (Limits(start_parallel_requests=40), 40))
    for limits, most in cases:
        one = permits(limits)
        assert sum(isinstance(one.ask(need(), 0.0), Permit) for _ in range(600)) == most


def test_a_bucket_gets_back_only_what_was_taken_from_it() -> None:
    """A limit that headers tell of while calls are out: what those took was taken before the bucket was there."""
    one = permits(Limits(rpm=6000))
    calls = [granted(one, answer=1000) for _ in range(100)]
    told = RateLimits("openai", tokens=RateLimit(60_000, None, None))
    one.end(calls[0], GOOD._replace(told=told), 0.5)
    for permit in calls[1:]:
        one.end(permit, GOOD, 0.5)
    went = sum(isinstance(one.ask(need(), 0.5), Permit) for _ in range(50))
    assert went == 9  # of 110 tokens each, out of the 1,000 that it starts with
