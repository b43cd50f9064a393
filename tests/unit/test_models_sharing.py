"""Fewer calls: who shares, what each copy pays, and who never shares."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core import ledger, sharing
from sluiceway.core.allowance import Allowance
from sluiceway.core.call import CACHED, Call, Failure, FailureKind, FinishReason, Reply, Request, Usage
from sluiceway.core.catalog import Clearance, Limits, Model, Params, Price, PriceTier
from sluiceway.core.permit import Permits
from sluiceway.core.sharing import Kept, Keys, Sharing
from sluiceway.models.line import Line
from sluiceway.models.sharing import AnswerCache, SharedCalls

USAGE = Usage(input_uncached=101, input_cache_read=7, output_text=5)
BASE = Call(
    Model(name="cheap"), Request("s", "u", {"type": "object"}, "triage", 40, "u"), 0, 1100.0, "job-1", tenant="acme"
)
OTHERS: dict[str, dict[str, Any]] = {
    "tenant": {"tenant": "other"},
    "clearance": {"clearance": Clearance.PUBLIC},
    "model": {"model": Model(name="frontier")},
    "parameters": {"model": Model(name="cheap", params=Params(max_tokens=7))},
    "headers": {"model": Model(name="cheap", extra_headers={"x-beta": "1"})},
    "prompt": {"request": replace(BASE.request, system="t")},
    "text": {"request": replace(BASE.request, user="v")},
    "what was trimmed": {"request": replace(BASE.request, text="v")},
    "schema": {"request": replace(BASE.request, schema={"type": "array"})},
    "task": {"request": replace(BASE.request, schema_name="tags")},
    "logprobs": {"logprobs": True},
    "draw": {"draw": 2},
}


class HandClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep_until(self, time: float) -> None:
        raise NotImplementedError


class Held:
    """Models that answer when told to."""

    def __init__(self, answer: Reply | Failure) -> None:
        self.calls: list[Call] = []
        self.answer = answer
        self.open = asyncio.Event()

    async def call(self, call: Call) -> Reply | Failure:
        self.calls.append(call)
        await self.open.wait()
        return self.answer

    async def close(self) -> None:
        pass


def shared(inner: Held, **rules: Any) -> tuple[SharedCalls, HandClock]:
    clock = HandClock()
    return SharedCalls(inner, Sharing(**rules), "digest", clock), clock


async def turns() -> None:
    """Lets every task that can run come to its next await."""
    for _ in range(10):
        await asyncio.sleep(0)


@given(st.builds(Usage, *[st.integers(0, 10**7)] * 6), st.integers(1, 50))
def test_shares_sum_exactly(usage: Usage, copies: int) -> None:
    """To the token, and no copy pays more than one token of a kind more than another."""
    shares = sharing.split(usage, copies)
    assert sum(shares, Usage()) == usage
    assert len(shares) == copies
    assert max(share.output_text for share in shares) - min(share.output_text for share in shares) <= 1


async def test_identical_jobs_in_flight_make_one_call_and_pay_for_it_together() -> None:
    """Each has its own reply; their usages sum to the one that was metered."""
    inner = Held(Reply("a", USAGE, endpoint="http://h"))
    models, _ = shared(inner, coalesce=True)
    calls = [asyncio.create_task(models.call(replace(BASE, job_id=f"job-{number}"))) for number in range(7)]
    await turns()
    inner.open.set()
    found = await asyncio.gather(*calls)
    assert len(inner.calls) == 1
    assert models.saved == 6
    assert {reply.text for reply in found if isinstance(reply, Reply)} == {"a"}
    assert sum([reply.usage for reply in found], Usage()) == USAGE
    assert sorted(reply.copy for reply in found) == [False] + [True] * 6, "one of them stands for the call"


async def test_copies_of_a_call_beyond_a_price_tier_pay_together_what_it_was_billed() -> None:
    """Each copy's share of the input is below the tier: at the price of such a call the dear half would be missing."""
    tier = PriceTier(from_tokens=150, input_mtok=Decimal(2))
    price = Price(input_mtok=Decimal(1), tiers=(tier,))
    usage = Usage(input_uncached=200)
    inner = Held(Reply("a", usage, endpoint="http://h"))
    models, _ = shared(inner, coalesce=True)
    call = replace(BASE, model=BASE.model.model_copy(update={"price": price}))
    calls = [asyncio.create_task(models.call(replace(call, job_id=f"job-{number}"))) for number in range(2)]
    await turns()
    inner.open.set()
    found = await asyncio.gather(*calls)
    assert sum(ledger.cost(reply.usage, price) for reply in found) == ledger.cost(usage, price) == 400_000_000


