"""The cascade: what each reply, failure and wait leads to."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.core import CALM, DECLINED, MODELS, USAGE, Answers, by_model, climb, down, job, plan, reply, resumed

from sluiceway.core.call import Call, Failure, FinishReason, Reply, Usage
from sluiceway.core.cascade import TABLE, Cascade, Conditions, Left, Role, Start, State, Woke
from sluiceway.core.catalog import Clearance
from sluiceway.core.errors import Bug
from sluiceway.core.outcome import Escalation, RefusalReason, Result, Review, ReviewReason, Status
from sluiceway.core.task import Kind
from sluiceway.core.trail import EscalationReason, VerdictKind

LOCAL = {"api": "local", "file": "student.skops", "tier": "local"}

# -- the table -------------------------------------------------------------------------------------------------------


def test_every_state_and_event_stands_in_the_table() -> None:
    """What is not meant to happen is said, too."""
    assert set(TABLE) == {(state, event) for state in State for event in (Start, Reply, Failure, Woke, Left)}


def test_an_event_that_can_not_be_is_a_bug() -> None:
    """The worker stops rather than decide on nonsense."""
    cascade = Cascade(plan(), job(), Role.JOBS, lambda _purpose: 0.5)
    with pytest.raises(Bug):
        cascade.receive(Woke(), 0.0, CALM)


# -- accepted, doubted, malformed, declined --------------------------------------------------------------------------


def test_a_sure_answer_is_delivered() -> None:
    """One cheap call, its answer, its cost, and what the reference would have cost."""
    done = climb(plan(), job(), by_model(cheap=reply(p=0.99)))
    record = done.record
    assert isinstance(record, Result)
    assert (record.status, record.answer, record.model, record.tier) == (
        Status.ANSWERED,
        {"label": "billing"},
        "cheap",
        "small",
    )
    assert record.score == pytest.approx(0.99)
    assert record.cost_picousd == record.trail.cost_picousd == 100 * 150_000 + 20 * 3_000 + 5 * 600_000
    assert record.reference_cost_picousd is not None
    assert record.reference_cost_picousd > record.cost_picousd
    assert record.escalated is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(p=0.8499), EscalationReason.UNCERTAIN),
        (reply(p=None), EscalationReason.UNCERTAIN),  # its score can't be computed
        (Reply("not json", USAGE), EscalationReason.MALFORMED),
        (reply(label="invented"), EscalationReason.MALFORMED),
        (DECLINED, EscalationReason.DECLINED),
    ],
)
def test_doubt_goes_to_the_reference_through_its_topic(answer: Reply, reason: EscalationReason) -> None:
    """The jobs role never calls the reference: it hands on with the reason, at once."""
    done = climb(plan(), job(), by_model(cheap=answer))
    assert isinstance(done.record, Escalation)
    assert (done.record.reason, done.models, done.waits) == (reason, ["cheap"], [])


def test_the_reference_resumes_from_the_trail() -> None:
    """Its result holds both attempts, both costs, and why it was asked."""
    first = climb(plan(), job(), by_model(cheap=reply(p=0.3)))
    done = resumed(first, by_model(frontier=reply("login", p=None, usage=Usage(input_uncached=50, output_text=4))))
    record = done.record
    assert isinstance(record, Result)
    assert (record.model, record.answer, record.escalated) == (
        "frontier",
        {"label": "login"},
        EscalationReason.UNCERTAIN,
    )
    assert [attempt.model for attempt in record.trail.attempts] == ["cheap", "frontier"]
    assert record.cost_picousd == sum(attempt.cost_picousd for attempt in record.trail.attempts)
    assert record.reference_cost_picousd == record.trail.attempts[1].cost_picousd
    assert record.trail.taken_at == first.record.trail.taken_at


@pytest.mark.parametrize("answer", [Reply("nonsense", USAGE), DECLINED])
def test_what_the_reference_can_not_settle_goes_to_a_person(answer: Reply) -> None:
    """With everything that was answered on the way."""
    first = climb(plan(), job(), by_model(cheap=reply(p=0.3)))
    done = resumed(first, by_model(frontier=answer))
    assert isinstance(done.record, Review)
    assert done.record.reason is ReviewReason.UNSETTLED
    assert [(one.model, one.answer) for one in done.record.candidates] == [("cheap", {"label": "billing"})]
    assert done.record.job["input"] == "I was billed twice"


def test_a_gated_reference_may_doubt_as_well() -> None:
    """A gate of its own rung holds for the reference too."""
    gated = plan(
        {
            "ladder": ["cheap", {"model": "big", "gate": {"score": "label_logprob", "threshold": 0.9}}],
        },
        {"big": {"provider": "openai", "model": "gpt-big", "params": {"max_tokens": 50}}},
    )
    first = climb(gated, job(), by_model(cheap=reply(p=0.3)))
    assert isinstance(resumed(first, by_model(big=reply(p=0.5)), plan=gated).record, Review)
    assert isinstance(resumed(first, by_model(big=reply(p=0.95)), plan=gated).record, Result)


def test_every_cheap_rung_is_tried_before_the_reference() -> None:
    """Cheapest first, all in one role."""
    three = plan(
        {"ladder": ["cheap", "mid", "frontier"]},
        {"mid": {"provider": "openai", "model": "gpt-mid", "params": {"max_tokens": 50}}},
    )
    done = climb(three, job(), by_model(cheap=reply(p=0.2), mid=reply("login", p=0.95)))
    assert (done.models, done.record.answer) == (["cheap", "mid"], {"label": "login"})  # type: ignore[union-attr]


# -- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_error", "kind"), [("escalate", Escalation), ("accept", Result), ("review", Review)])
def test_on_error_decides_where_there_is_no_score(on_error: str, kind: type) -> None:
    """An endpoint that sends no logprobs is met as the policy says."""
    gate = {"score": "label_logprob", "threshold": 0.85, "on_error": on_error}
    assert type(climb(plan({"gate": gate}), job(), by_model(cheap=reply(p=None))).record) is kind


def test_the_margin_gate_wants_a_lead() -> None:
    """0.6 against 0.4 is a margin of 0.2."""
    gate = {"score": "margin", "threshold": 0.5}
    assert isinstance(climb(plan({"gate": gate}), job(), by_model(cheap=reply(p=0.6))).record, Escalation)
    assert isinstance(climb(plan({"gate": gate}), job(), by_model(cheap=reply(p=0.9))).record, Result)


def test_score_none_accepts_what_the_schema_allows() -> None:
    """And nothing else."""
    none = plan({"gate": {"score": "none"}})
    assert isinstance(climb(none, job(), by_model(cheap=reply(p=None))).record, Result)
    assert isinstance(climb(none, job(), by_model(cheap=Reply("{}", USAGE))).record, Escalation)


def draws(*answers: Reply) -> Answers:
    left = list(answers)
    return lambda _call: left.pop(0)


def test_votes_decide_by_share() -> None:
    """Two of three agree: accepted at 0.6, doubted at 0.7; each draw is an attempt and costs."""
    votes = (reply("billing", p=None), reply("login", p=None), reply("billing", p=None))
    accepted = climb(plan({"gate": {"score": "votes", "threshold": 0.6}}), job(), draws(*votes))
    assert isinstance(accepted.record, Result)
    assert accepted.record.answer == {"label": "billing"}
    assert accepted.record.score == pytest.approx(2 / 3)
    assert [one.verdict for one in accepted.record.trail.attempts] == [
        VerdictKind.RETRY,
        VerdictKind.RETRY,
        VerdictKind.ACCEPT,
    ]
    assert accepted.record.cost_picousd == 3 * accepted.record.trail.attempts[0].cost_picousd
    doubted = climb(plan({"gate": {"score": "votes", "threshold": 0.7}}), job(), draws(*votes))
    assert isinstance(doubted.record, Escalation)
    assert doubted.record.reason is EscalationReason.UNCERTAIN


def test_a_malformed_draw_is_a_vote_for_nothing() -> None:
    """Three malformed draws are a malformed answer, one is a vote less."""
    bad = Reply("no", USAGE)
    gate = {"score": "votes", "threshold": 0.6}
    one = climb(plan({"gate": gate}), job(), draws(bad, reply(p=None), reply(p=None)))
    assert isinstance(one.record, Result)
    all_bad = climb(plan({"gate": gate}), job(), draws(bad, bad, bad))
    assert isinstance(all_bad.record, Escalation)
    assert all_bad.record.reason is EscalationReason.MALFORMED


def scored_by_student(threshold: float = 0.5, **student: Any) -> Any:
    gate = {"score": "local", "threshold": threshold, "model": "student"}
    return plan({"gate": gate}, {"student": {**LOCAL, **student}})


def test_a_local_model_scores_another_models_answer() -> None:
    """It is asked after the answer, once, and bills nothing."""
    student = Reply('{"label":"login"}', Usage(), distribution={"billing": 0.7, "login": 0.3})
    done = climb(scored_by_student(0.5), job(), by_model(cheap=reply("billing", p=None), student=student))
    assert isinstance(done.record, Result)
    assert (done.models, done.record.score) == (["cheap", "student"], 0.7)
    assert len(done.record.trail.attempts) == 1
    doubted = climb(scored_by_student(0.8), job(), by_model(cheap=reply("billing", p=None), student=student))
    assert isinstance(doubted.record, Escalation)


def test_a_scoring_model_that_fails_gives_no_score() -> None:
    """`on_error` decides, as for any score that can't be computed."""
    done = climb(scored_by_student(), job(), by_model(cheap=reply(p=None), student=down()))
    assert isinstance(done.record, Escalation)
    assert done.record.trail.attempts[0].score is not None
    assert done.record.trail.attempts[0].score.value is None


