"""Packed calls: who is answered from one call, who is asked again alone, what each pays, and what fails together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import core

from sluiceway.core import ledger
from sluiceway.core.allowance import Allowance
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.core.catalog import Limits
from sluiceway.core.errors import Bug
from sluiceway.core.permit import Permits
from sluiceway.models.line import Line
from sluiceway.models.packing import PackedCalls

USAGE = Usage(input_uncached=901, input_cache_read=77, output_text=83, output_reasoning=11)
ALONE = Usage(input_uncached=300, output_text=9)
NOW = 1000.0
_TEXT = re.compile(r"text-(\d+)")


class Waits:
    """Models that answer as told: a packed call by `packed`, any other with label `other`; both once `open` is set."""

    def __init__(self, packed: Callable[[Call], Reply | Failure]) -> None:
        self.calls: list[Call] = []
        self.packed = packed
        self.open = asyncio.Event()
        self.open.set()
        self.came = asyncio.Event()

    async def call(self, call: Call) -> Reply | Failure:
        self.calls.append(call)
        self.came.set()
        await self.open.wait()
        return self.packed(call) if call.request.user.startswith("<job-") else Reply('{"label":"other"}', ALONE)

    async def close(self) -> None:
        pass

    @property
    def sizes(self) -> list[int]:
        """How many jobs each call was made for, in order."""
        return [max(1, call.request.user.count("<job-")) for call in self.calls]


def good(call: Call) -> Reply:
    """`billing` for even texts, `login` for odd ones."""
    labels = ["login" if int(number) % 2 else "billing" for number in _TEXT.findall(call.request.user)]
    members = [f'"{number}":{{"label":"{label}"}}' for number, label in enumerate(labels, 1)]
    return Reply("{" + ",".join(members) + "}", USAGE, response_id="r1")


class World:
    """The jobs of one task on a hand clock; packs close by `wait` in the loop's own time."""

    def __init__(self, packed: Callable[[Call], Reply | Failure] = good, **rules: Any) -> None:
        self.inner = Waits(packed)
        self.clock = core.HandClock(NOW)
        self.alike: list[tuple[str, list[str]]] = []
        prompt = "Classify this ticket of a customer. " * 30
        self.plan = core.plan({"prompt": prompt, "packing": {"jobs": 4, "wait": "1ms", "tokens": 5000, **rules}})
        tasks = {"triage": self.plan.task}
        self.models = PackedCalls(self.inner, tasks, core.Letters(), self.clock, self._alike)

    def _alike(self, call: Call, others: Iterable[str]) -> None:
        self.alike.append((call.job_id, list(others)))

    def ask(self, number: int, **changes: Any) -> asyncio.Task[Reply | Failure]:
        built = self.plan.prompt.build(self.plan.prompt.read(core.job(f"text-{number}")), (), 100_000)
        assert isinstance(built, tuple)
        call = Call(self.plan.models["cheap"], built[0], 0, NOW + 60, f"job-{number}")
        return asyncio.create_task(self.models.call(replace(call, **changes)))

    async def all(self, numbers: Iterable[int], **changes: Any) -> list[Reply | Failure]:
        return await asyncio.gather(*[self.ask(number, **changes) for number in numbers])


def total(found: Iterable[Reply | Failure]) -> Usage:
    return sum([event.usage for event in found], Usage())


def labels(found: Iterable[Reply | Failure]) -> list[str]:
    return [event.text if isinstance(event, Reply) else event.detail for event in found]


async def test_a_full_pack_goes_out_at_once_and_each_gets_its_own_answer_and_its_exact_share() -> None:
    """Eight jobs, two calls, no waiting; the shares of each sum to what was metered."""
    world = World(wait="10s")
    found = await world.all(range(8))
    assert world.inner.sizes == [4, 4]
    assert labels(found) == ['{"label":"billing"}', '{"label":"login"}'] * 4
    assert total(found[:4]) == total(found[4:]) == USAGE
    assert {event.packed for event in found if isinstance(event, Reply)} == {4}
    assert (world.models.packs, world.models.packed, world.models.redone) == (2, 8, 0)


async def test_jobs_wait_no_longer_than_the_policy_says() -> None:
    """Then they go with those that came; what comes later is another pack."""
    world = World()
    found = await world.all(range(3))
    assert world.inner.sizes == [3]
    assert total(found) == USAGE
    await world.all([3, 4])
    assert world.inner.sizes == [3, 2]


async def test_a_lone_job_goes_exactly_as_without_packing() -> None:
    """The very same call, the very same reply."""
    world = World()
    (found,) = await world.all([0])
    assert world.inner.sizes == [1]
    assert found == Reply('{"label":"other"}', ALONE)
    assert world.inner.calls[0].request.schema_name == "triage"
    assert world.models.packs == 0


