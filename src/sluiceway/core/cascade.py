"""The cascade: one job's climb up its route. Give it events, do what it asks.

All that it may do in each state stands in `TABLE`, and nowhere else. It knows no clock: time comes with each event, and
so do the conditions it decides under. Two roles run the same machine: `jobs` climbs every rung but the reference and
hands on through the escalations topic; `escalations` resumes from the trail and calls the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sluiceway.core import gate as gates
from sluiceway.core import score as scores
from sluiceway.core.answer import Answer, Malformed
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request
from sluiceway.core.coin import Purpose
from sluiceway.core.errors import Bug
from sluiceway.core.health import Health
from sluiceway.core.job import Job
from sluiceway.core.outcome import Escalation, RefusalReason, Result, Review, ReviewReason
from sluiceway.core.plan import Plan
from sluiceway.core.prompt import TooLong
from sluiceway.core.record import Recorder
from sluiceway.core.route import NoRoute
from sluiceway.core.task import Gate, Kind, Rung, ScoreKind
from sluiceway.core.trail import EscalationReason, PromptFacts, Score, VerdictKind

MAX_STEPS = 64  # calls and waits of one job in one role: the bound that every path falls to


class Role(StrEnum):
    JOBS = "jobs"
    ESCALATIONS = "escalations"


class State(StrEnum):
    READY = "ready"
    CALLING = "calling"  # a rung's reply is awaited
    SCORING = "scoring"  # the local classifier that judges an answer is awaited
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the world looks like at one instant. `day_left`: pico-dollars of the task's day, None where unbounded.

    `may_fail`: whether `failed_share` lets another failed job escalate.
    """

    health: Mapping[str, Health]
    day_left: int | None = None
    may_fail: bool = True
    language: str = "und"


@dataclass(frozen=True, slots=True)
class Start:
    pass


@dataclass(frozen=True, slots=True)
class Woke:
    pass


@dataclass(frozen=True, slots=True)
class Wait:
    """Come back with Woke at `until`, a time of the runner's clock."""

    until: float


@dataclass(frozen=True, slots=True)
class Finish:
    record: Result | Review | Escalation


Ask = Call | Wait | Finish
Event = Start | Reply | Failure | Woke


