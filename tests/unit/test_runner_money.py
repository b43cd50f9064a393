"""The runner and money: what a day's budget counts, and that it holds over jobs in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.core import USAGE, Scripted, down, job, policy, reply, runner
from tests.support.stores import a_store

from sluiceway.archive.journal import Journal
from sluiceway.core import ledger
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.errors import Bug
from sluiceway.core.outcome import RefusalReason, Result

LONG = "I was billed twice. " * 3_000  # read, and decided on, beside the loop


@pytest.mark.parametrize("stored", [False, True], ids=["alone", "with the store"])
@pytest.mark.parametrize("text", ["I was billed twice", LONG], ids=["short", "long"])
async def test_the_days_budget_holds_over_jobs_in_flight(text: str, stored: bool, tmp_path: Path) -> None:
    """Calls reserve their worst cost, so that a hundred at once can't pass the line together, whatever is awaited."""
    probe, _ = runner(policy(), models := Scripted(lambda _call: reply()))
    await probe.run(job(text))
    worst = probe.plans["triage"].worst_cost("cheap", models.calls[0].request)
    store = a_store(tmp_path) if stored else None
    bounded = policy({"budget": {"usd_per_day": 10 * worst / 10**12}})
    made, _ = runner(bounded, slow := _Slow(), journal=None if store is None else Journal(store))
    tasks = [asyncio.ensure_future(made.run(job(text, id=f"j{n}", origin=f"o/{n}"))) for n in range(100)]
    at_most = 0
    while len(slow.waiting) + sum([task.done() for task in tasks]) < 100:  # each is refused, or its call is out
        await asyncio.sleep(0.001)
        at_most = max(at_most, made.days["triage"].reserved)
    slow.open.set()
    records = await asyncio.gather(*tasks)
    if store is not None:
        store.close()
    refused = [record for record in records if isinstance(record, Result) and record.reason is not None]
    assert {record.reason for record in refused} == {RefusalReason.OVER_BUDGET}
    assert 5 < len(slow.waiting) <= 10
    assert at_most <= 10 * worst
    assert 0 < made.spent <= 10 * worst
    assert made.days["triage"].reserved == 0
    for record in refused:
        left = record.trail.steps[0].facts["day_left_picousd"]  # type: ignore[union-attr]  # a route is the first step
        assert left < worst, "the trail says what was left when it was refused"


class _Slow(Scripted):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(lambda _call: reply())
        self.open, self.came = asyncio.Event(), asyncio.Event()
        self.waiting: list[Call] = []

    async def call(self, call: Call) -> Reply | Failure:
        self.waiting.append(call)
        self.came.set()
        await self.open.wait()
        return await super().call(call)


async def test_a_bug_in_a_call_leaves_no_reservation() -> None:
    """The worker stops, and what it held of the day is free again."""

    def broken(_call: Call) -> Reply:
        raise Bug("a programming error")

    made, _ = runner(policy({"budget": {"usd_per_day": 1}}), Scripted(broken))
    before = made._days["triage"].left(1000.0)
    with pytest.raises(Bug):
        await made.run(job())
    assert made._days["triage"].left(1000.0) == before


LOST = [down(FailureKind.TRANSIENT, detail) for detail in ("timeout", "body_cut", "reset", "not_json")]
REFUSED = [
    down(FailureKind.TRANSIENT, "http_500"),
    down(FailureKind.TRANSIENT, "connect"),
    down(FailureKind.OVERLOADED, "http_429"),
    down(FailureKind.TRANSIENT, "timeout", copy=True),
    down(FailureKind.TRANSIENT, "no_choices", usage=USAGE),
]


@pytest.mark.parametrize(("failure", "lost"), [*[(one, True) for one in LOST], *[(one, False) for one in REFUSED]])
async def test_the_days_budget_counts_a_lost_reply_by_its_worst_cost_and_what_is_spent_only_what_was_metered(
    failure: Failure, lost: bool
) -> None:
    """It may be billed. Nothing is lost of what was never reached, refused, another's call, or metered."""
    models = Scripted(lambda _call: failure)
    bounds = policy({"budget": {"usd_per_day": 1}, "failed_share": 1.0, "retries": {"tries": 2}})
    made, _ = runner(bounds, models)
    record = await made.run(job())
    plan, metered = made.plans["triage"], ledger.cost(failure.usage, made.plans["triage"].prices["cheap"])
    worst = plan.worst_cost("cheap", models.calls[0].request)
    assert len(models.calls) == 2
    assert made.days["triage"].spent == 2 * (worst if lost else metered)
    assert made.spent == record.trail.cost_picousd == 2 * metered
    assert made.days["triage"].reserved == 0


async def test_calls_that_time_out_spend_the_days_budget() -> None:
    """A provider that bills what it never delivered can't be paid more than the day's line."""
    models = Scripted(lambda _call: down(FailureKind.TRANSIENT, "timeout"))
    made, _ = runner(policy({"budget": {"usd_per_day": 2 * 0.00006}, "failed_share": 1.0}), models)
    for n in range(50):
        await made.run(job(id=f"j{n}", origin=f"o/{n}"))
    worst = made.plans["triage"].worst_cost("cheap", models.calls[0].request)
    assert len(models.calls) * worst <= made.days["triage"].limit


async def test_a_call_that_is_cut_off_counts_by_its_worst_cost() -> None:
    """Nobody knows whether it was sent."""
    made, _ = runner(policy({"budget": {"usd_per_day": 1}}), slow := _Slow())
    task = asyncio.ensure_future(made.run(job()))
    await slow.came.wait()
    task.cancel()
    await asyncio.wait([task])
    worst = made.plans["triage"].worst_cost("cheap", slow.waiting[0].request)
    assert (made.days["triage"].spent, made.days["triage"].reserved, made.spent) == (worst, 0, 0)