@pytest.mark.parametrize("change", [{"tenant": "b"}, {"draw": 2}, {"logprobs": True}, {"endpoint": 1}])
async def test_what_differs_is_never_in_one_call(change: dict[str, Any]) -> None:
    """Two packs of two, though four would be full."""
    world = World()
    await asyncio.gather(*[world.ask(number, **(change if number % 2 else {})) for number in range(4)])
    assert world.inner.sizes == [2, 2]
    assert all(len({int(n) % 2 for n in _TEXT.findall(call.request.user)}) == 1 for call in world.inner.calls)


async def test_an_answer_that_is_no_answer_is_asked_for_alone_and_both_calls_are_paid_for() -> None:
    """Missing and malformed ones; the share of the packed call is still theirs."""

    def holes(_: Call) -> Reply:
        text = '{"4":{"label":"refund"},"1":{"label":"billing"},"2":{"label":"none such"},"7":{"label":"login"}}'
        return Reply(text, USAGE)

    world = World(holes)
    found = await world.all(range(4))
    assert world.inner.sizes == [4, 1, 1]
    assert labels(found) == ['{"label":"billing"}', '{"label":"other"}', '{"label":"other"}', '{"label":"refund"}']
    assert [event.packed for event in found if isinstance(event, Reply)] == [4, 1, 1, 4]
    assert [event.copy for event in found] == [False, False, False, True], "three calls, three observations"
    assert total(found) == USAGE + ALONE + ALONE
    assert found[1].usage.input_uncached > ALONE.input_uncached
    assert world.models.redone == 2


@pytest.mark.parametrize(
    "whole",
    [
        Reply("I can't help with that.", USAGE, FinishReason.DECLINED),
        Reply("no JSON", USAGE),
        Failure(FailureKind.INVALID, "invalid_request_error", usage=USAGE),
    ],
)
async def test_a_pack_that_can_not_be_answered_as_such_is_answered_job_by_job(whole: Reply | Failure) -> None:
    """One text that a filter refuses, a schema that an endpoint does not take: no neighbour fails by it."""
    world = World(lambda _: whole)
    found = await world.all(range(4))
    assert world.inner.sizes == [4, 1, 1, 1, 1]
    assert labels(found) == ['{"label":"other"}'] * 4
    assert total(found) == USAGE + ALONE + ALONE + ALONE + ALONE


async def test_an_endpoint_that_takes_no_packed_call_is_not_asked_for_another_soon() -> None:
    """Each would be paid for in time at least."""
    world = World(lambda _: Failure(FailureKind.INVALID, "invalid_request_error"))
    for number in range(3):
        await world.all(range(4 * number, 4 * number + 4))
    await world.all(range(12, 16))
    assert world.inner.sizes == [*[4, 1, 1, 1, 1] * 3, 1, 1, 1, 1]
    world.clock.time += 301
    await world.all(range(16, 20), deadline=NOW + 600)
    assert world.inner.sizes[19] == 4


async def test_a_packed_call_that_fails_is_each_jobs_own_failure_and_their_last_tries_go_alone() -> None:
    """With its share of what it cost; the pool is told that these are second tries, and no text fails its neighbours
    for good.
    """
    answers = [Failure(FailureKind.TRANSIENT, "http_500", usage=USAGE)] * 2
    world = World(lambda call: answers.pop() if answers else good(call))
    found = await world.all(range(4))
    assert labels(found) == ["http_500"] * 4
    assert total(found) == USAGE
    assert world.alike == [("packed job-0", ["job-0", "job-1", "job-2", "job-3"])]
    again = await world.all(range(4))
    assert labels(again) == ["http_500"] * 4
    assert world.alike[1] == ("job-0", ["job-0", "job-1", "job-2", "job-3"])
    third = await world.all(range(4))
    assert world.inner.sizes == [4, 4, 1, 1, 1, 1]
    assert labels(third) == ['{"label":"other"}'] * 4
    await world.all(range(4))
    assert world.inner.sizes[6:] == [4]


async def test_packs_that_time_out_again_and_again_are_made_no_more_for_a_while() -> None:
    """Perhaps so many answers take longer than the model's own time; a rung must not fail for that."""
    world = World(lambda _: Failure(FailureKind.TRANSIENT, "timeout"))
    for number in range(3):
        await world.all(range(4 * number, 4 * number + 4))
    await world.all(range(12, 16))
    assert world.inner.sizes == [4, 4, 4, 1, 1, 1, 1]


def test_the_line_knows_each_job_of_a_pack_that_failed() -> None:
    """Their next calls are second tries, held to the retry budget and kept from the endpoint that failed them."""
    line = Line(Permits([Allowance(Limits(), NOW)], NOW), core.HandClock(NOW))
    line.note("packed a", 0, failed=True)
    line.alike("packed a", ["a", "b"])
    assert [line.failed_at(job) for job in ("a", "b", "packed a", "c")] == [{0}, {0}, None, None]
    assert line.permits.retries_due == 2
    line.note("a", 0, failed=False)
    line.alike("a", ["a", "b"])
    assert line.failed_at("b") is None
    assert line.permits.retries_due == 0


