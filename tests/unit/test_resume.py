"""Coming back from a retry topic: the same rung, or the next one where another policy forbids it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.core import CALM, Climb, climb, down, job, plan, reply

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Cascade, Finish, Left, Role, Wait
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import Escalation, RefusalReason, Result, Retry, Review, ReviewReason
from sluiceway.core.plan import Plan
from sluiceway.core.trail import EscalationReason, Routed, Trail, Waited
from sluiceway.telemetry.metrics import Metrics

MID = {"provider": "openai", "model": "gpt-mid", "tier": "mid", "params": {"max_tokens": 80}}
TOP = {"provider": "anthropic", "model": "claude-top", "tier": "frontier", "params": {"max_tokens": 80}}
MODELS: dict[str, Any] = {"mid": MID, "top": TOP}


def made(*ladder: str, **task: Any) -> Plan:
    return plan({"ladder": list(ladder), **task}, MODELS)


THREE = made("cheap", "mid", "frontier", deadline="10m")


def busy(after: float = 90.0) -> Failure:
    return down(FailureKind.OVERLOADED, "http_429", retry_after=after)


def left(plan: Plan, *answers: Reply | Failure, role: Role = Role.JOBS, resumed: Any = None, **facts: Any) -> Retry:
    """A job that got these answers, a second each, was told to wait, and leaves for a minute. It begins at 1000."""
    cascade = Cascade(plan, job(**facts), role, lambda _purpose: 0.5, resumed)
    now, told = 1000.0, list(answers)
    ask = cascade.start(now, CALM)
    while isinstance(ask, Call):
        now += 1.0
        ask = cascade.receive(told.pop(0), now, CALM)
    assert isinstance(ask, Wait)
    assert not told
    gone = cascade.receive(Left(60.0), now, CALM)
    assert isinstance(gone, Finish)
    assert isinstance(gone.record, Retry)
    return outcomes.decode(Retry, outcomes.encode(gone.record))


def back(plan: Plan, retry: Retry, now: float = 1070.0, **replies: Reply | Failure) -> Climb:
    return climb(plan, job(), lambda call: replies[call.model.name], retry.role, resumed=retry, now=now)


def test_a_retry_says_where_the_job_goes_on() -> None:
    """Whose it is, at which rung it waits, how long still, and what is left of its deadline."""
    retry = left(THREE, reply(p=0.1), busy())
    assert (retry.job_id, retry.round, retry.task, retry.role) == ("j1", 0, "triage", Role.JOBS)
    assert (retry.rung, retry.endpoint, retry.tries, retry.waits) == ("mid", 0, 1, 1)
    assert (retry.delay, retry.left, retry.trail.remaining) == (60.0, 30.0, 600.0 - 2.0 - 60.0)
    assert retry.trail.taken_at == 1000.0
    assert retry.escalated is None


def test_the_paid_rung_is_not_paid_again_and_the_wait_is_kept() -> None:
    """Back before its wait is over it sleeps the rest of it; then the call it waited for is made, and no other."""
    retry = left(THREE, reply(p=0.1), busy())
    done = back(THREE, retry, mid=reply(label="login"))
    assert isinstance(done.record, Result)
    assert done.models == ["mid"]
    assert [wait.until for wait in done.waits] == [1070.0 + 30.0]
    costs = [attempt.cost_picousd for attempt in done.record.trail.attempts]
    assert [attempt.model for attempt in done.record.trail.attempts] == ["cheap", "mid", "mid"]
    assert done.record.cost_picousd == sum(costs) == 2 * costs[0]
    (wait,) = [step for step in done.record.trail.steps if isinstance(step, Waited)]
    assert (wait.at, wait.until, wait.ended, wait.model) == (1002.0, 1100.0, 1100.0, "mid")


def test_time_in_the_topic_beyond_the_delay_is_not_counted() -> None:
    """A topic that nobody read for a day costs the job nothing of its deadline, nor of its wait."""
    retry = left(THREE, busy())
    late = back(THREE, retry, now=90_000.0, cheap=reply())
    assert isinstance(late.record, Result)
    assert late.calls[0].deadline == 90_000.0 + 539.0 - 30.0, "what it came with, less the reference's time"
    assert late.record.trail.remaining == 600.0 - 1.0 - 60.0 - 30.0 - 1.0


def test_it_may_leave_again_and_again() -> None:
    """A wait of many minutes is one wait of the trail, however often it changes hands."""
    retry = left(THREE, busy(250.0))
    for number, rest in enumerate((190.0, 130.0, 70.0, 10.0)):
        assert retry.left == rest
        cascade = Cascade(THREE, job(), Role.JOBS, lambda _purpose: 0.5, retry)
        ask = cascade.start(2000.0 + number, CALM)
        assert isinstance(ask, Wait)
        assert ask.until == 2000.0 + number + rest
        gone = cascade.receive(Left(min(60.0, rest)), 2000.0 + number, CALM)
        assert isinstance(gone, Finish)
        assert isinstance(gone.record, Retry)
        assert (gone.record.tries, gone.record.waits) == (1, 1)
        retry = gone.record
    assert retry.left == 0.0
    assert retry.trail.remaining == 600.0 - 1.0 - 250.0
    assert len(retry.trail.steps) == 3
    assert isinstance(back(THREE, retry, cheap=reply()).record, Result)


def test_it_goes_on_at_the_endpoint_and_the_try_that_it_left_at() -> None:
    """What an endpoint was given up for stays so, and its tries are not counted anew."""
    two = [{"base_url": "https://a.test"}, {"base_url": "https://b.test"}]
    models = {**MODELS, "mid": {**MID, "endpoints": two}}
    task = {"ladder": ["mid", "frontier"], "retries": {"tries": 2}, "deadline": "10m"}
    slept = climb(plan(task, models), job(), lambda _call: busy(60.0))
    tried = [(call.model.name, call.endpoint) for call in slept.calls]
    assert tried == [("mid", 0), ("mid", 0), ("mid", 1), ("mid", 1)]
    retry = left(plan(task, models), busy(60.0))
    first = back(plan(task, models), retry, mid=busy(60.0))
    assert [call.endpoint for call in first.calls] == [0, 1, 1], "its second try, then the other endpoint"
    cascade = Cascade(plan(task, models), job(), Role.JOBS, lambda _purpose: 0.5, retry)
    now, ask = 1070.0, cascade.start(1070.0, CALM)
    while isinstance(ask, Call):
        now += 1.0
        ask = cascade.receive(busy(60.0), now, CALM)
    gone = cascade.receive(Left(60.0), now, CALM)
    assert isinstance(gone, Finish)
    assert isinstance(gone.record, Retry)
    assert (gone.record.endpoint, gone.record.tries) == (1, 1)
    assert [call.endpoint for call in back(plan(task, models), gone.record, mid=busy(60.0)).calls] == [1]


def test_votes_that_were_cast_count() -> None:
    """The draws before the wait and those after it are one vote."""
    gate = {"score": "votes", "threshold": 0.6, "votes": 3}
    voting = plan({"gate": gate, "deadline": "10m"})
    retry = left(voting, reply(label="login"), Reply("nonsense", reply().usage), busy(60.0))
    done = back(voting, retry, cheap=reply(label="login"))
    assert isinstance(done.record, Result)
    assert [call.draw for call in done.calls] == [3]
    assert done.record.score == pytest.approx(2 / 3)
    assert done.record.answer == {"label": "login"}


def test_a_local_classifier_is_asked_once_a_job() -> None:
    """What it said of the text goes along."""
    student = {"api": "local", "file": "student.skops", "tier": "local"}
    gate = {"score": "local", "threshold": 0.5, "model": "student"}
    judged = plan(
        {"ladder": ["cheap", "mid", "frontier"], "gate": gate, "deadline": "10m"}, {**MODELS, "student": student}
    )
    said = Reply("", reply().usage, distribution={"billing": 0.1, "login": 0.9})
    retry = left(judged, reply(), said, busy(60.0))
    assert retry.distributions == {"student": {"billing": 0.1, "login": 0.9}}
    done = back(judged, retry, mid=reply(label="login"))
    assert isinstance(done.record, Result)
    assert done.models == ["mid"]
    assert done.record.score == 0.9


def test_an_escalated_job_comes_back_to_the_reference() -> None:
    """The reason it was escalated for goes along."""
    first = climb(THREE, job(), lambda _call: reply(p=0.1)).record
    assert isinstance(first, Escalation)
    retry = left(THREE, busy(), role=Role.ESCALATIONS, resumed=first)
    assert (retry.role, retry.rung, retry.escalated) == (Role.ESCALATIONS, "frontier", EscalationReason.UNCERTAIN)
    done = back(THREE, retry, frontier=reply(p=None))
    assert isinstance(done.record, Result)
    assert done.record.escalated is EscalationReason.UNCERTAIN
    assert done.models == ["frontier"]


def _route(done: Climb) -> Routed:
    return [step for step in done.record.trail.steps if isinstance(step, Routed)][-1]


def test_under_another_policy_a_rung_that_is_gone_is_left_for_the_next() -> None:
    """With the reason in the trail."""
    retry = left(made("cheap", "mid", "frontier"), busy(60.0))
    done = back(made("mid", "frontier"), retry, mid=reply())
    assert done.models == ["mid"]
    assert _route(done).left_out == {"cheap": "the ladder does not have it any more"}


def test_under_another_policy_a_rung_that_may_not_see_it_is_left() -> None:
    """A clearance that was raised meanwhile holds at once."""
    retry = left(THREE, reply(p=0.1), busy(60.0))
    models = {**MODELS, "mid": {**MID, "clearance": "public"}}
    done = back(plan({"ladder": ["cheap", "mid", "frontier"]}, models), retry)
    assert isinstance(done.record, Escalation)
    assert done.record.reason is EscalationReason.ROUTED
    assert "clearance" in str(done.record.detail)
    assert done.calls == []
    assert "clearance" in _route(done).left_out["mid"]


def test_a_ladder_in_another_order_pays_nothing_twice() -> None:
    """What follows in the new order, less what was tried."""
    retry = left(THREE, reply(p=0.1), busy(60.0))
    done = back(made("mid", "cheap", "frontier"), retry, mid=reply(p=0.1))
    assert done.models == ["mid"]
    assert isinstance(done.record, Escalation)


def test_a_new_rung_below_the_one_waited_at_is_not_gone_back_to() -> None:
    """It goes on upwards only."""
    retry = left(made("cheap", "frontier"), busy(60.0))
    done = back(made("mid", "cheap", "frontier"), retry, cheap=reply(p=0.1))
    assert done.models == ["cheap"]
    assert isinstance(done.record, Escalation)


def test_a_new_reference_takes_the_place_of_the_one_waited_for() -> None:
    """The escalations role has no other rung."""
    first = climb(THREE, job(), lambda _call: reply(p=0.1)).record
    retry = left(THREE, busy(60.0), role=Role.ESCALATIONS, resumed=first)
    done = back(made("cheap", "mid", "top"), retry, top=reply(p=None))
    assert isinstance(done.record, Result)
    assert done.models == ["top"]
    ladder = ["cheap", {"model": "frontier", "gate": {"score": "none"}}, "mid"]
    now_cheap = back(plan({"ladder": ladder}, MODELS), retry)
    assert isinstance(now_cheap.record, Review), "frontier is a cheap rung now, and mid was paid for"
    assert now_cheap.record.reason is ReviewReason.UNSETTLED


def test_a_rung_that_became_the_reference_is_for_the_other_role() -> None:
    """The jobs role never calls a reference."""
    retry = left(THREE, reply(p=0.1), busy(60.0))
    done = back(made("cheap", "mid"), retry)
    assert isinstance(done.record, Escalation)
    assert done.calls == []
    assert _route(done).left_out["mid"] == "it is the reference now"


def test_what_has_expired_meanwhile_is_not_paid_for() -> None:
    """In its worker or outside it: `expires_at` is looked at when the wait is over."""
    retry = left(THREE, busy(40.0), expires_at=1100)
    done = climb(THREE, job(expires_at=1100), lambda _call: reply(), resumed=retry, now=1101.0)
    waits = made("cheap", "mid", "frontier", deadline="10m", on_failure="wait")
    slept = climb(waits, job(expires_at=1100), lambda _call: busy(60.0))
    for record in (done.record, slept.record):
        assert isinstance(record, Result)
        assert record.reason is RefusalReason.EXPIRED
    assert slept.ended == 1100.0


def test_a_retry_whose_trail_ends_in_no_wait_is_no_retry() -> None:
    """Whoever reads the topic makes it a dead letter."""
    good = outcomes.encode(left(THREE, busy()))
    bad = good.replace(b'"step":"waited"', b'"step":"slept"')
    assert bad != good
    with pytest.raises(InputError):
        outcomes.decode(Retry, bad)
    with pytest.raises(ValueError, match="end in a wait"):
        replace(left(THREE, busy()), trail=Trail("o", 0.0, 1.0))
    short = good.replace(b'"steps":[', b'"steps":[],"was":[')
    with pytest.raises(InputError, match="end in a wait"):
        outcomes.decode(Retry, short)


def test_a_job_that_leaves_is_counted_as_one_that_left_and_its_attempts_once() -> None:
    """It is no outcome; what it paid before is not counted again when it ends."""
    metrics = Metrics()
    retry = left(THREE, reply(p=0.1), busy())
    metrics.finished(retry, known=0)
    done = back(THREE, retry, mid=reply(label="login"))
    metrics.finished(done.record, known=len(retry.trail.steps))

    def counted(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert counted("sluiceway_retries_total", task="triage", role="jobs", delay="60") == 1
    assert counted("sluiceway_jobs_total", task="triage", outcome="answered") == 1
    tried = {"task": "triage", "model": "cheap", "tier": "small", "verdict": "escalate"}
    assert counted("sluiceway_attempts_total", **tried) == 1
    assert counted("sluiceway_attempts_total", **{**tried, "model": "mid", "tier": "mid", "verdict": "accept"}) == 1