def test_a_scoring_model_sees_only_what_it_may() -> None:
    """A job above its clearance is scored by nothing."""
    cleared = {"cheap": {"provider": "openai", "model": "m", "params": {"max_tokens": 9}, "clearance": "restricted"}}
    gate = {"score": "local", "threshold": 0.5, "model": "student"}
    made = plan({"gate": gate}, {**cleared, "student": LOCAL})
    done = climb(made, job(clearance="confidential"), by_model(cheap=reply(p=None)))
    assert done.models == ["cheap"]
    assert isinstance(done.record, Review)  # the reference may not see it either


def test_a_classifier_is_a_rung_of_its_own() -> None:
    """Its distribution is its score, and what it said also scores the next rung's answer: it runs once."""
    gate = {"score": "local", "threshold": 0.5, "model": "student"}
    made = plan({"gate": gate, "ladder": ["student", "cheap", "frontier"]}, {"student": LOCAL})
    said = Reply('{"label":"login"}', Usage(), distribution={"login": 0.4, "billing": 0.35, "refund": 0.25})
    done = climb(made, job(), by_model(student=said, cheap=reply("billing", p=None)))
    assert done.models == ["student", "cheap"]
    assert isinstance(done.record, Escalation)
    assert [one.score.value for one in done.record.trail.attempts if one.score] == [0.4, 0.35]


