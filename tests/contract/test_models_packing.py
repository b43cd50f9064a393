"""Packing on real sockets, from the policy to the outcome: the same answers in a tenth of the calls, paid to the token.

The fake model answers each job in a pack as it would alone (tests/support/fake_packed.py), so that what is delivered
with packing can be held against what is delivered without. A real model may answer otherwise beside neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import core
from tests.support.fake_models import FakeFault, FakeModels, labels
from tests.support.fake_packed import jobs_of, packed
from tests.support.fake_scripts import FakeAnswer, FakeRequest, Script, by_model, incapable, malformed
from tests.support.real_model import RealModel
from tests.support.tickets import bank_tickets

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, open_store
from sluiceway.clock import WallClock
from sluiceway.core import ledger
from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Usage
from sluiceway.core.catalog import Clearance, Price
from sluiceway.core.job import Job
from sluiceway.core.outcome import Ending, Escalation, Result
from sluiceway.core.policy import Policy
from sluiceway.core.sharing import Sharing
from sluiceway.policyfile import open_runner
from sluiceway.runner import Runner

KEYS = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
PACKING: dict[str, Any] = {"jobs": 10, "wait": "20ms"}


def policy_on(url: str, **task: Any) -> Policy:
    models = {
        "cheap": {**core.MODELS["cheap"], "base_url": f"{url}/v1"},
        "frontier": {**core.MODELS["frontier"], "base_url": url},
    }
    quick = {"retries": {"tries": 3, "first_wait": "1ms", "longest_wait": "2ms"}}
    return core.policy({"packing": PACKING, **quick, **task}, models)


@asynccontextmanager
async def running(policy: Policy, journal: Journal | None = None) -> AsyncIterator[Runner]:
    runner, pool = open_runner(policy, clock=WallClock(), meter=core.Counter(), environ=KEYS, journal=journal)
    try:
        yield runner
    finally:
        await pool.close()


def tickets(count: int, **facts: Any) -> list[Job]:
    return [
        replace(core.job(text, origin=f"test/jobs/0/{number}", **facts), id=f"j{number}")
        for number, text in enumerate(bank_tickets(count))
    ]


def metered_cost(fake: FakeModels, policy: Policy) -> int:
    """What the server's own meter comes to at the policy's prices."""
    prices = {model.model: model.price for model in policy.models.values()}
    total = 0
    for entry in fake.journal.entries:
        price, m = prices[entry.model], entry.metered
        if m is not None and isinstance(price, Price):
            usage = Usage(
                m.input_uncached, m.input_cache_read, m.input_cache_write_5m, m.input_cache_write_1h, m.output_text
            )
            total += ledger.cost(usage, price)
    return total


async def climbed(script: Script, **task: Any) -> tuple[list[Ending], int, int, int]:
    """What 300 tickets come to, both roles; how many calls that took, what the trails say it cost, and the meter."""
    async with FakeModels(script) as fake:
        policy = policy_on(fake.url, **task)
        async with running(policy) as runner:
            first = await asyncio.gather(*[runner.run(job) for job in tickets(300)])
            handed = [outcomes.decode(Escalation, outcomes.encode(one)) for one in first if isinstance(one, Escalation)]
            resumed = iter(await asyncio.gather(*[runner.resume(one) for one in handed]))
            last = [next(resumed) if isinstance(one, Escalation) else one for one in first]
            cost = sum(one.trail.cost_picousd for one in last)
            assert cost == runner.spent
            return last, len(fake.journal.entries), cost, metered_cost(fake, policy)


def said(record: Ending) -> tuple[str, Any, str | None]:
    assert isinstance(record, Result), record
    return record.model or "", record.answer, record.escalated


async def test_packed_jobs_come_to_what_they_come_to_alone_in_a_fraction_of_the_calls_and_the_ledger_is_exact() -> None:
    """Doubtful answers escalate by their own logprobs, missing and malformed ones are asked for alone; the reference
    packs in its own format. Every answer is schema-valid, and the trails' cost is the meter's to the pico-dollar.
    """
    script = by_model({"gpt-cheap": malformed(labels(doubt=0.2), share=0.03, seed=5)}, labels())
    alone, calls, cost, meter = await climbed(script, packing=None)
    assert cost == meter
    together, packs, cost, meter = await climbed(packed(script, missing=0.05, malformed=0.05))
    assert cost == meter > 0
    assert [said(record) for record in together] == [said(record) for record in alone]
    assert {said(record)[0] for record in together} == {"cheap", "frontier"}
    assert packs < calls / 3
    attempts = [attempt for record in together for attempt in record.trail.attempts]
    assert {attempt.packed for attempt in attempts if attempt.packed} <= set(range(2, 11))
    share = sum(attempt.packed is not None for attempt in attempts) / len(attempts)
    assert 0.8 < share < 1
    trail = outcomes.decode(Result, outcomes.encode(together[0])).trail
    assert trail.attempts == together[0].trail.attempts


async def test_tenants_and_clearances_never_meet_in_a_call() -> None:
    """Read from what the server was sent; restricted jobs are each alone, and coalesced copies share a share."""
    met: list[set[str]] = []

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        assert request.max_tokens == 50 * max(1, len(jobs_of(request)))
        met.append({job.text.rpartition("#")[2] for job in jobs_of(request).values()} or {request.text})
        return packed(labels())(request)

    async with FakeModels(script) as fake:
        policy = replace(policy_on(fake.url, clearance="public"), sharing=Sharing(coalesce=True))
        restricted = policy.models["cheap"].model_copy(update={"clearance": Clearance.RESTRICTED})
        policy = replace(policy, models={**policy.models, "cheap": restricted})
        jobs = []
        for tenant in ("a", "b"):
            for clearance in ("public", "internal", "restricted"):
                for number in range(12):
                    name = f"{tenant}-{clearance}"
                    facts = {"tenant": tenant, "clearance": clearance}
                    job = core.job(f"ticket {number % 6} #{name}", f"test/jobs/0/{len(jobs)}", **facts)
                    jobs.append(replace(job, id=f"j{len(jobs)}"))
        async with running(policy) as runner:
            records = await asyncio.gather(*[runner.run(job) for job in jobs])
            assert sum(record.trail.cost_picousd for record in records) == metered_cost(fake, policy) == runner.spent
    assert all(len(names) == 1 for names in met)
    # Six texts each: four packs, and twelve restricted ones alone.
    assert len(met) == 16


async def test_a_burst_of_refusals_and_errors_is_ridden_out_and_paid_for_exactly() -> None:
    """429 for whole packs, a 500 for others, an endpoint that takes no such schema: every job is answered."""
    seen = 0

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        nonlocal seen
        seen += 1
        if jobs_of(request) and seen <= 6:
            return FakeFault("status", (429, 500)[seen % 2])
        return packed(labels())(request)

    answered, _, cost, meter = await climbed(script)
    assert cost == meter > 0
    assert all(isinstance(record, Result) for record in answered)
    plain = incapable(labels(), json_schema=False)

    def takes_no_pack(request: FakeRequest) -> FakeAnswer | FakeFault:
        return plain(request) if jobs_of(request) else labels()(request)

    answered, _, cost, meter = await climbed(takes_no_pack)
    assert cost == meter > 0
    assert all(isinstance(record, Result) for record in answered)


async def test_a_day_budget_is_never_exceeded_by_shares_and_calls_of_their_own() -> None:
    """Each reserves both; where every second answer is missing, refusals come before the limit and not after."""
    async with FakeModels(packed(labels(), missing=0.5)) as fake:
        policy = policy_on(fake.url, budget={"usd_per_day": 0.005})
        async with running(policy) as runner:
            records = await asyncio.gather(*[runner.run(job) for job in tickets(300)])
            spent = sum(record.trail.cost_picousd for record in records)
            assert spent == metered_cost(fake, policy)
            assert 0 < spent <= 0.005 * ledger.PICO
            assert {record.reason.value for record in records if isinstance(record, Result) and record.reason} == {
                "over_budget"
            }


async def test_a_real_model_answers_each_job_of_a_pack_and_its_logprobs_spell_each_part(real_model: RealModel) -> None:
    """SmolLM2 by llama.cpp, held to the packed schema: a label for each, by its own tokens, at its own share."""
    params = {"max_tokens": 30, "temperature": 0, "seed": 1}
    cheap = {"provider": "llama.cpp", "model": real_model.model, "base_url": f"{real_model.url}/v1", "price": "free",
             "params": params, "timeout": "240s", "context_window": 4096}  # fmt: skip
    gate = {"score": "label_logprob", "threshold": 0.0}
    prompt = "You sort what a bank's customers write. " + "Say which of the labels fits best what this one wants. " * 5
    task = {"packing": {**PACKING, "jobs": 5}, "prompt": prompt, "gate": gate, "deadline": "10m"}
    policy = core.policy(task, {"cheap": cheap})
    async with running(policy) as runner:
        records = await asyncio.gather(*[runner.run(job) for job in tickets(5)])
    attempts = [record.trail.attempts[0] for record in records]
    assert {attempt.packed for attempt in attempts} == {5}
    assert len({attempt.response_id for attempt in attempts}) == 1
    for record, attempt in zip(records, attempts, strict=True):
        assert isinstance(record, Result)
        assert record.answer["label"] in core.LABELS
        assert attempt.score is not None
        assert attempt.score.value is not None
        assert 0 < attempt.score.value <= 1
    assert max(attempt.usage.input for attempt in attempts) < 200


async def test_a_restart_pays_for_no_job_of_a_pack_twice(tmp_path: Path) -> None:
    """Each job's own call is the key of what the store keeps, with its share and the mark of its pack."""
    clock = WallClock()
    async with FakeModels(packed(labels(), missing=0.1)) as fake:
        policy = policy_on(fake.url)
        trails = []
        for _ in range(2):
            with open_store(tmp_path, bounds=Bounds(), now=clock.now, instance="one") as store:
                async with running(policy, Journal(store)) as runner:
                    records = await asyncio.gather(*[runner.run(job) for job in tickets(40)])
            trails.append([(one.cost_picousd, one.packed) for record in records for one in record.trail.attempts])
            calls = len(fake.journal.entries)
        assert trails[0] == trails[1]
        assert calls == len(fake.journal.entries) < 20
        assert sum(cost for cost, _ in trails[1]) == metered_cost(fake, policy)
