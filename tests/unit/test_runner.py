"""The runner: performs what a cascade asks, and keeps what cascades share."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.support.core import USAGE, HandClock, Letters, Scripted, down, job, policy, reply, runner

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Role
from sluiceway.core.coin import Purpose, coin
from sluiceway.core.errors import InputError
from sluiceway.core.leave import Leaving
from sluiceway.core.outcome import Escalation, Result, Retry, Review, ReviewReason
from sluiceway.core.sharing import Sharing
from sluiceway.core.trail import EscalationReason
from sluiceway.models.packing import PackedCalls
from sluiceway.models.sharing import SharedCalls


async def test_a_job_runs_from_bytes_to_result() -> None:
    """One call, one record, one word to the meter."""
    models = Scripted(lambda _call: reply())
    made, meter = runner(policy(), models)
    record = await made.run(job())
    assert isinstance(record, Result)
    assert record.answer == {"label": "billing"}
    assert meter.records == [(record, 0)]
    assert made.spent == record.cost_picousd > 0


async def test_an_escalation_is_resumed_with_its_steps_known() -> None:
    """The meter counts each step in the role that made it."""
    models = Scripted(lambda call: reply(p=0.2) if call.model.name == "cheap" else reply(p=None))
    made, meter = runner(policy(), models)
    first = await made.run(job())
    assert isinstance(first, Escalation)
    last = await made.resume(outcomes.decode(Escalation, outcomes.encode(first)))
    assert isinstance(last, Result)
    assert [known for _, known in meter.records] == [0, len(first.trail.steps)]
    assert made.spent == last.cost_picousd


async def test_a_wait_is_waited_on_the_clock() -> None:
    """And the call comes after it."""
    answers = [down(FailureKind.OVERLOADED, "http_429", retry_after=7.0), reply()]
    clock = HandClock(1000.0)
    made, _ = runner(policy(), Scripted(lambda _call: answers.pop(0), clock, 1.0))
    record = await made.run(job())
    assert isinstance(record, Result)
    assert clock.time == 1000.0 + 1.0 + 7.0 + 1.0


async def test_an_outage_escalates_a_tenth_then_waits_for_a_person() -> None:
    """`failed_share`: past 10% of a minute's jobs the rest wait to their deadline."""
    models = Scripted(lambda _call: down())
    made, _ = runner(policy({"deadline": "30s", "retries": {"tries": 1}}), models, SharedClock())
    records = await asyncio.gather(*(made.run(job(origin=f"o/{number}")) for number in range(100)))
    failed = [record for record in records if isinstance(record, Escalation)]
    reviews = [record for record in records if isinstance(record, Review)]
    assert {record.reason for record in failed} == {EscalationReason.FAILED}
    assert {record.reason for record in reviews} == {ReviewReason.DEADLINE}
    assert 1 <= len(failed) <= 11
    assert len(failed) + len(reviews) == 100


class SharedClock(HandClock):
    """Lets every job that is in flight come to its wait before it goes on."""

    async def sleep_until(self, time: float) -> None:
        await asyncio.sleep(0)
        await super().sleep_until(time)


async def test_a_failover_at_the_start_counts_towards_the_share() -> None:
    """A rung known to be down sends a job on with no call; that is a failover, too."""
    clock = HandClock()
    models = Scripted(lambda _call: down())
    task = {"retries": {"tries": 1}, "deadline": "20s"}
    made, _ = runner(policy(task), models, clock)
    for _ in range(5):
        made._health.observe("cheap", 1.0, failed=True, now=995.0)  # down for ten seconds
    kinds = []
    for number in range(9):
        clock.time = 1000.0  # one minute, whatever was waited
        kinds.append(type(await made.run(job(origin=f"o/{number}"))))
    assert kinds[0] is Escalation
    assert kinds.count(Escalation) == 1


async def test_refused_calls_do_not_take_a_model_down() -> None:
    """Ten poisoned jobs say nothing of the model's health: the next one is called."""
    models = Scripted(lambda _call: down(FailureKind.INVALID, "http_400"))
    made, _ = runner(policy({"failed_share": 1.0}), models)
    for number in range(10):
        await made.run(job(origin=f"o/{number}"))
    assert len(models.calls) == 10