def test_a_call_for_a_score_has_the_tenant_and_the_clearance_of_its_job() -> None:
    """It carries the same text as the call before it: what may be shared or kept of it is decided alike."""
    cleared = {name: {**model, "clearance": "restricted"} for name, model in {**MODELS, "student": LOCAL}.items()}
    gate = {"score": "local", "threshold": 0.5, "model": "student"}
    made = plan({"gate": gate, "clearance": "confidential"}, cleared)
    cascade = Cascade(made, job(tenant="acme"), Role.JOBS, lambda _purpose: 0.5)
    first, scoring = cascade.start(1000.0, CALM), cascade.receive(reply(), 1001.0, CALM)
    assert isinstance(first, Call)
    assert isinstance(scoring, Call)
    assert scoring.model.name == "student"
    assert (scoring.tenant, scoring.clearance) == (first.tenant, first.clearance)
    assert (scoring.tenant, scoring.clearance) == ("acme", Clearance.CONFIDENTIAL)


# -- the four kinds --------------------------------------------------------------------------------------------------


def test_tags_are_a_set() -> None:
    """Order and repetition mean nothing; none is an answer."""
    tags = plan({"labels": None, "tags": ["trade", "oil", "grain"], "gate": {"score": "none"}})
    done = climb(tags, job(), by_model(cheap=Reply('{"tags":["oil","oil","trade"]}', USAGE)))
    assert done.record.answer == {"tags": ["oil", "trade"]}  # type: ignore[union-attr]
    none = climb(tags, job(), by_model(cheap=Reply('{"tags":[]}', USAGE)))
    assert none.record.answer == {"tags": []}  # type: ignore[union-attr]
    assert isinstance(climb(tags, job(), by_model(cheap=Reply('{"tags":["gold"]}', USAGE))).record, Escalation)


