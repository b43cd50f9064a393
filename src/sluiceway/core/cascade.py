"""The cascade: one job's climb up its route. Give it events, do what it asks.

All that it may do in each state stands in `TABLE`, and nowhere else. It knows no clock: time comes with each event, and
so do the conditions it decides under. Two roles run the same machine: `jobs` climbs every rung but the reference and
hands on through the escalations topic; `escalations` resumes from the trail and calls the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from sluiceway.core import gate as gates
from sluiceway.core import resume, worth
from sluiceway.core import score as scores
from sluiceway.core.answer import Answer, Malformed
from sluiceway.core.ask import Ask, Event, Finish, Left, Start, State, Wait, Woke
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request
from sluiceway.core.coin import Purpose
from sluiceway.core.conditions import USUAL, Conditions
from sluiceway.core.errors import Bug
from sluiceway.core.job import Job
from sluiceway.core.outcome import HandOver, RefusalReason, Retry, ReviewReason
from sluiceway.core.plan import Plan
from sluiceway.core.prompt import Text, TooLong
from sluiceway.core.record import Recorder
from sluiceway.core.route import NoRoute, Route
from sluiceway.core.task import Gate, Kind, Rung, ScoreKind
from sluiceway.core.trail import EscalationReason, Role, Score, VerdictKind

__all__ = ["Ask", "Cascade", "Conditions", "Event", "Finish", "Left", "Role", "Start", "State", "Wait", "Woke"]

MAX_STEPS = 64  # calls and waits of one job at one rung: (rungs left, steps left) falls strictly on every path

Coin = Callable[[Purpose], float]


class Cascade:
    """`coin`: a number in [0, 1) for a purpose; `resumed`: what is taken up; `text`: the job's, if already read."""

    def __init__(
        self, plan: Plan, job: Job, role: Role, coin: Coin, resumed: HandOver | None = None, text: Text | None = None
    ) -> None:
        self.plan, self.job, self.role = plan, job, role
        self.state = State.READY
        self.failed_over = False  # a failed rung was climbed past: it counts towards `failed_share`
        self._coin = coin
        self._resumed = resumed
        self._text = plan.prompt.read(job) if text is None else text
        self._record = Recorder(plan, job, role, resumed)
        self._now = self._deadline = self._whole = 0.0  # whole: seconds, of which the reference gets half at most
        self._expires = math.inf if job.expires_at is None else job.expires_at
        self._until = 0.0  # of the current wait
        self._conditions = USUAL
        self._facts = plan.router.facts(job, len(self._text.tokens))
        self._rungs: tuple[Rung, ...] = ()  # of this role
        self._at = 0  # the rung, its endpoint, and the calls made there
        self._endpoint = self._tries = 0
        self._fuel = MAX_STEPS
        self._waits = 0
        self._reference_allowed = False
        self._draws: list[Answer | None] = []
        self._pending: tuple[Reply, Answer] | None = None

    def start(self, now: float, conditions: Conditions) -> Ask:
        return self.receive(Start(), now, conditions)

    def receive(self, event: Event, now: float, conditions: Conditions) -> Ask:
        """What to do next. Raises Bug for an event that this state can't have."""
        self._now, self._conditions = now, conditions
        self._record.tick(now, conditions)
        ask = TABLE[self.state, type(event)](self, event)
        self.state = _STATE_AFTER.get(type(ask), self.state)
        return ask

    def unpaid(self, day_left: int) -> Ask:
        """Instead of the call that it has just asked for: by now only `day_left` pico-dollars of the day are left."""
        self._conditions = self._record.decided_anew(day_left)
        self._fuel, self._tries = self._fuel + 1, self._tries - 1
        ask = self._call()
        self.state = _STATE_AFTER.get(type(ask), self.state)
        return ask

    @property
    def _rung(self) -> Rung:
        return self._rungs[self._at]

    # -- route ---------------------------------------------------------------------------------------------------

    def _begin(self, _event: Start) -> Ask:
        plan, job, now = self.plan, self.job, self._now
        if self._conditions.language != "und":
            self._facts = replace(self._facts, language=self._conditions.language)
        whole = plan.task.deadline
        left = whole if self._resumed is None else self._resumed.trail.remaining
        self._deadline, self._whole = now + left, whole
        if self._expires < math.inf:
            self._deadline, self._whole = min(now + left, self._expires), min(whole, self._expires - now)
            left = min(left, self._expires - now)
        self._record.begin(self._deadline)
        if isinstance(self._resumed, Retry):
            return self._returned(self._resumed)
        if self._expires <= now:
            return self._late()
        dear = self._conditions.too_dear if self.role is Role.JOBS else worth.NONE
        skipped = worth.skipped(plan.task.worth, dear, self._coin)
        route = self._routed(plan.router.plan(job, self._facts, self._conditions.health, now, left, skipped))
        if isinstance(route, NoRoute):
            return self._refuse(route.reason, route.detail)
        self._rungs = resume.rungs_of(plan, route, self.role)
        if self._rungs:
            return self._call()
        if self.role is Role.ESCALATIONS:
            why = route.left_out.get(plan.reference, "the reference may not serve it")
            return self._review(ReviewReason.NO_REFERENCE, why)
        left_out = "; ".join(f"{name}: {reason}" for name, reason in route.left_out.items())
        why = route.rule or left_out or "the ladder has one model"
        return Finish(self._record.escalation(EscalationReason.ROUTED, why))

    def _routed(self, route: Route | NoRoute) -> Route | NoRoute:
        self._record.routed(route, self._facts)
        self._reference_allowed = isinstance(route, Route) and route.rungs[-1].model == self.plan.reference
        return route

    # -- back from a retry topic -----------------------------------------------------------------------------------

    def _returned(self, retry: Retry) -> Ask:
        """It sleeps the rest of its wait, or goes on at once."""
        self.failed_over, self._waits = retry.failed_over, retry.waits
        if retry.left > 0:
            self._until = self._now + retry.left
            self._record.waits_on(self._until)
            return Wait(self._until, self._deadline)
        return self._woke(Woke())

    def _go_on(self, retry: Retry) -> Ask:
        """At the rung where it left to wait; where that may serve it no more, at the next one."""
        left = self._deadline - self._now
        again = resume.route_again(self.plan, self.job, self._facts, self._conditions.health, self._now, left, retry)
        route = self._routed(again)
        if isinstance(route, NoRoute):
            return self._refuse(route.reason, route.detail)
        self._rungs = resume.onward(self.plan, route, retry)
        if not self._rungs:
            detail = f"{retry.rung} may not serve it: {route.left_out.get(retry.rung, 'no other model may')}"
            return self._climb(EscalationReason.ROUTED, detail)
        if self._rung.model == retry.rung:
            self._endpoint, self._tries = retry.endpoint, retry.tries
            self._fuel = MAX_STEPS - resume.steps_at(retry.trail, retry.rung)
            self._draw_again(retry)
        return self._call()

    def _draw_again(self, retry: Retry) -> None:
        """The votes that were cast before it left."""
        gate = self.plan.gates[retry.rung]
        if gate is None or gate.score is not ScoreKind.VOTES:
            return
        for attempt in resume.draws_at(retry.trail, retry.rung):
            known = attempt.answer if isinstance(attempt.answer, Mapping) else None
            self._draws.append(None if known is None else Answer(known, self.plan.reader.compare(known)))

    # -- call ----------------------------------------------------------------------------------------------------

    def _call(self) -> Ask:
        """A call to the current rung, unless time, money, room, its health or its worth forbid it."""
        plan, conditions, now, name = self.plan, self._conditions, self._now, self._rung.model
        model = plan.models[name]
        paused = worth.paused(plan.task.worth, conditions.too_dear.get(name), self._coin)
        if now >= self._deadline or self._fuel <= 0:
            return self._late(paused)
        if paused is not None and not self._tries and not self._draws:
            return self._wait(self._pause(self._waits, None, self._longest()), paused)
        known = conditions.health.get(name)
        if known is not None and known.out_until > now and not self._tries:
            return self._rung_failed(known.out_until)
        built = plan.prompt.build(self._text, self.job.context, plan.limits[name])
        if isinstance(built, TooLong):
            self._record.leave_out(name, f"context window: {built.needed} tokens > {built.limit}")
            return self._climb(EscalationReason.ROUTED, f"{name} cannot hold the job")
        request, facts = built
        over = plan.over_budget(name, request, self._record.spent, conditions.day_left)
        if over is not None:
            if plan.task.budget.on_exceeded == "review":
                return self._review(ReviewReason.OVER_BUDGET, over)
            return self._refuse(RefusalReason.OVER_BUDGET, over)
        self._fuel -= 1
        self._tries += 1
        self.state = State.CALLING
        self._record.called(name, facts)
        # A permit may be waited for while what follows keeps its time; the call itself ends by the model's time-out.
        latest, timeout = self._latest(), now + model.timeout
        deadline = latest if latest > timeout else min(self._deadline, timeout)
        job, logprobs, draw, clearance = self.job, name in plan.by_logprobs, len(self._draws) + 1, self._facts.clearance
        return Call(model, request, self._endpoint, deadline, job.id, logprobs, draw, clearance, job.tenant or "")

    def _replied(self, reply: Reply) -> Ask:
        plan, gate = self.plan, self.plan.gates[self._rung.model]
        cut = reply.finish is FinishReason.LENGTH and plan.kind is Kind.TEXT
        answer = Malformed("cut") if cut else plan.reader.read(reply.text)
        reason = gates.unusable(reply.finish, answer)
        good = answer if isinstance(answer, Answer) and reason is None else None
        kind = ScoreKind.NONE if gate is None else gate.score
        if gate is not None and kind is ScoreKind.VOTES:
            return self._voted(gate, reply, good, reason)
        if good is None:
            return self._judged(gates.escalate(reason or EscalationReason.MALFORMED), reply, None, None)
        if gate is not None and kind is ScoreKind.LOCAL:
            return self._locally(gate, reply, good)
        score = None
        if gate is not None and kind is not ScoreKind.NONE:
            score = scores.from_logprobs(gate, reply, plan.reader.compared, per_field=plan.kind is Kind.EXTRACTION)
        return self._judged(gates.judge(gate, score), reply, good, score)

    def _voted(self, gate: Gate, reply: Reply, answer: Answer | None, reason: EscalationReason | None) -> Ask:
        """One draw of several: the last one decides; those before are recorded as retries of the same rung."""
        self._draws.append(answer)
        if len(self._draws) < gate.votes and self._fuel > 0 and self._now < self._deadline:
            self._record.replied(reply, answer, None, VerdictKind.RETRY, "vote")
            self._tries = 0
            return self._call()
        score, winner = scores.from_votes(gate, [None if draw is None else draw.compared for draw in self._draws])
        if winner is None:
            return self._judged(gates.escalate(reason or EscalationReason.MALFORMED), reply, None, score)
        chosen = next(draw for draw in self._draws if draw is not None and draw.compared == winner)
        return self._judged(gates.judge(gate, score), reply, chosen, score)

    def _locally(self, gate: Gate, reply: Reply, answer: Answer) -> Ask:
        """The score a local classifier gives; it is asked once a job."""
        own = self._rung.model
        name = gate.model or own
        judge = self.plan.models[name]
        distribution = reply.distribution if name == own else self._record.distribution(name)
        if distribution is not None or name == own or judge.clearance < self._facts.clearance:
            score = scores.from_distribution(gate, answer.value["label"], distribution)
            return self._judged(gates.judge(gate, score), reply, answer, score)
        self._pending = (reply, answer)
        self.state = State.SCORING
        request = Request("", "", self.plan.task.schema_, self.plan.task.name, len(self._text.tokens), self.job.text)
        deadline, clearance = min(self._deadline, self._now + judge.timeout), self._facts.clearance
        return Call(judge, request, 0, deadline, self.job.id, clearance=clearance, tenant=self.job.tenant or "")

    def _scored(self, event: Reply | Failure) -> Ask:
        gate = self.plan.gates[self._rung.model]
        if self._pending is None or gate is None:
            raise Bug("a score came back that nothing asked for")
        (reply, answer), self._pending = self._pending, None
        distribution = event.distribution if isinstance(event, Reply) else None
        if distribution is not None and gate.model is not None:
            self._record.keep_distribution(gate.model, distribution)
        score = scores.from_distribution(gate, answer.value["label"], distribution)
        return self._judged(gates.judge(gate, score), reply, answer, score)

    def _judged(self, verdict: gates.Verdict, reply: Reply, answer: Answer | None, score: Score | None) -> Ask:
        reason = verdict.reason.value if verdict.reason else None
        self._record.replied(reply, answer, score, verdict.kind, reason)
        if verdict.kind is VerdictKind.ACCEPT and answer is not None:
            return self._deliver(answer, reply, score)
        if verdict.held:
            return self._review(ReviewReason.UNSETTLED, "its score could not be computed")
        return self._climb(verdict.reason or EscalationReason.MALFORMED)

    # -- climb, hand on, wait ------------------------------------------------------------------------------------

    def _climb(self, reason: EscalationReason, detail: str | None = None) -> Ask:
        """The next rung of this role, else the reference through its topic, else a person."""
        if self._at + 1 < len(self._rungs):
            self._at += 1
            self._endpoint = self._tries = 0
            self._fuel = MAX_STEPS
            self._draws = []
            return self._call()
        if self.role is Role.ESCALATIONS:
            return self._review(ReviewReason.UNSETTLED, detail or f"the reference's answer is {reason.value}")
        if not self._reference_allowed:
            return self._review(ReviewReason.NO_REFERENCE, detail or f"the cheap answer is {reason.value}")
        return Finish(self._record.escalation(reason, detail))

    def _failed(self, failure: Failure) -> Ask:
        final = failure.kind is FailureKind.INVALID
        pause = self._pause(self._tries - 1, failure.retry_after)
        in_time = self._now + pause < self._latest()
        again = not final and self._tries < self.plan.task.retries.tries and in_time and self._fuel > 1
        others = self._fuel > 0 and self._endpoint + 1 < len(self.plan.models[self._rung.model].endpoints)
        self._record.failed(failure, VerdictKind.RETRY if again or others else VerdictKind.ESCALATE)
        if again:
            return self._wait(pause, failure.detail)
        if others:
            self._endpoint += 1
            self._tries = 0
            return self._call()
        return self._rung_failed(self._now + (failure.retry_after or 0.0), final=final)

    def _latest(self) -> float:
        """When this rung must end to leave what follows its time: the reference, where this role hands on to it."""
        task, latest = self.plan.task, self._deadline
        if self.role is Role.JOBS and self._reference_allowed and task.on_failure == "escalate":
            latest -= min(self.plan.models[self.plan.reference].timeout, self._whole / 2)
        return latest

    def _rung_failed(self, until: float, *, final: bool = False) -> Ask:
        """A rung can't be reached: a rung of the same tier, then `on_failure`. `final`: trying again would not help."""
        task, models = self.plan.task, self.plan.models
        following = self._rungs[self._at + 1] if self._at + 1 < len(self._rungs) else None
        if following is not None and models[following.model].tier == models[self._rung.model].tier:
            return self._climb(EscalationReason.FAILED)
        self._endpoint = self._tries = 0
        if self.role is Role.JOBS and task.on_failure == "review":
            return self._review(ReviewReason.FAILED, "on_failure: review")
        onward = self.role is Role.JOBS and (following is not None or self._reference_allowed)
        if onward and task.on_failure == "escalate" and self._conditions.may_fail:
            self.failed_over = True
            return self._climb(EscalationReason.FAILED)
        if final and not onward:
            return self._review(ReviewReason.FAILED, "the model refuses the call itself")
        pause = self._pause(self._waits, None, self._longest())
        return self._wait(max(pause, until - self._now), "all endpoints failed")

    def _longest(self) -> float:
        """Seconds: a wait by rule grows with what is left of the deadline."""
        return max(self.plan.task.retries.longest_wait, (self._deadline - self._now) / 16)

    def _pause(self, number: int, retry_after: float | None, longest: float | None = None) -> float:
        """Seconds: exponential with jitter from the job's own coin, never less than what the endpoint asked for."""
        retries = self.plan.task.retries
        bound = min(longest or retries.longest_wait, retries.first_wait * float(1 << min(number, 16)))
        pause = bound * (0.5 + 0.5 * self._coin(Purpose.JITTER))
        return pause if retry_after is None else max(pause, min(retry_after, self.plan.task.deadline))

    def _wait(self, seconds: float, reason: str) -> Ask:
        if self._now >= self._deadline:
            return self._late()
        self._until = min(self._now + seconds, self._deadline)
        self._waits += 1
        self._fuel -= 1
        self._record.waited(self._rung.model, self._until, reason)
        return Wait(self._until, self._deadline)

    def _woke(self, _event: Woke) -> Ask:
        self._record.woke()
        if self._expires <= self._now:
            return self._late()
        if not self._rungs and isinstance(self._resumed, Retry):
            return self._go_on(self._resumed)
        return self._call()

    def _left(self, event: Left) -> Ask:
        """It waits on outside; the record says where it will go on."""
        left = max(0.0, self._until - self._now - event.delay)
        if not self._rungs and isinstance(self._resumed, Retry):
            return Finish(self._record.retry_again(self._resumed, event.delay, left))
        rung, place = self._rung.model, (self._endpoint, self._tries, self._waits)
        return Finish(self._record.retry(rung, event.delay, left, place, self.failed_over))

    # -- finish --------------------------------------------------------------------------------------------------

    def _deliver(self, answer: Answer, reply: Reply, score: Score | None) -> Ask:
        held = self.plan.router.held(self._facts)
        if held is not None:
            return self._review(ReviewReason.ALWAYS, held)
        if self.plan.out_of_scope(answer.value):
            return self._refuse(RefusalReason.OUT_OF_SCOPE, f"the answer is {self.plan.task.out_of_scope}")
        share = self.plan.task.review.sample
        propensity = share if share > 0 and self._coin(Purpose.SAMPLE) < share else None
        paid = self._record.paid(self.plan.reference)
        reference_cost = paid or self.plan.reference_cost(self._text, reply.text)
        return Finish(self._record.answered(self._rung.model, answer, score, reference_cost, propensity))

    def _refuse(self, reason: RefusalReason, detail: str) -> Ask:
        return Finish(self._record.refused(reason, detail))

    def _late(self, why: str | None = None) -> Ask:
        if self._expires <= self._now:
            return self._refuse(RefusalReason.EXPIRED, "its expires_at has passed")
        return self._review(ReviewReason.DEADLINE, why or "no model could be reached in time")

    def _review(self, reason: ReviewReason, detail: str) -> Ask:
        return Finish(self._record.review(reason, detail))

    def _never(self, event: Event) -> Ask:
        raise Bug(f"{type(event).__name__} can't reach a cascade that is {self.state.value}")


_POSSIBLE: Mapping[tuple[State, type], Callable[[Cascade, Any], Ask]] = {
    (State.READY, Start): Cascade._begin,
    (State.CALLING, Reply): Cascade._replied,
    (State.CALLING, Failure): Cascade._failed,
    (State.SCORING, Reply): Cascade._scored,
    (State.SCORING, Failure): Cascade._scored,
    (State.WAITING, Woke): Cascade._woke,
    (State.WAITING, Left): Cascade._left,
}

TABLE = {(state, event): _POSSIBLE.get((state, event), Cascade._never) for state in State for event in get_args(Event)}
"""Every (state, event) pair: what the cascade does."""

_STATE_AFTER: Mapping[type, State] = {Wait: State.WAITING, Finish: State.DONE}  # a Call's own state was set with it