async def test_an_overloaded_endpoint_is_asked_again_for_all_at_once() -> None:
    """It wants fewer calls, not more; the retry is one to the pool, whoever is in it."""
    answers = [Failure(FailureKind.OVERLOADED, "http_429", retry_after=2.0)]
    world = World(lambda call: answers.pop() if answers else good(call))
    found = await world.all(range(4))
    assert all(isinstance(event, Failure) and event.retry_after == 2.0 and event.packed == 4 for event in found)
    assert [event.copy for event in found] == [False, True, True, True], "one of them stands for the call"
    again = await world.all([9, 8, 2, 3])
    assert world.inner.sizes == [4, 4]
    assert world.inner.calls[1].job_id == "job-2"
    assert total(again) == USAGE
    assert world.alike[1] == ("job-2", ["job-9", "job-8", "job-2", "job-3"])


async def test_a_job_that_leaves_before_its_pack_goes_out_is_not_in_it() -> None:
    """And when nobody is left nothing goes out."""
    world = World(wait="10s")
    first = world.ask(0)
    others = [world.ask(number) for number in (1, 2)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    found = await asyncio.gather(*others, *[world.ask(number) for number in (3, 4)])
    assert world.inner.sizes == [4]
    assert labels(found) == ['{"label":"login"}', '{"label":"billing"}'] * 2
    lone = world.ask(5)
    await asyncio.sleep(0)
    lone.cancel()
    await asyncio.gather(lone, return_exceptions=True)
    assert len(world.inner.calls) == 1
    assert "0 open" in repr(world.models)


async def test_what_a_job_that_leaves_would_have_paid_falls_to_those_who_stay() -> None:
    """The ledger holds all that was metered; the call goes on for them."""
    world = World()
    world.inner.open.clear()
    asked = [world.ask(number) for number in range(4)]
    await world.inner.came.wait()
    asked[1].cancel()
    await asyncio.gather(asked[1], return_exceptions=True)
    world.inner.open.set()
    found = await asyncio.gather(*[asked[number] for number in (0, 2, 3)])
    assert total(found) == USAGE
    assert labels(found) == ['{"label":"billing"}', '{"label":"billing"}', '{"label":"login"}']


async def test_nobody_pays_more_of_a_pack_than_a_call_of_its_own_could_cost_whoever_leaves() -> None:
    """Then each pays its own share, to the token as if all had stayed; theirs who left is lost as their calls are."""
    longest = 50  # tokens of an answer
    whole = Usage(input_uncached=4_000, output_text=4 * longest)
    everybody = await World(lambda call: replace(good(call), usage=whole)).all(range(4))
    world = World(lambda call: replace(good(call), usage=whole))
    world.inner.open.clear()
    asked = [world.ask(number) for number in range(4)]
    await world.inner.came.wait()
    for number in (0, 1, 2):
        asked[number].cancel()
    await asyncio.gather(*asked[:3], return_exceptions=True)
    world.inner.open.set()
    last = await asked[3]
    call, price = world.inner.calls[0], world.plan.prices["cheap"]
    alone = world.plan.prompt.build(world.plan.prompt.read(core.job("text-3")), (), 100_000)
    assert isinstance(alone, tuple)
    assert ledger.cost(last.usage, price) <= world.plan.worst_cost("cheap", alone[0]) // 2
    assert last.usage == everybody[3].usage
    assert call.model.params.max_tokens == 4 * longest


async def test_a_call_that_nobody_waits_for_is_given_up() -> None:
    """As one of a lone job would be."""
    given_up = asyncio.Event()

    class Hangs(Waits):
        async def call(self, call: Call) -> Reply | Failure:
            try:
                return await super().call(call)
            except asyncio.CancelledError:
                given_up.set()
                raise

    world = World()
    hangs = Hangs(good)
    hangs.open.clear()
    world.models = PackedCalls(hangs, {"triage": world.plan.task}, core.Letters(), world.clock)
    asked = [world.ask(number) for number in range(4)]
    await hangs.came.wait()
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await asyncio.wait_for(given_up.wait(), 5)


async def test_a_bug_is_raised_where_each_job_waits() -> None:
    """It must stop the worker, not vanish in a task of nobody's."""

    def broken(_: Call) -> Reply:
        raise Bug("no such endpoint")

    world = World(broken)
    found = await asyncio.gather(*[world.ask(number) for number in range(4)], return_exceptions=True)
    assert [type(one) for one in found] == [Bug] * 4


async def test_a_job_short_of_time_and_a_task_without_packing_wait_for_nobody() -> None:
    """They go at once, alone."""
    world = World(wait="10s")
    await world.all(range(4), deadline=NOW + 10)
    assert world.inner.sizes == [1] * 4
    other = replace(world.inner.calls[0], request=replace(world.inner.calls[0].request, schema_name="another"))
    await world.models.call(other)
    assert world.inner.calls[-1] is other


async def test_closing_leaves_nobody_waiting() -> None:
    """Whoever gathers goes alone."""
    world = World(wait="10s")
    asked = [world.ask(number) for number in range(3)]
    await asyncio.sleep(0)
    await world.models.close()
    assert labels(await asyncio.gather(*asked)) == ['{"label":"other"}'] * 3