def test_free_text_is_held_to_its_length() -> None:
    """Too long and cut at max_tokens are both malformed; white space around it goes."""
    text = plan({"labels": None, "text": 12, "gate": {"score": "none"}})
    assert text.task.kind is Kind.TEXT
    good = climb(text, job(), by_model(cheap=Reply("  Refund it.\n", USAGE)))
    assert good.record.answer == {"text": "Refund it."}  # type: ignore[union-attr]
    for bad in (Reply("x" * 13, USAGE), Reply("Refund", USAGE, FinishReason.LENGTH), Reply(" ", USAGE)):
        done = climb(text, job(), by_model(cheap=bad))
        assert isinstance(done.record, Escalation)
        assert done.record.reason is EscalationReason.MALFORMED


def test_out_of_scope_is_a_refusal() -> None:
    """A result with a reason, delivered like any other; never a dead letter."""
    scoped = plan({"out_of_scope": "other"})
    done = climb(scoped, job(), by_model(cheap=reply("other")))
    assert isinstance(done.record, Result)
    assert (done.record.status, done.record.reason) == (Status.REFUSED, RefusalReason.OUT_OF_SCOPE)
    assert done.record.answer is None
    doubted = climb(scoped, job(), by_model(cheap=reply("other", p=0.5)))
    assert isinstance(doubted.record, Escalation)


# -- routes ----------------------------------------------------------------------------------------------------------


def test_a_rule_sends_a_job_straight_to_the_reference() -> None:
    """With no cheap call paid, through `escalations`, and the trail names the rule."""
    ruled = plan({"start": [{"when": "stakes >= high", "at": "frontier"}]})
    done = climb(ruled, job(stakes="high"), by_model())
    assert isinstance(done.record, Escalation)
    assert (done.record.reason, done.record.detail, done.calls) == (EscalationReason.ROUTED, "stakes >= high", [])
    assert climb(ruled, job(), by_model(cheap=reply())).models == ["cheap"]


def test_a_job_that_nobody_may_see_is_refused() -> None:
    """A refusal with its reason, and no call."""
    done = climb(plan(), job(clearance="restricted"), by_model())
    assert isinstance(done.record, Result)
    assert (done.record.reason, done.calls) == (RefusalReason.NO_CLEARED_MODEL, [])


def test_a_forbidden_job_is_refused() -> None:
    """`refuse` rules see measured facts, and their text is the detail."""
    made = plan({"refuse": [{"when": "tokens > 10", "why": "too much"}]})
    done = climb(made, job("x" * 11), by_model())
    assert isinstance(done.record, Result)
    assert (done.record.reason, done.record.detail) == (RefusalReason.FORBIDDEN, "too much")


def test_a_job_that_expired_is_refused() -> None:
    """At its first take; nothing is paid for an answer that nobody wants."""
    done = climb(plan(), job(expires_at=999), by_model(), now=1000.0)
    assert isinstance(done.record, Result)
    assert (done.record.reason, done.calls) == (RefusalReason.EXPIRED, [])
    assert climb(plan(), job(expires_at=1001), by_model(cheap=reply()), now=1000.0).models == ["cheap"]


