"""The cascade when things go wrong: what each failure, wait and limit leads to."""

from __future__ import annotations

import pytest
from tests.support.core import CALM, by_model, climb, down, job, plan, reply, resumed

from sluiceway.core.call import FailureKind
from sluiceway.core.cascade import MAX_STEPS, Cascade, Conditions, Finish, Role, Wait, Woke
from sluiceway.core.health import Health
from sluiceway.core.outcome import Escalation, RefusalReason, Result, Review, ReviewReason
from sluiceway.core.trail import Attempt, EscalationReason, Routed, Waited


def test_a_transport_failure_is_tried_again_then_escalated() -> None:
    """Three tries with growing waits, then `failed`."""
    done = climb(plan(), job(), by_model(cheap=down()), coin=1.0)
    assert isinstance(done.record, Escalation)
    assert (done.record.reason, len(done.calls)) == (EscalationReason.FAILED, 3)
    assert [step.until - step.at for step in done.record.trail.steps if isinstance(step, Waited)] == [0.5, 1.0]
    assert [one.failure for one in done.record.trail.attempts] == ["transient: http_503"] * 3


def test_an_invalid_call_is_not_repeated() -> None:
    """The same call would fail again."""
    done = climb(plan(), job(), by_model(cheap=down(FailureKind.INVALID, "http_400")))
    assert isinstance(done.record, Escalation)
    assert len(done.calls) == 1


def test_the_tiers_other_endpoints_are_tried_in_turn() -> None:
    """Each gets its tries before the rung counts as failed."""
    two = [{"base_url": "https://a.test"}, {"base_url": "https://b.test"}]
    made = plan(
        {"retries": {"tries": 2}},
        {"cheap": {"provider": "openai", "model": "m", "params": {"max_tokens": 9}, "endpoints": two}},
    )
    done = climb(made, job(), by_model(cheap=down()))
    assert [call.endpoint for call in done.calls] == [0, 0, 1, 1]
    second = climb(made, job(), by_model(cheap=lambda call: reply() if call.endpoint else down()))
    assert isinstance(second.record, Result)


def test_another_model_of_the_tier_stands_in() -> None:
    """That is no failover, and does not count towards `failed_share`."""
    made = plan(
        {"ladder": ["cheap", "twin", "frontier"], "on_failure": "wait"},
        {"twin": {"provider": "openai", "model": "m", "tier": "small", "params": {"max_tokens": 9}}},
    )
    done = climb(made, job(), by_model(cheap=down(), twin=reply()))
    assert isinstance(done.record, Result)
    assert done.record.model == "twin"


@pytest.mark.parametrize(("asked", "waited"), [(5.0, 5.0), (0.01, 0.5), (10**9, 119.0)])
def test_retry_after_is_honoured_within_the_deadline(asked: float, waited: float) -> None:
    """Never sooner than the endpoint says, never later than the job may wait."""
    made = plan({"on_failure": "wait"})
    done = climb(made, job(), by_model(cheap=down(FailureKind.OVERLOADED, "http_429", retry_after=asked)), coin=1.0)
    first = next(step for step in done.record.trail.steps if isinstance(step, Waited))
    assert first.until - first.at == pytest.approx(waited)


def test_on_failure_review_asks_a_person_at_once() -> None:
    """A task may rather wait for a person than for a model."""
    done = climb(plan({"on_failure": "review"}), job(), by_model(cheap=down()))
    assert isinstance(done.record, Review)
    assert done.record.reason is ReviewReason.FAILED


@pytest.mark.parametrize("conditions", [CALM, Conditions({}, may_fail=False)], ids=["wait", "over the share"])
def test_a_job_that_may_not_escalate_waits_to_its_deadline(conditions: Conditions) -> None:
    """Then a person gets it. `on_failure: wait`, or past the tenth of a minute's jobs."""
    task = {"on_failure": "wait"} if conditions is CALM else {}
    done = climb(plan({**task, "deadline": "60s"}), job(), by_model(cheap=down()), conditions=conditions)
    assert isinstance(done.record, Review)
    assert (done.record.reason, done.ended) == (ReviewReason.DEADLINE, 1060.0)
    assert len(done.calls) + len(done.waits) <= MAX_STEPS


def test_the_reference_keeps_trying_until_the_deadline() -> None:
    """A person then gets the cheap answer with it."""
    first = climb(plan(), job(), by_model(cheap=reply(p=0.3)))
    done = resumed(first, by_model(frontier=down()))
    assert isinstance(done.record, Review)
    assert done.record.reason is ReviewReason.DEADLINE
    assert done.record.candidates[0].model == "cheap"
    assert done.ended <= 1000 + 120 + 1


def test_hung_cheap_calls_leave_the_reference_its_time() -> None:
    """A rung is not tried again into the time that the reference needs for one call."""
    done = climb(plan(), job(), by_model(cheap=down(detail="timeout")), seconds=30.0)
    assert isinstance(done.record, Escalation)
    assert done.record.reason is EscalationReason.FAILED
    assert done.record.trail.remaining >= 28.0


