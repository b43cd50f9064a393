"""Cascades that random jobs, replies, failures and conditions lead through, and the laws of one role's run."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.cascade import (
    Ask,
    Cascade,
    Conditions,
    Event,
    Finish,
    Role,
    Start,
    State,
    Wait,
    Woke,
)
from sluiceway.core.catalog import Clearance
from sluiceway.core.health import Health
from sluiceway.core.job import Job
from sluiceway.core.ledger import cost
from sluiceway.core.outcome import Ending, Escalation, HandOver, Result, Retry, Status
from sluiceway.core.plan import Plan
from sluiceway.core.task import LOGPROB_SCORES
from sluiceway.core.trail import Attempt, EscalationReason, VerdictKind
from sluiceway.core.worth import TooDear
from tests.support.core import job, plan, reply

LOCAL = {"api": "local", "file": "student.skops", "tier": "local", "clearance": "public"}
MID = {
    "provider": "openai",
    "model": "gpt-mid",
    "tier": "small",
    "clearance": "confidential",
    "params": {"max_tokens": 80},
    "endpoints": [{"base_url": "https://a.test"}, {"base_url": "https://b.test"}],
}
MODELS = {
    "student": LOCAL,
    "mid": MID,
    "frontier": {
        "provider": "anthropic",
        "model": "claude",
        "tier": "frontier",
        "clearance": "restricted",
        "params": {"max_tokens": 200},
    },
}
EXTRACTION = {
    "labels": None,
    "output": {"type": "object", "properties": {"label": {"type": ["string", "null"]}}, "required": ["label"]},
}
PLANS: list[Plan] = [
    plan({"ladder": ladder, **task}, MODELS)
    for ladder in (["cheap", "frontier"], ["cheap", "mid", "frontier"], ["frontier"])
    for task in (
        {},
        {"gate": {"score": "margin", "threshold": 0.5, "on_error": "review"}, "on_failure": "wait"},
        {"gate": {"score": "votes", "threshold": 0.6, "votes": 3}, "retries": {"tries": 2}},
        {
            "gate": {"score": "local", "threshold": 0.5, "model": "student"},
            "clearance": "public",
            "review": {"always": "stakes >= critical", "sample": "30%"},
        },
        {
            "budget": {"usd_per_job": 0.001},
            "out_of_scope": "other",
            "start": [{"when": "stakes >= high", "at": "frontier"}],
        },
        {**EXTRACTION, "gate": {"score": "answer_logprob", "threshold": 0.3, "on_error": "accept"}, "trim": "none"},
        {"on_failure": "review", "budget": {"usd_per_job": 0.0005, "on_exceeded": "review"}, "deadline": "5s"},
        {"refuse": [{"when": "tokens > 60"}], "failed_share": 0.0},
        {"worth": {"action": "pause", "probe": 0.3}, "gate": {"score": "votes", "threshold": 0.6, "votes": 3}},
    )
]
PLANS.append(
    plan(
        {
            "ladder": ["student", "cheap", "mid", "frontier"],
            "gate": {"score": "local", "threshold": 0.5, "model": "student"},
            "clearance": "public",
        },
        MODELS,
    )
)

LEVELS = st.sampled_from([None, "low", "normal", "high", "critical"])
JOBS = st.builds(
    job,
    st.one_of(st.text(min_size=1, max_size=80), st.just("x" * 5000), st.just({"a": "b", "n": 1})),
    stakes=LEVELS,
    priority=LEVELS,
    clearance=st.sampled_from([None, None, "public", "internal", "confidential", "restricted"]),
    expires_at=st.sampled_from([None, None, None, 500, 5000]),
    context=st.sampled_from([[], [], [{"id": "kb", "text": "a passage"}]]),
)
USAGES = st.builds(Usage, *[st.integers(0, 10**6)] * 6)
PROBABILITIES = st.one_of(st.none(), st.floats(0.001, 1.0))


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    kind = draw(st.sampled_from(["label", "label", "label", "odd", "declined", "cut", "local"]))
    usage = draw(USAGES)
    if kind == "declined":
        return Reply("", usage, FinishReason.DECLINED)
    if kind == "odd":
        known = st.sampled_from(['{"label":null}', "{}", "[" * 500, '{"label":"\ud800"}', "\ud800"])
        text = draw(st.one_of(st.text(max_size=40), known))
        raw = text.encode("utf-8", "surrogatepass")
        return Reply(text, usage, logprobs=(TokenLogprob(raw, draw(st.floats(-99, 0)), ()),))
    label = draw(st.sampled_from(["billing", "login", "other", "invented"]))
    if kind == "local":
        odds = {label: draw(st.floats(0, 1)), "login": draw(st.floats(0, 1))}
        return Reply(f'{{"label":"{label}"}}', Usage(), distribution=odds)
    finish = FinishReason.LENGTH if kind == "cut" else FinishReason.STOP
    return reply(label, draw(PROBABILITIES), usage, finish=finish, seconds=1.0)


FAILURES = st.builds(
    Failure,
    st.sampled_from(FailureKind),
    st.just("http_503"),
    retry_after=st.one_of(st.none(), st.floats(0, 1e9)),
    usage=USAGES,
)
SHORT_FAILURES = st.builds(
    Failure,
    st.sampled_from([FailureKind.TRANSIENT, FailureKind.OVERLOADED]),
    st.just("http_429"),
    retry_after=st.sampled_from([None, 5.0, 90.0]),
)
HEALTH = st.builds(Health, st.one_of(st.none(), st.floats(0, 200)), st.one_of(st.just(0.0), st.floats(900, 1200)))
CONDITIONS = st.one_of(
    st.just(Conditions({})),
    st.builds(
        Conditions,
        st.dictionaries(st.sampled_from(["cheap", "mid", "frontier", "student"]), HEALTH),
        st.one_of(st.none(), st.integers(0, 10**12)),
        st.booleans(),
        st.sampled_from(["und", "en"]),
        st.dictionaries(
            st.sampled_from(["cheap", "mid", "student"]),
            st.builds(TooDear, st.sampled_from(["mid", "frontier"]), st.just("worth: too dear")),
        ),
    ),
)
SECONDS = st.floats(0, 40)


@dataclass
class Run:
    """Everything that went into one cascade, and everything that came out of it."""

    asks: list[Ask] = field(default_factory=list)
    seen: list[tuple[Event, float, Conditions]] = field(default_factory=list)

    @property
    def record(self) -> Ending:
        last = self.asks[-1]
        assert isinstance(last, Finish)
        return last.record

    @property
    def calls(self) -> list[Call]:
        return [ask for ask in self.asks if isinstance(ask, Call)]


def opened(made: Plan, known: Job, role: Role, coin: float, resumed: HandOver | None) -> Cascade:
    return Cascade(made, known, role, lambda _purpose: coin, resumed)


def measure(cascade: Cascade) -> tuple[int, int, bool]:
    """What falls with every step: rungs left, steps left at this one, whether its reply is still to be scored."""
    return len(cascade._rungs) - cascade._at, cascade._fuel, cascade.state is State.CALLING


def drive(data: st.DataObject, cascade: Cascade, now: float) -> Run:
    run = Run()
    event: Event = Start()
    while True:
        conditions = data.draw(CONDITIONS)
        before = measure(cascade)
        run.seen.append((event, now, conditions))
        ask = cascade.receive(event, now, conditions)
        run.asks.append(ask)
        if isinstance(ask, Finish):
            assert cascade.state is State.DONE
            return run
        if not isinstance(event, Start) and before[0]:  # a job that came back has its route after the rest of its wait
            assert measure(cascade) < before, "the bound must fall strictly"
        if isinstance(ask, Wait):
            assert now <= ask.until
            now, event = ask.until, Woke()
        else:
            assert ask.deadline >= now
            now += data.draw(SECONDS)
            event = data.draw(st.one_of(replies(), replies(), FAILURES))


def held(run: Run, made: Plan, known: Job, role: Role, before: int) -> None:
    """The laws of one role's run. `before`: pico-dollars spent by earlier roles."""
    task, record = made.task, run.record
    clearance = max(known.clearance or Clearance.PUBLIC, task.clearance)
    reference = task.reference.model
    for call in run.calls:
        assert call.model.clearance >= clearance, "no model sees what it may not"
        assert (call.model.name == reference) == (role is Role.ESCALATIONS) or call.model.name == "student"
        assert call.request.input_tokens <= call.model.context_window
    attempts = [step for step in record.trail.steps if isinstance(step, Attempt)]
    assert record.trail.cost_picousd == sum(attempt.cost_picousd for attempt in attempts) >= before
    for attempt in attempts:
        assert attempt.cost_picousd == cost(attempt.usage, made.prices[attempt.model])
        assert attempt.seconds >= 0
    assert all(step.until >= step.at for step in record.trail.steps if step.step == "waited")
    if isinstance(record, Escalation):
        assert role is Role.JOBS
        assert record.reason in set(EscalationReason)
        return
    assert not isinstance(record, Retry), "nobody told it to leave"
    assert record.cost_picousd == record.trail.cost_picousd
    assert record.outcome_id == outcomes.outcome_id(known.id, known.round)
    if isinstance(record, Result) and record.status is Status.ANSWERED:
        last = attempts[-1]
        assert (last.verdict, last.model, last.answer) == (VerdictKind.ACCEPT, record.model, record.answer)
        gate = next(made.task.gate_of(rung) for rung in task.ladder if rung.model == last.model)
        if gate is not None and gate.score in LOGPROB_SCORES and not (last.score and last.score.value is None):
            assert last.score is not None
            assert last.score.value is not None
            assert last.score.value >= gate.threshold, "a refused answer is never delivered"
        assert record.sampled is None or record.sampled.propensity == task.review.sample > 0
        assert record.reference_cost_picousd is not None
        assert record.reference_cost_picousd >= 0
    if isinstance(record, Result) and record.status is Status.REFUSED:
        assert record.answer is None
        assert record.reason is not None