@pytest.mark.parametrize("what", list(OTHERS))
async def test_nothing_is_shared_where_anything_that_matters_differs(what: str) -> None:
    """A known complaint: a cache that returns another tenant's answer. Neither in flight nor kept."""
    inner = Held(Reply("a", USAGE))
    models, _ = shared(inner, coalesce=True, cache=60)
    other = replace(BASE, **OTHERS[what])
    calls = [asyncio.create_task(models.call(call)) for call in (BASE, other)]
    await turns()
    assert len(inner.calls) == 2
    inner.open.set()
    await asyncio.gather(*calls)
    for keys in (Keys("digest"), models._keys):  # one that has seen neither, and one that has seen both
        assert keys.of(BASE) != keys.of(other)
        assert keys.of(BASE) == Keys("digest").of(replace(BASE, job_id="x", deadline=5.0, endpoint=1))
    assert Keys("digest").of(BASE) != Keys("another policy").of(BASE)


async def test_a_kept_answer_is_given_again_at_no_cost_until_its_time_is_over() -> None:
    """And says that it was kept."""
    inner = Held(Reply("a", USAGE, seconds=3.0))
    inner.open.set()
    models, clock = shared(inner, cache=60)
    first = await models.call(BASE)
    again = await models.call(BASE)
    assert first.usage == USAGE
    assert isinstance(again, Reply)
    assert (again.text, again.usage, again.endpoint, again.seconds) == ("a", Usage(), CACHED, 0.0)
    clock.time += 61
    assert (await models.call(BASE)).usage == USAGE
    assert len(inner.calls) == 2


@pytest.mark.parametrize("clearance", [Clearance.CONFIDENTIAL, Clearance.RESTRICTED])
async def test_answers_to_confidential_data_are_kept_only_where_the_policy_says_so(clearance: Clearance) -> None:
    """Off by default."""
    for allowed in (False, True):
        inner = Held(Reply("a", USAGE))
        inner.open.set()
        models, _ = shared(inner, cache=60, confidential=allowed)
        for _ in range(2):
            await models.call(replace(BASE, clearance=clearance))
        assert len(inner.calls) == (1 if allowed else 2)


@pytest.mark.parametrize(
    "answer",
    [
        Failure(FailureKind.TRANSIENT, "timeout"),
        Reply("cut", USAGE, FinishReason.LENGTH),
        Reply("", USAGE, FinishReason.DECLINED),
    ],
)
async def test_only_whole_answers_are_kept(answer: Reply | Failure) -> None:
    """A failure, a cut or declined reply is asked for again."""
    inner = Held(answer)
    inner.open.set()
    models, _ = shared(inner, cache=60)
    await models.call(BASE)
    await models.call(BASE)
    assert len(inner.calls) == 2


@pytest.mark.parametrize("clearance", list(Clearance))
async def test_what_may_be_kept_is_shared_in_flight_too_and_nothing_else_is(clearance: Clearance) -> None:
    """Copies that are published at once cost one call, as those that come later do."""
    inner = Held(Reply("a", USAGE))
    models, _ = shared(inner, cache=60)
    copy = replace(BASE, clearance=clearance)
    calls = [asyncio.create_task(models.call(replace(copy, job_id=f"job-{number}"))) for number in range(5)]
    await turns()
    inner.open.set()
    found = await asyncio.gather(*calls)
    assert len(inner.calls) == (1 if clearance < Clearance.CONFIDENTIAL else 5)
    assert sum([reply.usage for reply in found], Usage()) == sum([USAGE] * len(inner.calls), Usage())