def test_a_job_that_expired_in_the_line_for_the_reference_is_refused() -> None:
    """The dear answer would come too late; the trail keeps the cheap one."""
    late = job(expires_at=1500)
    first = climb(plan(), late, by_model(cheap=reply(p=0.3)), now=1000.0)
    assert isinstance(first.record, Escalation)
    done = climb(plan(), late, by_model(), Role.ESCALATIONS, resumed=first.record, now=2000.0)
    assert isinstance(done.record, Result)
    assert (done.record.reason, done.calls) == (RefusalReason.EXPIRED, [])
    assert [attempt.model for attempt in done.record.trail.attempts] == ["cheap"]


def test_review_always_holds_the_answer_for_a_person() -> None:
    """The answer is there, and nobody has got it."""
    held = plan({"review": {"always": ["stakes >= critical"]}})
    done = climb(held, job(stakes="critical"), by_model(cheap=reply()))
    assert isinstance(done.record, Review)
    assert (done.record.reason, done.record.detail) == (ReviewReason.ALWAYS, "stakes >= critical")
    assert done.record.candidates[0].answer == {"label": "billing"}
    assert isinstance(climb(held, job(), by_model(cheap=reply())).record, Result)


def test_a_sampled_answer_is_delivered_with_its_propensity() -> None:
    """One record: a result that the review queue picks up; the job goes along to be judged by."""
    sampling = plan({"review": {"sample": "0.5%"}})
    chosen = climb(sampling, job(), by_model(cheap=reply()), coin=0.0049).record
    assert isinstance(chosen, Result)
    assert chosen.sampled is not None
    assert (chosen.sampled.propensity, chosen.sampled.job["input"]) == (0.005, "I was billed twice")
    left = climb(sampling, job(), by_model(cheap=reply()), coin=0.005).record
    assert isinstance(left, Result)
    assert left.sampled is None


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_exceeded", "kind"), [("refuse", Result), ("review", Review)])
def test_a_call_that_could_exceed_the_jobs_budget_is_not_made(on_exceeded: str, kind: type) -> None:
    """The bound counts the longest answer there can be."""
    poor = plan({"budget": {"usd_per_job": 0.00001, "on_exceeded": on_exceeded}})
    done = climb(poor, job(), by_model())
    assert type(done.record) is kind
    assert done.calls == []
    assert done.record.reason in (RefusalReason.OVER_BUDGET, ReviewReason.OVER_BUDGET)  # type: ignore[union-attr]


def test_what_is_spent_counts_across_the_escalation() -> None:
    """The reference gets only what the cheap call left of the job's budget."""
    first = climb(plan(), job(), by_model(cheap=reply(p=0.1)))
    assert isinstance(first.record, Escalation)
    enough = climb(plan(), job(), by_model(frontier=reply(p=None)), Role.ESCALATIONS, resumed=first.record)
    assert isinstance(enough.record, Result)
    worst = first.record.trail.cost_picousd + enough.calls[0].request.input_tokens * 6_250_000 + 200 * 25_000_000
    for pico, kind in ((worst, Result), (worst - 1, Result)):
        tight = plan({"budget": {"usd_per_job": pico / 10**12}})
        done = climb(tight, job(), by_model(frontier=reply(p=None)), Role.ESCALATIONS, resumed=first.record)
        assert isinstance(done.record, kind)
        assert bool(done.calls) is (pico == worst)


def test_the_days_budget_bounds_every_call() -> None:
    """What is left of the day comes with the conditions."""
    broke = Conditions({}, day_left=10)
    done = climb(plan(), job(), by_model(), conditions=broke)
    assert isinstance(done.record, Result)
    assert done.record.reason is RefusalReason.OVER_BUDGET
    assert done.record.detail == "the next call could exceed budget.usd_per_day"