async def test_language_is_told_only_where_a_rule_asks() -> None:
    """Detection costs time."""
    asked: list[str] = []

    def detect(text: str) -> str:
        asked.append(text)
        return "fi"

    models = Scripted(lambda _call: reply())
    made, _ = runner(policy(), models, language=detect)
    await made.run(job())
    assert asked == []
    start = [{"when": "language == fi", "at": "frontier"}]
    ruled, _ = runner(policy({"start": start}), models, language=detect)
    record = await ruled.run(job())
    assert isinstance(record, Escalation)
    assert asked == ["I was billed twice"]
    routed = record.trail.steps[0]
    assert routed.facts["language"] == "fi"  # type: ignore[union-attr]  # a route is the first step


async def test_a_job_that_can_not_be_rendered_is_the_jobs_fault() -> None:
    """InputError, which the worker makes a dead letter; nothing is called."""
    models = Scripted(lambda _call: reply())
    made, _ = runner(policy({"prompt": "{{ 10 // (input.text | length) }} {{ input }}"}), models)
    with pytest.raises(InputError):
        await made.run(job({"other": "x"}))
    assert models.calls == []


def test_coins_are_the_same_again_and_differ_by_purpose() -> None:
    """A replay tosses what the run tossed; no purpose tells of another; the secret decides."""
    origins = [f"c/t/0/{number}" for number in range(2000)]
    tossed = [coin(b"secret", Purpose.SAMPLE, origin) for origin in origins]
    assert tossed == [coin(b"secret", Purpose.SAMPLE, origin) for origin in origins]
    assert tossed != [coin(b"secret", Purpose.JITTER, origin) for origin in origins]
    assert tossed != [coin(b"another", Purpose.SAMPLE, origin) for origin in origins]
    assert all(0.0 <= one < 1.0 for one in tossed)
    assert 0.45 < sum(tossed) / len(tossed) < 0.55


async def test_a_sampled_result_names_its_propensity() -> None:
    """By the coin of its origin, the same each time."""
    made, _ = runner(policy({"review": {"sample": "50%"}}), Scripted(lambda _call: reply(usage=USAGE)))
    records = [await made.run(job(origin=f"o/{number}")) for number in range(40)]
    again = [await made.run(job(origin=f"o/{number}")) for number in range(40)]
    chosen = [isinstance(record, Result) and record.sampled is not None for record in records]
    assert chosen == [isinstance(record, Result) and record.sampled is not None for record in again]
    assert 5 < sum(chosen) < 35
    assert all(record.sampled.propensity == 0.5 for record in records if isinstance(record, Result) and record.sampled)


class HeldClock(HandClock):
    """Whoever sleeps does so until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep, self.woken = asyncio.Event(), asyncio.Event()

    async def sleep_until(self, time: float) -> None:
        self.asleep.set()
        await self.woken.wait()
        await super().sleep_until(time)


async def test_few_jobs_sleep_in_their_worker_and_the_crowd_leaves() -> None:
    """The crowd is counted role by role, and those that sleep are known for what they are: they hold up no work."""
    clock = HeldClock()
    busy, told = down(FailureKind.OVERLOADED, "http_429", retry_after=30.0), 0

    def answer(_call: Call) -> Reply | Failure:
        nonlocal told
        told += 1
        return reply(p=None) if clock.woken.is_set() else busy

    made, _ = runner(policy({"deadline": "10m"}), Scripted(answer), clock, leaving=Leaving((10.0, 60.0), crowd=5))
    roles = [Role.JOBS] * 20 + [Role.ESCALATIONS] * 3
    tasks = [asyncio.ensure_future(made.run(job(origin=f"o/{n}"), role)) for n, role in enumerate(roles)]
    gone = [await task for task in tasks[5:20]]
    assert {type(record) for record in gone} == {Retry}
    assert {record.delay for record in gone if isinstance(record, Retry)} == {10.0}
    assert made.waiting == {Role.JOBS: 5, Role.ESCALATIONS: 3}
    assert told == 23
    clock.woken.set()
    assert not [record for record in await asyncio.gather(*tasks[:5], *tasks[20:]) if isinstance(record, Retry)]
    assert set(made.waiting.values()) == {0}


async def test_a_job_that_is_cancelled_in_its_sleep_waits_no_more() -> None:
    """A worker that stops counts nobody on."""
    clock = HeldClock()
    made, _ = runner(policy(), Scripted(lambda _call: down()), clock)
    task = asyncio.ensure_future(made.run(job()))
    await clock.asleep.wait()
    assert made.waiting[Role.JOBS] == 1
    task.cancel()
    await asyncio.wait([task])
    assert made.waiting[Role.JOBS] == 0


async def test_a_job_that_comes_back_is_no_new_job_of_the_minute() -> None:
    """An outage of an hour must not let more jobs past `failed_share` than came."""
    busy = down(FailureKind.OVERLOADED, "http_429", retry_after=90.0)
    patient = policy({"deadline": "10m", "on_failure": "wait"})
    made, meter = runner(patient, Scripted(lambda _call: busy), leaving=Leaving((60.0,), 5))
    record = await made.run(job())
    counted = made._shares["triage"]._jobs
    assert counted.count == 1
    for _ in range(3):
        assert isinstance(record, Retry)
        record = await made.resume(record)
    assert counted.count == 0, "counted once, in the minute in which it was new, which is over"
    assert meter.records[-1][1] > 0, "its earlier attempts are known"


async def test_an_escalated_job_is_no_new_job_of_the_minute() -> None:
    """The worker that took it resumes it too: with each job counted again, failed ones would make room for more."""
    made, _ = runner(policy({"start": [{"when": "chars >= 1", "at": "frontier"}]}), Scripted(lambda _call: reply()))
    handed = await made.run(job())
    assert isinstance(handed, Escalation)
    assert isinstance(await made.resume(handed), Result)
    assert made._shares["triage"]._jobs.count == 1


async def test_a_long_text_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours are not kept waiting while the tokens of a megabyte are counted."""
    read: dict[int, bool] = {}
    encode = Letters.encode

    def noted(self: Letters, text: str) -> list[int]:
        read[len(text)] = threading.current_thread() is threading.main_thread()
        return encode(self, text)

    monkeypatch.setattr(Letters, "encode", noted)
    made, _ = runner(policy(), Scripted(lambda _call: reply()))
    for length in (100, 900_000):
        record = await made.run(job("x" * length))
        assert isinstance(record, Result)
    assert read[100] is True
    assert read[900_000] is False