async def test_when_the_one_that_calls_is_cancelled_another_calls_and_all_are_answered() -> None:
    """Nobody waits for a call that is no longer made."""
    inner = Held(Reply("a", USAGE))
    models, _ = shared(inner, coalesce=True)
    calls = [asyncio.create_task(models.call(replace(BASE, job_id=f"job-{number}"))) for number in range(4)]
    await turns()
    calls[0].cancel()
    await turns()
    assert len(inner.calls) == 2
    inner.open.set()
    found = await asyncio.gather(*calls[1:])
    assert sum([reply.usage for reply in found], Usage()) == USAGE


async def test_one_that_leaves_while_it_waits_pays_nothing_and_the_rest_pay_all() -> None:
    """Its share falls to those who stay."""
    inner = Held(Reply("a", USAGE))
    models, _ = shared(inner, coalesce=True)
    calls = [asyncio.create_task(models.call(replace(BASE, job_id=f"job-{number}"))) for number in range(4)]
    await turns()
    calls[2].cancel()
    await turns()
    inner.open.set()
    found = await asyncio.gather(*[call for number, call in enumerate(calls) if number != 2])
    assert sum([reply.usage for reply in found], Usage()) == USAGE


@pytest.mark.parametrize(
    "answer", [Failure(FailureKind.TRANSIENT, "reset"), Reply("a", USAGE)], ids=["fails", "answers"]
)
async def test_the_next_call_of_each_copy_of_a_failed_call_is_a_second_try(answer: Reply | Failure) -> None:
    """As first ones they would earn retries instead of being held to their budget. An answer makes them first again."""
    clock = HandClock()
    line = Line(Permits([Allowance(Limits(), clock.time)], clock.time), clock)
    failed = isinstance(answer, Failure)
    if not failed:
        line.note("job-2", 0, failed=True)

    class Noting(Held):
        async def call(self, call: Call) -> Reply | Failure:
            found = await super().call(call)
            line.note(call.job_id, 0, failed=failed)
            return found

    inner = Noting(answer)
    rules = Sharing(coalesce=True)
    models = SharedCalls(inner, rules, "d", clock, alike=lambda call, jobs: line.alike(call.job_id, jobs))
    calls = [asyncio.create_task(models.call(replace(BASE, job_id=f"job-{number}"))) for number in range(4)]
    await turns()
    calls[3].cancel()
    await turns()
    inner.open.set()
    await asyncio.gather(*calls[:3])
    assert len(inner.calls) == 1
    known = {0} if failed else None
    assert [line.failed_at(f"job-{number}") for number in range(4)] == [known, known, known, None]
    line.close()


def test_the_cache_stays_within_its_size_and_drops_what_was_not_used_for_longest() -> None:
    """By bytes, not by count."""
    cache = AnswerCache(10_000)
    for number in range(20):
        cache.put(bytes([number]), Kept(Reply("x" * 100, USAGE), 10.0))
        cache.get(b"\0")
    assert len(cache) == 10
    assert cache.get(b"\0") is not None
    assert cache.get(bytes([1])) is None
    for _ in range(100):  # in its own place, which takes no more room
        cache.put(b"\0", Kept(Reply("x" * 100, USAGE), 10.0))
    assert len(cache) == 10
    cache.put(b"large", Kept(Reply("x" * 10_000, USAGE), 10.0))
    assert cache.get(b"large") is None
    assert len(cache) == 10


async def test_a_backlog_with_30_percent_duplicates_makes_at_least_29_percent_fewer_calls() -> None:
    """One worker, cache on: only the first of each text is called for."""
    inner = Held(Reply("a", USAGE))
    inner.open.set()
    models, _ = shared(inner, cache=3600)
    texts = [f"t{number}" for number in range(700)] + [f"t{number}" for number in range(300)]
    found = [await models.call(replace(BASE, request=replace(BASE.request, user=text))) for text in texts]
    assert len(inner.calls) <= 0.71 * len(found)
