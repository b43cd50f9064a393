"""Permits on real sockets: the complaints that users have of today's routers, each with its test."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fake_models import FakeAnswer, FakeFault, FakeModels, FakeRequest
from tests.support.model_calls import call, model, opened

from sluiceway.core.call import Failure, FailureKind, Reply
from sluiceway.core.catalog import Endpoint, Limits, Model

ANSWER = FakeAnswer(value={"label": "login"})


def answers(_: FakeRequest) -> FakeAnswer:
    return ANSWER


def on(*fakes: FakeModels, **given: Any) -> Model:
    return model(fakes[0].url, **given, endpoints=tuple(Endpoint(base_url=f"{fake.url}/v1") for fake in fakes))


def job(of: Model, number: int, **given: Any) -> Any:
    return replace(call(of, text=f"t{number}", **given), job_id=f"job-{number}")


async def test_one_429_does_not_take_out_a_healthy_deployment() -> None:
    """The next hundred calls all go to it and are answered."""
    told = iter([FakeFault("status", 429)])
    async with FakeModels(lambda _: next(told, ANSWER)) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            first = await pool.call(job(one, 0))
            found = await asyncio.gather(*(pool.call(job(one, number)) for number in range(1, 101)))
    assert isinstance(first, Failure)
    assert first.kind is FailureKind.OVERLOADED
    assert all(isinstance(each, Reply) for each in found)


async def test_a_hung_endpoint_costs_only_its_own_permits() -> None:
    """Of two endpoints one never answers: the other's calls all come back while the hung ones still wait."""
    async with FakeModels(answers, name="good") as good, FakeModels(answers, name="hung") as hung:
        hung.hold()
        one = on(hung, good)
        async with opened(one) as pool:
            calls = [asyncio.create_task(pool.call(job(one, number))) for number in range(200)]
            await good.journal.wait_for(lambda entries: len(entries) >= 180)
            assert len(hung.journal.entries) <= 20
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert done
            hung.release()
            assert all(isinstance(found, Reply) for found in await asyncio.gather(*calls))


async def test_a_second_try_goes_to_another_endpoint() -> None:
    """Whichever failed: a job's next call is made elsewhere."""
    async with FakeModels(lambda _: FakeFault("status", 500)) as bad, FakeModels(answers) as good:
        one = on(bad, good)
        async with opened(one) as pool:
            for number in range(4):
                found = await pool.call(job(one, number))
                if isinstance(found, Failure):
                    assert found.endpoint == bad.url
                    again = await pool.call(job(one, number))
                    assert isinstance(again, Reply)
                    assert again.endpoint == good.url
        assert bad.journal.entries


async def test_two_endpoints_share_the_calls() -> None:
    """Equal weights, both healthy: neither idles."""
    async with FakeModels(answers) as first, FakeModels(answers) as second:
        one = on(first, second)
        async with opened(one) as pool:
            for number in range(60):
                assert isinstance(await pool.call(job(one, number)), Reply)
        assert min(len(fake.journal.entries) for fake in (first, second)) >= 10


async def test_without_quota_no_second_call_is_made() -> None:
    """insufficient_quota is a 429 that waiting does not mend: every further call is refused here, at no cost."""
    told = FakeFault("status", 429, code="insufficient_quota")
    async with FakeModels(lambda _: told) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            found = [await pool.call(job(one, number)) for number in range(5)]
        assert len(fake.journal.entries) == 1
    assert {(each.kind, each.detail) for each in found if isinstance(each, Failure)} == {
        (FailureKind.INVALID, "insufficient_quota")
    }


async def test_an_endpoint_that_keeps_failing_is_left_alone() -> None:
    """After five failures calls are refused at once, with the time of the next try."""
    async with FakeModels(lambda _: FakeFault("status", 500)) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            for number in range(5):
                await pool.call(job(one, number))
            shut = await pool.call(job(one, 9))
        assert len(fake.journal.entries) == 5
    assert isinstance(shut, Failure)
    assert (shut.kind, shut.detail) == (FailureKind.OVERLOADED, "breaker_open")
    assert 0 < (shut.retry_after or 0) <= 1.0


async def test_retries_of_a_storm_do_not_multiply() -> None:
    """Each of 300 jobs tries four times against a server that refuses everything: far fewer than 1,200 calls go out."""
    async with FakeModels(lambda _: FakeFault("status", 500)) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            for _ in range(4):
                await asyncio.gather(*(pool.call(job(one, number, seconds=0.2)) for number in range(300)))
        assert len(fake.journal.entries) <= 300 * 1.2


@pytest.mark.parametrize("cancelled", [True, False])
async def test_who_gives_up_waiting_leaves_nothing_behind(cancelled: bool) -> None:
    """Cancelled or past its deadline, its place and its permit go to the next."""
    async with FakeModels(answers) as fake:
        fake.hold()
        one = model(fake.url, limits=Limits(max_parallel_requests=1))
        async with opened(one) as pool:
            first = asyncio.create_task(pool.call(job(one, 0)))
            await fake.journal.wait_for(lambda entries: len(entries) == 1)
            leaves = asyncio.create_task(pool.call(job(one, 1, seconds=20 if cancelled else 0.05)))
            stays = asyncio.create_task(pool.call(job(one, 2)))
            if cancelled:
                await asyncio.sleep(0)
                leaves.cancel()
            else:
                late = await leaves
                assert isinstance(late, Failure)
                assert late.detail == "no_permit"
            fake.release()
            assert isinstance(await first, Reply)
            assert isinstance(await stays, Reply)
            if cancelled:
                with pytest.raises(asyncio.CancelledError):
                    await leaves
        assert len(fake.journal.entries) == 2


async def test_headers_of_both_families_bound_what_is_sent() -> None:
    """An endpoint that tells of 60 requests a minute gets a few and no more, whatever is asked of it."""
    for headers in (
        {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"},
        {"anthropic-ratelimit-requests-limit": "60", "anthropic-ratelimit-requests-remaining": "59"},
    ):
        told = replace(ANSWER, headers=headers)
        async with FakeModels(lambda _, told=told: told) as fake:
            one = model(fake.url)
            async with opened(one) as pool:
                await pool.call(job(one, 0))
                found = await asyncio.gather(*(pool.call(job(one, number, seconds=0.3)) for number in range(1, 60)))
            kinds = Counter(each.detail for each in found if isinstance(each, Failure))
            assert kinds["no_permit"] >= 50
            assert len(fake.journal.entries) <= 8


async def test_calls_cut_short_by_their_jobs_own_deadline_do_not_count_against_the_endpoint() -> None:
    """Jobs that waited to their last moment would else shut an endpoint that is as fast as ever."""
    async with FakeModels(lambda _: replace(ANSWER, delay=0.3)) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            assert isinstance(await pool.call(job(one, 0)), Reply)
            late = await asyncio.gather(*(pool.call(job(one, number, seconds=0.05)) for number in range(1, 12)))
            assert {found.detail for found in late if isinstance(found, Failure)} == {"timeout"}
            assert isinstance(await pool.call(job(one, 99)), Reply)