def test_the_trail_keeps_the_conditions_that_may_have_turned_a_decision() -> None:
    """Start, reply and wake each with theirs; nothing where nothing was unusual."""
    calm = climb(plan(), job(), by_model(cheap=reply(p=0.1)))
    routed, attempt = calm.record.trail.steps
    assert isinstance(routed, Routed)
    assert not {"out_until", "may_fail", "day_left_picousd"} & set(routed.facts)
    assert isinstance(attempt, Attempt)
    assert attempt.conditions is None
    seen = Conditions({"cheap": Health(p95=2.0, out_until=1002.0)}, day_left=10**12, may_fail=False)
    waited = climb(plan(), job(), by_model(cheap=reply()), conditions=seen)
    routed, wait, attempt = waited.record.trail.steps
    assert isinstance(routed, Routed)
    assert isinstance(wait, Waited)
    assert isinstance(attempt, Attempt)
    budget = {"day_left_picousd": 10**12, "may_fail": False}
    assert routed.facts.items() >= {"p95": {"cheap": 2.0}, "out_until": {"cheap": 1002.0}, **budget}.items()
    assert (wait.at, wait.until, wait.ended) == (1000.0, 1002.0, 1002.0)
    assert wait.conditions == attempt.conditions == budget


def test_steps_are_counted_rung_by_rung() -> None:
    """A rung that used up its steps counts as failed; the next one has its own."""
    four = [{"base_url": f"https://{name}.test"} for name in "abcd"]
    wide = {"provider": "openai", "model": "m", "params": {"max_tokens": 9}, "tier": "small", "endpoints": four}
    task = {"ladder": ["cheap", "mid", "frontier"], "retries": {"tries": 10, "longest_wait": "1s"}, "deadline": "2h"}
    made = plan(task, {"cheap": wide, "mid": wide})
    done = climb(made, job(), by_model(cheap=down(), mid=down()), seconds=0.1)
    assert isinstance(done.record, Escalation)
    assert done.record.reason is EscalationReason.FAILED
    for name in ("cheap", "mid"):
        assert 30 <= done.models.count(name) <= MAX_STEPS
    assert len(done.calls) + len(done.waits) <= 2 * MAX_STEPS


def test_waiting_uses_up_steps_as_well() -> None:
    """A rung that stays down is waited for a bounded number of times."""
    task = {"on_failure": "wait", "deadline": "7d", "retries": {"first_wait": "1ms", "longest_wait": "1ms"}}
    cascade = Cascade(plan(task), job(), Role.JOBS, lambda _purpose: 0.5)
    now, left = 0.0, []
    ask = cascade.start(now, Conditions({"cheap": Health(out_until=1.0)}))
    while isinstance(ask, Wait):
        left.append(cascade._fuel)
        now = ask.until
        ask = cascade.receive(Woke(), now, Conditions({"cheap": Health(out_until=now + 1.0)}))
    assert isinstance(ask, Finish)
    assert left == list(range(MAX_STEPS - 1, MAX_STEPS - 1 - len(left), -1))


def test_a_rung_that_is_down_is_not_called() -> None:
    """Its health sends the job on like a failure of its own."""
    out = Conditions({"cheap": Health(out_until=2000.0)})
    done = climb(plan(), job(), by_model(), conditions=out)
    assert isinstance(done.record, Escalation)
    assert (done.record.reason, done.calls) == (EscalationReason.FAILED, [])


def test_a_job_the_rung_can_not_hold_climbs() -> None:
    """With trim: none the cheap rung is left out, and the trail says why."""
    made = plan({"trim": "none", "ladder": [{"model": "cheap", "input_tokens": 700}, "frontier"]})
    done = climb(made, job("x" * 900), by_model())
    assert isinstance(done.record, Escalation)
    assert done.record.reason is EscalationReason.ROUTED
    assert "context window" in str(done.record.detail)


def test_the_deadline_bounds_each_call() -> None:
    """A call has at least its model's time-out, and never more than what is left."""
    done = climb(plan({"deadline": "5s"}), job(), by_model(cheap=reply()))
    assert done.calls[0].deadline == 1005.0
    assert 1030.0 <= climb(plan(), job(), by_model(cheap=reply())).calls[0].deadline <= 1120.0


def test_no_call_lasts_beyond_the_jobs_expires_at() -> None:
    """An answer after it is wanted by nobody; a job that never expires has its task's time."""
    assert climb(plan(), job(expires_at=1005), by_model(cheap=reply())).calls[0].deadline == 1005.0
    late = climb(plan(), job(expires_at=9999), by_model(cheap=reply())).calls[0].deadline
    assert late == climb(plan(), job(), by_model(cheap=reply())).calls[0].deadline


def test_a_job_that_expired_during_a_call_is_not_called_for_again() -> None:
    """Neither at the next rung, nor by another try, nor for another vote; what came before stands in its trail."""
    mid = {"mid": {"provider": "openai", "model": "gpt-mid", "tier": "mid", "params": {"max_tokens": 50}}}
    three = plan({"ladder": ["cheap", "mid", "frontier"]}, mid)
    votes = plan(
        {"gate": {"score": "votes", "threshold": 0.5, "votes": 5}, "ladder": ["cheap", "mid", "frontier"]}, mid
    )
    for made, answer in ((three, reply(p=0.3)), (three, down()), (votes, reply(p=None))):
        done = climb(made, job(expires_at=1005), by_model(cheap=answer), seconds=20.0)
        assert isinstance(done.record, Result)
        assert (done.record.reason, done.models) == (RefusalReason.EXPIRED, ["cheap"])
        assert len(done.record.trail.attempts) == 1


def test_a_job_that_expires_soon_is_tried_again_in_the_first_half_of_its_time() -> None:
    """The rest is the reference's, whose time-out may be longer than all the job has."""
    done = climb(plan({"retries": {"tries": 9}}), job(expires_at=1010), by_model(cheap=down()))
    assert len(done.calls) > 1
    assert done.ended <= 1006.0