class Cascade:
    """`coin` gives a number in [0, 1) for a purpose; `resumed` is the escalation this role takes up."""

    def __init__(
        self, plan: Plan, job: Job, role: Role, coin: Callable[[Purpose], float], resumed: Escalation | None = None
    ) -> None:
        self.plan, self.job, self.role = plan, job, role
        self.state = State.READY
        self.failed_over = False  # a failed rung was climbed past: it counts towards `failed_share`
        self._text = plan.prompt.read(job)
        self._facts = plan.router.facts(job, len(self._text.tokens))
        self._reference_allowed = False
        self._coin = coin
        self._resumed = resumed
        self._record = Recorder(plan, job, role.value, resumed)
        self._rungs: list[Rung] = []
        self._at = 0
        self._endpoint = 0
        self._tries = 0
        self._waits = 0
        self._fuel = MAX_STEPS
        self._deadline = 0.0
        self._called_at = 0.0
        self._prompt: PromptFacts | None = None
        self._draws: list[bytes | None] = []
        self._drawn: dict[bytes, Answer] = {}
        self._pending: tuple[Reply, Answer] | None = None

    def start(self, now: float, conditions: Conditions) -> Ask:
        return self.receive(Start(), now, conditions)

    def receive(self, event: Event, now: float, conditions: Conditions) -> Ask:
        """What to do next. Raises Bug for an event that this state can't have."""
        ask = TABLE[self.state, type(event)](self, event, now, conditions)
        self.state = State.WAITING if isinstance(ask, Wait) else State.DONE if isinstance(ask, Finish) else self.state
        return ask

    # -- route ---------------------------------------------------------------------------------------------------

    def _begin(self, _event: Start, now: float, conditions: Conditions) -> Ask:
        plan, job = self.plan, self.job
        self._facts = plan.router.facts(job, len(self._text.tokens), conditions.language)
        left = plan.task.deadline if self._resumed is None else self._resumed.trail.remaining
        self._deadline = now + left
        self._record.begin(now, self._deadline)
        if self._resumed is None and job.expires_at is not None and job.expires_at <= now:
            return self._refuse(RefusalReason.EXPIRED, "its expires_at has passed", now)
        route = plan.router.plan(job, self._facts, conditions.health, now, left)
        self._record.routed(route, self._facts, conditions.health, conditions.day_left, now)
        if isinstance(route, NoRoute):
            return self._refuse(route.reason, route.detail, now)
        reference = plan.task.reference.model
        self._reference_allowed = any(rung.model == reference for rung in route.rungs)
        if self.role is Role.ESCALATIONS:
            self._rungs = [rung for rung in route.rungs if rung.model == reference]
            if not self._rungs:
                return self._review(
                    ReviewReason.NO_REFERENCE, route.left_out.get(reference, "the reference may not serve it"), now
                )
            return self._call(now, conditions)
        self._rungs = [rung for rung in route.rungs if rung.model != reference]
        if not self._rungs:
            why = (
                route.rule
                or "; ".join(f"{name}: {reason}" for name, reason in route.left_out.items())
                or "the ladder has one model"
            )
            return self._hand_on(EscalationReason.ROUTED, now, why)
        return self._call(now, conditions)

    # -- call ----------------------------------------------------------------------------------------------------

    def _call(self, now: float, conditions: Conditions) -> Ask:
        """A call to the current rung, unless time, money, room or its health forbid it."""
        rung = self._rungs[self._at]
        model = self.plan.models[rung.model]
        if now >= self._deadline or self._fuel <= 0:
            return self._review(ReviewReason.DEADLINE, "no model could be reached in time", now)
        known = conditions.health.get(rung.model)
        if known is not None and known.out_until > now and not self._tries:
            return self._rung_failed(now, conditions, known.out_until)
        built = self.plan.prompt.build(self._text, self.job.context, self.plan.limit(rung))
        if isinstance(built, TooLong):
            self._record.leave_out(rung.model, f"context window: {built.needed} tokens > {built.limit}")
            return self._climb(EscalationReason.ROUTED, now, conditions, f"{rung.model} cannot hold the job")
        request, self._prompt = built
        worst = self.plan.worst_cost(rung.model, request)
        over = self._over_budget(worst, conditions)
        if over is not None:
            if self.plan.task.budget.on_exceeded == "review":
                return self._review(ReviewReason.OVER_BUDGET, over, now)
            return self._refuse(RefusalReason.OVER_BUDGET, over, now)
        gate = self.plan.task.gate_of(rung)
        self._fuel -= 1
        self._tries += 1
        self._called_at = now
        self.state = State.CALLING
        deadline = min(self._deadline, now + model.timeout)
        return Call(model, request, self._endpoint, deadline, self.job.id, self.plan.wants_logprobs(gate))

    def _over_budget(self, worst: int, conditions: Conditions) -> str | None:
        limit = self.plan.usd_per_job
        if limit is not None and self._record.spent + worst > limit:
            return "the next call could exceed budget.usd_per_job"
        if conditions.day_left is not None and worst > conditions.day_left:
            return "the next call could exceed budget.usd_per_day"
        return None

    def _replied(self, reply: Reply, now: float, conditions: Conditions) -> Ask:
        rung, task = self._rungs[self._at], self.plan.task
        gate = task.gate_of(rung)
        cut = reply.finish is FinishReason.LENGTH and task.kind is Kind.TEXT
        answer = Malformed("cut") if cut else self.plan.reader.read(reply.text)
        verdict = gates.read(reply.finish, answer)
        if gate is not None and gate.score is ScoreKind.VOTES:
            return self._voted(gate, reply, answer, verdict, now, conditions)
        if verdict is not None or isinstance(answer, Malformed):
            verdict = verdict or gates.Verdict(VerdictKind.ESCALATE, EscalationReason.MALFORMED)
            return self._judged(verdict, reply, None, None, now, conditions)
        if gate is not None and gate.score is ScoreKind.LOCAL:
            return self._locally(gate, rung, reply, answer, now, conditions)
        score = None
        if gate is not None and gate.score is not ScoreKind.NONE:
            score = scores.from_logprobs(gate, reply, task.compared, per_field=task.kind is Kind.EXTRACTION)
        return self._judged(gates.judge(gate, score), reply, answer, score, now, conditions)

    def _voted(
        self,
        gate: Gate,
        reply: Reply,
        answer: Answer | Malformed,
        refused: gates.Verdict | None,
        now: float,
        conditions: Conditions,
    ) -> Ask:
        """One draw of several: the last one decides; those before are recorded as retries of the same rung."""
        good = answer if isinstance(answer, Answer) and refused is None else None
        self._draws.append(None if good is None else good.compared)
        if good is not None:
            self._drawn.setdefault(good.compared, good)
        if len(self._draws) < gate.votes and self._fuel > 0 and now < self._deadline:
            self._note(reply, good, None, gates.Verdict(VerdictKind.RETRY), "vote", now)
            self._tries = 0
            return self._call(now, conditions)
        score, winner = scores.from_votes(gate, self._draws)
        chosen = None if winner is None else self._drawn[winner]
        if chosen is None:
            verdict = refused or gates.Verdict(VerdictKind.ESCALATE, EscalationReason.MALFORMED)
        else:
            verdict = gates.judge(gate, score)
        return self._judged(verdict, reply, chosen, score, now, conditions)

    def _locally(self, gate: Gate, rung: Rung, reply: Reply, answer: Answer, now: float, conditions: Conditions) -> Ask:
        """The score a local classifier gives; it is asked once a job."""
        name = gate.model or rung.model
        distribution = reply.distribution if name == rung.model else self._record.distribution(name)
        judge = self.plan.models[name]
        cannot = name == rung.model or judge.clearance < self._facts.clearance
        if distribution is not None or cannot:
            score = scores.from_distribution(gate, answer.value["label"], distribution)
            return self._judged(gates.judge(gate, score), reply, answer, score, now, conditions)
        self._pending = (reply, answer)
        self.state = State.SCORING
        schema = self.plan.task.schema_
        request = Request("", "", schema, self.plan.task.name, len(self._text.tokens), self.job.text)
        return Call(judge, request, 0, min(self._deadline, now + judge.timeout), self.job.id)

    def _scored(self, event: Reply | Failure, now: float, conditions: Conditions) -> Ask:
        gate = self.plan.task.gate_of(self._rungs[self._at])
        if self._pending is None or gate is None:
            raise Bug("a score came back that nothing asked for")
        (reply, answer), self._pending = self._pending, None
        distribution = event.distribution if isinstance(event, Reply) else None
        if distribution is not None and gate.model is not None:
            self._record.keep_distribution(gate.model, distribution)
        score = scores.from_distribution(gate, answer.value["label"], distribution)
        return self._judged(gates.judge(gate, score), reply, answer, score, now, conditions)

    def _judged(
        self,
        verdict: gates.Verdict,
        reply: Reply,
        answer: Answer | None,
        score: Score | None,
        now: float,
        conditions: Conditions,
    ) -> Ask:
        reason = verdict.reason.value if verdict.reason else None
        self._note(reply, answer, score, verdict, reason, now)
        if verdict.kind is VerdictKind.ACCEPT and answer is not None:
            return self._deliver(answer, reply, score, now)
        if verdict.held:
            return self._review(ReviewReason.UNSETTLED, "its score could not be computed", now)
        return self._climb(verdict.reason or EscalationReason.MALFORMED, now, conditions)

    def _note(
        self,
        reply: Reply,
        answer: Answer | None,
        score: Score | None,
        verdict: gates.Verdict,
        reason: str | None,
        now: float,
    ) -> None:
        rung = self._rungs[self._at]
        self._record.replied(rung.model, reply, answer, score, verdict.kind, reason, self._prompt, self._called_at, now)

    # -- climb, hand on, wait ------------------------------------------------------------------------------------

    def _climb(self, reason: EscalationReason, now: float, conditions: Conditions, detail: str | None = None) -> Ask:
        """The next rung of this role, else the reference through its topic, else a person."""
        if self._at + 1 < len(self._rungs):
            self._at += 1
            self._endpoint = self._tries = 0
            self._draws, self._drawn = [], {}
            return self._call(now, conditions)
        if self.role is Role.ESCALATIONS:
            return self._review(ReviewReason.UNSETTLED, detail or f"the reference's answer is {reason.value}", now)
        if not self._reference_allowed:
            return self._review(ReviewReason.NO_REFERENCE, detail or f"the cheap answer is {reason.value}", now)
        return self._hand_on(reason, now, detail)

    def _failed(self, failure: Failure, now: float, conditions: Conditions) -> Ask:
        rung = self._rungs[self._at]
        retries = self.plan.task.retries
        again = failure.kind is not FailureKind.INVALID and self._tries < retries.tries
        others = self._endpoint + 1 < max(1, len(self.plan.models[rung.model].endpoints))
        verdict = VerdictKind.RETRY if again or others else VerdictKind.ESCALATE
        self._record.failed(rung.model, failure, verdict, self._prompt, self._called_at, now)
        if again:
            return self._wait(now, self._pause(self._tries - 1, failure.retry_after), failure.detail)
        if others:
            self._endpoint += 1
            self._tries = 0
            return self._call(now, conditions)
        return self._rung_failed(
            now, conditions, now + (failure.retry_after or 0.0), final=failure.kind is FailureKind.INVALID
        )

    def _rung_failed(self, now: float, conditions: Conditions, until: float, *, final: bool = False) -> Ask:
        """A rung can't be reached: a rung of the same tier, then `on_failure`. `final`: trying again would not help."""
        models = self.plan.models
        following = self._rungs[self._at + 1] if self._at + 1 < len(self._rungs) else None
        if following is not None and models[following.model].tier == models[self._rungs[self._at].model].tier:
            return self._climb(EscalationReason.FAILED, now, conditions)
        self._endpoint = self._tries = 0
        if self.role is Role.JOBS and self.plan.task.on_failure == "review":
            return self._review(ReviewReason.FAILED, "on_failure: review", now)
        onward = self.role is Role.JOBS and (following is not None or self._reference_allowed)
        if onward and self.plan.task.on_failure == "escalate" and conditions.may_fail:
            self.failed_over = True
            return self._climb(EscalationReason.FAILED, now, conditions)
        if final and not onward:
            return self._review(ReviewReason.FAILED, "the model refuses the call itself", now)
        pause = self._pause(
            self._waits, None, longest=max(self.plan.task.retries.longest_wait, (self._deadline - now) / 16)
        )
        return self._wait(now, max(pause, until - now), "all endpoints failed")

    def _pause(self, number: int, retry_after: float | None, longest: float | None = None) -> float:
        """Seconds: exponential with jitter from the job's own coin, never less than what the endpoint asked for."""
        retries = self.plan.task.retries
        bound = min(
            retries.longest_wait if longest is None else longest, retries.first_wait * float(1 << min(number, 16))
        )
        pause = bound * (0.5 + 0.5 * self._coin(Purpose.JITTER))
        return pause if retry_after is None else max(pause, min(retry_after, self.plan.task.deadline))

    def _wait(self, now: float, seconds: float, reason: str) -> Ask:
        until = min(now + seconds, self._deadline)
        self._waits += 1
        self._fuel -= 1
        self._record.waited(now, until, reason)
        return Wait(until)

    def _woke(self, _event: Woke, now: float, conditions: Conditions) -> Ask:
        return self._call(now, conditions)

    # -- finish --------------------------------------------------------------------------------------------------

    def _deliver(self, answer: Answer, reply: Reply, score: Score | None, now: float) -> Ask:
        held = self.plan.router.held(self._facts)
        if held is not None:
            return self._review(ReviewReason.ALWAYS, held, now)
        if self.plan.out_of_scope(answer.value):
            return self._refuse(RefusalReason.OUT_OF_SCOPE, f"the answer is {self.plan.task.out_of_scope}", now)
        share = self.plan.task.review.sample
        sampled = share > 0 and self._coin(Purpose.SAMPLE) < share
        model = self._rungs[self._at].model
        reference_cost = self.plan.reference_cost(self._record.trail(now), self._text, reply.text)
        return Finish(self._record.answered(model, answer, score, reference_cost, share if sampled else None, now))

    def _hand_on(self, reason: EscalationReason, now: float, detail: str | None = None) -> Ask:
        return Finish(self._record.escalation(reason, detail, now))

    def _refuse(self, reason: RefusalReason, detail: str, now: float) -> Ask:
        return Finish(self._record.refused(reason, detail, now))

    def _review(self, reason: ReviewReason, detail: str, now: float) -> Ask:
        return Finish(self._record.review(reason, detail, now))

    def _never(self, event: Event, _now: float, _conditions: Conditions) -> Ask:
        raise Bug(f"{type(event).__name__} can't reach a cascade that is {self.state.value}")


def _table() -> dict[tuple[State, type], Callable[[Cascade, Event, float, Conditions], Ask]]:
    possible = {
        (State.READY, Start): Cascade._begin,
        (State.CALLING, Reply): Cascade._replied,
        (State.CALLING, Failure): Cascade._failed,
        (State.SCORING, Reply): Cascade._scored,
        (State.SCORING, Failure): Cascade._scored,
        (State.WAITING, Woke): Cascade._woke,
    }
    return {
        (state, event): possible.get((state, event), Cascade._never)  # type: ignore[misc]  # each takes the event of its own row
        for state in State
        for event in (Start, Reply, Failure, Woke)
    }


TABLE = _table()
"""Every (state, event) pair: what the cascade does."""
