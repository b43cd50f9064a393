"""Money on real sockets: what the fake server metered is what the trails say, whatever was tried or shared."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.support import core
from tests.support.fake_models import FakeAnswer, FakeFault, FakeModels, FakeRequest
from tests.support.model_calls import CLOCK

from sluiceway.core import ledger
from sluiceway.core import outcome as outcomes
from sluiceway.core.call import CACHED, Usage
from sluiceway.core.catalog import Price
from sluiceway.core.outcome import Escalation, Result
from sluiceway.core.policy import Policy
from sluiceway.core.sharing import Sharing
from sluiceway.models import tokens
from sluiceway.models.pool import Pool
from sluiceway.models.sharing import SharedCalls
from sluiceway.runner import Runner
from sluiceway.telemetry.metrics import Metrics


def policy_on(url: str, **task: Any) -> Policy:
    models = {
        "cheap": {**core.MODELS["cheap"], "base_url": f"{url}/v1"},
        "frontier": {**core.MODELS["frontier"], "base_url": url},
    }
    quick = {"retries": {"tries": 3, "first_wait": "1ms", "longest_wait": "2ms"}}
    return core.policy({**quick, **task}, models)


class _Clock:
    now = staticmethod(CLOCK.now)

    async def sleep_until(self, time: float) -> None:
        await asyncio.sleep(max(0.0, time - CLOCK.now()))  # the cascade's own wait, not a barrier


def runner_on(policy: Policy, sharing: Sharing | None = None) -> tuple[Runner, Pool]:
    clock = _Clock()
    pool = Pool.open(policy.models, clock, tokens.default(), environ={"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"})
    models = pool if sharing is None else SharedCalls(pool, sharing, policy.digest, clock)
    encoding = tokens.default()
    return Runner(policy, models, clock=clock, tokens=encoding, meter=core.Counter(), secret=b"s" * 16), pool


def metered_cost(fake: FakeModels, policy: Policy) -> int:
    """What the server's own meter comes to at the policy's prices."""
    prices = {model.model: model.price for model in policy.models.values()}
    total = 0
    for entry in fake.journal.entries:
        price = prices[entry.model]
        if entry.metered is not None and isinstance(price, Price):
            m = entry.metered
            usage = Usage(
                input_uncached=m.input_uncached, input_cache_read=m.input_cache_read, output_text=m.output_text
            )
            total += ledger.cost(usage, price)
    return total


async def test_a_jobs_cost_holds_every_attempt_the_failed_ones_too() -> None:
    """A known complaint: costs that miss failed attempts. A 500, a malformed answer that was billed, the reference."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        if request.model == "gpt-cheap":
            return FakeFault("status", 500) if request.seen == 0 else FakeAnswer(text="no label at all")
        return FakeAnswer(value={"label": "login"})

    async with FakeModels(script) as fake:
        policy = policy_on(fake.url)
        runner, pool = runner_on(policy)
        first = await runner.run(core.job())
        assert isinstance(first, Escalation)
        last = await runner.resume(outcomes.decode(Escalation, outcomes.encode(first)))
        await pool.close()
        assert isinstance(last, Result)
        assert [entry.answered for entry in fake.journal.entries] == ["status", "answer", "answer"]
        assert last.cost_picousd == metered_cost(fake, policy) == runner.spent > 0
        assert len([each for each in last.trail.attempts if each.model == "cheap"]) == 2


async def test_a_kept_answer_costs_nothing_and_each_copys_trail_says_so() -> None:
    """Seventy jobs one after another, ten texts: sixty are answered again, with the score that the first one had."""
    async with FakeModels(lambda _: FakeAnswer(value={"label": "login"})) as fake:
        policy = policy_on(fake.url)
        runner, pool = runner_on(policy, Sharing(cache=60))
        metrics = Metrics()
        records = []
        for number in range(70):
            record = await runner.run(replace(core.job(f"text {number % 10}"), id=f"j{number}"))
            metrics.finished(record, known=0)
            records.append(record)
        await pool.close()
        assert len(fake.journal.entries) == 10
        assert sum(record.trail.cost_picousd for record in records) == metered_cost(fake, policy) == runner.spent > 0
        for first, copy in zip(records, records[10:], strict=False):
            (one,), (other,) = first.trail.attempts, copy.trail.attempts
            assert (other.score, other.answer, other.response_id) == (one.score, one.answer, one.response_id)
            assert (other.endpoint, other.cost_picousd, other.usage) == (CACHED, 0, Usage())
        assert b'sluiceway_kept_answers_total{model="cheap",task="triage"} 60.0' in metrics.text()


async def test_the_copies_of_a_coalesced_call_pay_exactly_what_it_cost() -> None:
    """Seventy jobs, ten texts: ten calls, and seventy trails whose costs sum to the server's meter."""
    async with FakeModels(lambda _: FakeAnswer(value={"label": "login"})) as fake:
        policy = policy_on(fake.url)
        runner, pool = runner_on(policy, Sharing(coalesce=True))
        fake.hold()
        jobs = [replace(core.job(f"text {number % 10}"), id=f"j{number}") for number in range(70)]
        running = [asyncio.create_task(runner.run(job)) for job in jobs]
        await fake.journal.wait_for(lambda entries: len(entries) == 10)
        fake.release()
        records = await asyncio.gather(*running)
        await pool.close()
        assert len(fake.journal.entries) == 10
        assert all(isinstance(record, Result) for record in records)
        assert sum(record.trail.cost_picousd for record in records) == metered_cost(fake, policy) == runner.spent > 0
        assert len({record.job_id for record in records}) == 70