@pytest.mark.parametrize("prompt", ["Sort it.", "Sort this: {{ input }}"])
async def test_all_that_a_long_job_asks_for_is_counted_beside_the_loop(
    prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text as a template lays it out, and its passages, anew for each model that it climbs to."""
    in_the_loop: list[int] = []
    counted: list[int] = []
    encode = Letters.encode

    def noted(self: Letters, text: str) -> list[int]:
        counted.append(len(text))
        if len(text) > 20_000 and threading.current_thread() is threading.main_thread():
            in_the_loop.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Letters, "encode", noted)
    made, _ = runner(policy({"prompt": prompt}), Scripted(lambda _call: down()))
    await made.run(job("x" * 60_000))
    wide = job("short", context=[{"id": "p", "text": "y" * 60_000}])
    await made.run(wide)
    assert max(counted) >= 60_000
    assert counted.count(60_000) >= 2
    assert not in_the_loop


class _FirstFails(Scripted):
    """The first call is reset once it is told to; any later one is answered."""

    def __init__(self) -> None:
        super().__init__(lambda _call: reply())
        self.open, self.came = asyncio.Event(), asyncio.Event()

    async def call(self, call: Call) -> Reply | Failure:
        first = not self.calls
        answer = await super().call(call)
        self.came.set()
        if first:
            await self.open.wait()
            return down(FailureKind.TRANSIENT, "reset", seconds=0.1)
        return answer


@pytest.mark.parametrize("kind", ["coalesced", "packed"])
async def test_one_failed_call_is_one_failure_to_a_models_health_however_many_jobs_shared_it(kind: str) -> None:
    """Five jobs of one reset must not take the model out for everybody: that takes five calls."""
    task = {"packing": {"jobs": 10, "wait": 0.01}} if kind == "packed" else {}
    bounds, inner, clock = policy(task), _FirstFails(), HeldClock()
    coalesced = SharedCalls(inner, Sharing(coalesce=True), "digest", clock)
    models = PackedCalls(inner, bounds.tasks, Letters(), clock) if kind == "packed" else coalesced
    made, _ = runner(bounds, models, clock)
    texts = [f"text {n}" if kind == "packed" else "the same" for n in range(10)]
    tasks = [asyncio.ensure_future(made.run(job(text, id=f"j{n}", origin=f"o/{n}"))) for n, text in enumerate(texts)]
    await inner.came.wait()
    inner.open.set()
    await clock.asleep.wait()
    for _ in range(50):  # turns, in which each of the ten comes to its wait
        await asyncio.sleep(0)
    assert (made.waiting[Role.JOBS], len(inner.calls)) == (10, 1)
    assert made._health.view()["cheap"].out_until == 0.0
    assert made._health._models["cheap"].failures == 1
    clock.woken.set()
    assert {type(record) for record in await asyncio.gather(*tasks)} == {Result}
