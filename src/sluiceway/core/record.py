"""Recording: the steps of one cascade, and the record it ends in. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sluiceway.core import ledger
from sluiceway.core.answer import Answer
from sluiceway.core.call import Failure, Reply
from sluiceway.core.catalog import CLEARANCE_NAMES, LEVEL_NAMES
from sluiceway.core.conditions import USUAL, Conditions
from sluiceway.core.errors import Bug
from sluiceway.core.job import Job
from sluiceway.core.outcome import (
    BAR_NOT_PROVED,
    Candidate,
    Escalation,
    HandOver,
    RefusalReason,
    Result,
    Retry,
    Review,
    ReviewReason,
    Sampled,
    Status,
    outcome_id,
)
from sluiceway.core.plan import Plan
from sluiceway.core.route import NoRoute, Route
from sluiceway.core.rule import Facts
from sluiceway.core.trail import (
    Attempt,
    EscalationReason,
    PromptFacts,
    Role,
    Routed,
    Score,
    Step,
    Trail,
    VerdictKind,
    Waited,
    bounded_reply,
)


class Recorder:
    """Keeps the trail of one cascade, from that of the hand-over it resumes."""

    def __init__(self, plan: Plan, job: Job, role: Role, resumed: HandOver | None) -> None:
        self._plan, self._job, self._role, self._resumed = plan, job, role, resumed
        self._steps: list[Step] = [] if resumed is None else list(resumed.trail.steps)
        self._replies = sum(len((attempt.reply or "").encode()) for attempt in resumed.trail.attempts) if resumed else 0
        self._now = 0.0
        self._conditions = USUAL
        self._taken_at = 0.0
        self._deadline = 0.0
        self._called: tuple[str, PromptFacts, float] | None = None
        self._context_use: float | None = None  # of the last attempt; to six decimals, None where none was metered
        self._distributions = dict(resumed.distributions) if isinstance(resumed, Retry) else {}
        self.spent = 0 if resumed is None else resumed.trail.cost_picousd  # pico-dollars

    def tick(self, now: float, conditions: Conditions) -> None:
        """An event came at `now`: what is recorded until the next one is decided under `conditions`."""
        self._now, self._conditions = now, conditions

    def decided_anew(self, day_left: int) -> Conditions:
        """What follows from the last step is decided again, at the same instant, with only `day_left` of the day left.

        The step says so; these are its conditions.
        """
        self._conditions = replace(self._conditions, day_left=day_left)
        seen, step = self._conditions.unusual(self._now), self._steps[-1]
        if isinstance(step, Routed):
            self._steps[-1] = replace(step, facts={**step.facts, **(seen or {})})
        else:
            self._steps[-1] = replace(step, conditions=seen)
        return self._conditions

    def begin(self, deadline: float) -> None:
        self._taken_at = self._now if self._resumed is None else self._resumed.trail.taken_at
        self._deadline = deadline

    def routed(self, route: Route | NoRoute, facts: Facts) -> None:
        known: dict[str, Any] = {
            "tokens": facts.tokens,
            "chars": facts.chars,
            "stakes": LEVEL_NAMES[facts.stakes],
            "priority": LEVEL_NAMES[facts.priority],
            "risk": LEVEL_NAMES[facts.risk],
            "clearance": CLEARANCE_NAMES[facts.clearance],
            "fields": sorted(facts.fields),
            "context": facts.context,
            "deadline": self._deadline,
        }
        if facts.language != "und":
            known["language"] = facts.language
        if seen := self._conditions.unusual(self._now):
            known |= seen
        health = self._conditions.health
        p95 = {name: health[name].p95 for name in self._plan.limits if name in health}
        if p95:
            known["p95"] = p95
        models, rule, reason = (
            (route.models, route.rule, None) if isinstance(route, Route) else ((), None, route.detail)
        )
        self._steps.append(
            Routed(self._now, str(self._role), self._plan.digest, models, route.left_out, rule, known, reason)
        )

    def leave_out(self, model: str, reason: str) -> None:
        """A planned rung turned out not to fit: the last route says so."""
        for number in range(len(self._steps) - 1, -1, -1):
            step = self._steps[number]
            if isinstance(step, Routed):
                left = tuple(name for name in step.models if name != model)
                out = {**step.left_out, model: reason}
                self._steps[number] = Routed(
                    step.at, step.role, step.policy, left, out, step.rule, step.facts, step.reason
                )
                return

    def waited(self, model: str, until: float, reason: str) -> None:
        self._steps.append(Waited(self._now, until, reason, model=model))

    def waits_on(self, until: float) -> None:
        """The same wait goes on: it began in another worker, or before the job left."""
        self._steps[-1] = replace(self._wait(), until=until)

    def woke(self) -> None:
        """The wait is over: the last step says when and under which conditions the job went on."""
        self._steps[-1] = replace(self._wait(), ended=self._now, conditions=self._conditions.unusual(self._now))

    def _wait(self) -> Waited:
        step = self._steps[-1] if self._steps else None
        if not isinstance(step, Waited):
            raise Bug("a job woke that did not wait")
        return step

    def called(self, model: str, prompt: PromptFacts) -> None:
        """A call goes out; `replied` or `failed` will say what came of it."""
        self._called = model, prompt, self._now

    def replied(
        self, reply: Reply, answer: Answer | None, score: Score | None, verdict: VerdictKind, reason: str | None
    ) -> None:
        text, sha256, held = bounded_reply(reply.text, self._replies)
        self._replies += held
        attempt = self._attempt(reply, verdict, reason, answer, score, text, sha256)
        if reply.distribution is not None:
            self._distributions[attempt.model] = reply.distribution

    def failed(self, failure: Failure, verdict: VerdictKind) -> None:
        self._attempt(failure, verdict, EscalationReason.FAILED.value)

    def _attempt(
        self,
        event: Reply | Failure,
        verdict: VerdictKind,
        reason: str | None,
        answer: Answer | None = None,
        score: Score | None = None,
        text: str | None = None,
        sha256: str | None = None,
    ) -> Attempt:
        if self._called is None:
            raise Bug("a reply came to a call that was not recorded")
        model, prompt, at = self._called
        known, usage = self._plan.models[model], event.usage
        cost = ledger.cost(usage, self._plan.prices[model])
        tokens = usage.input + usage.output
        self.spent += cost
        self._context_use = round(tokens / known.context_window, 6) if tokens else None
        reply, failure = (event, None) if isinstance(event, Reply) else (None, event)
        # By position, in the order of the fields: so many keywords would cost each job more than a microsecond.
        attempt = Attempt(
            model,
            known.tier,
            at,
            self._now - at if self._now > at else 0.0,
            verdict,
            reason,
            self._plan.digest,
            event.endpoint,
            "" if reply is None else reply.model_served,
            "" if reply is None else reply.response_id,
            None if answer is None else answer.value,
            score,
            text,
            sha256,
            None if reply is None else str(reply.finish),
            None if failure is None else f"{failure.kind.value}: {failure.detail}",
            None if failure is None else failure.retry_after,
            None if reply is None else _top(reply.distribution),
            usage,
            cost,
            prompt,
            self._conditions.unusual(self._now),
            self._context_use,
            None if reply is None or reply.packed == 1 else reply.packed,
        )
        self._steps.append(attempt)
        return attempt

    def paid(self, model: str) -> int:
        """Pico-dollars that attempts at `model` cost."""
        paid = 0
        for step in self._steps:
            if isinstance(step, Attempt) and step.model == model:
                paid += step.cost_picousd
        return paid

    def keep_distribution(self, model: str, distribution: Mapping[str, float]) -> None:
        self._distributions[model] = distribution

    def distribution(self, model: str) -> Mapping[str, float] | None:
        """What local model `model` already said of this job."""
        return self._distributions.get(model)

    def trail(self, later: float = 0.0) -> Trail:
        """The trail as it will be handed on in `later` seconds."""
        remaining = self._deadline - self._now - later
        steps = tuple(self._steps)
        return Trail(self._job.origin, self._taken_at, remaining if remaining > 0.0 else 0.0, steps)

    def answered(
        self, model: str, answer: Answer, score: Score | None, reference_cost: int, propensity: float | None
    ) -> Result:
        job, plan, spent = self._job, self._plan, self.spent
        # As most jobs end here: by position, in the order of the fields.
        return Result(
            outcome_id(job.id, job.round),
            job.id,
            job.round,
            job.task,
            Status.ANSWERED,
            plan.digest,
            self._now,
            self.trail(),
            spent,
            ledger.usd(spent),
            None,
            None,
            answer.value,
            model,
            plan.models[model].tier,
            None if score is None else score.value,
            self._escalated,
            None if plan.task.bar is None else BAR_NOT_PROVED,
            reference_cost,
            None if propensity is None else Sampled(propensity, self._published(job)),
            job.tenant,
            reference_cost - spent,
            self._context_use,
        )

    def refused(self, reason: RefusalReason, detail: str) -> Result:
        policy, now, trail, spent, usd = self._account()
        return Result(
            *self._head(),
            Status.REFUSED,
            policy,
            now,
            trail,
            spent,
            usd,
            reason,
            detail,
            escalated=self._escalated,
            tenant=self._job.tenant,
        )

    def review(self, reason: ReviewReason, detail: str) -> Review:
        candidates = tuple(
            Candidate(step.model, step.answer, step.score.value if step.score else None, step.verdict.value)
            for step in self._steps
            if isinstance(step, Attempt) and step.answer is not None
        )
        policy, now, trail, spent, usd = self._account()
        return Review(
            *self._head(),
            reason,
            policy,
            now,
            trail,
            spent,
            usd,
            self._published(self._job),
            candidates,
            detail,
            self._escalated,
            self._job.tenant,
        )

    def escalation(self, reason: EscalationReason, detail: str | None) -> Escalation:
        job = self._job
        return Escalation(
            job.id, job.round, job.task, reason, self._plan.digest, self.trail(), self._published(job), detail
        )

    def retry(self, rung: str, delay: float, left: float, place: tuple[int, int, int], failed_over: bool) -> Retry:
        """`place`: endpoint, tries there, waits of this role."""
        job = self._job
        endpoint, tries, waits = place
        return Retry(
            job_id=job.id,
            round=job.round,
            task=job.task,
            role=self._role,
            rung=rung,
            delay=delay,
            left=left,
            endpoint=endpoint,
            tries=tries,
            waits=waits,
            policy=self._plan.digest,
            trail=self.trail(delay),
            job=self._published(job),
            failed_over=failed_over,
            escalated=self._escalated,
            distributions=self._distributions,
        )

    def retry_again(self, before: Retry, delay: float, left: float) -> Retry:
        """For a job that came back before its wait was over and leaves once more."""
        return replace(before, delay=delay, left=left, trail=self.trail(delay))

    @property
    def _escalated(self) -> EscalationReason | None:
        """Why the job is in this role, None where it came from its publisher."""
        match self._resumed:
            case None:
                return None
            case Escalation(reason=reason):
                return reason
            case Retry(escalated=reason):
                return reason

    def _head(self) -> tuple[str, str, int, str]:
        """What each outcome begins with: its id, and the job's id, round and task."""
        job = self._job
        return outcome_id(job.id, job.round), job.id, job.round, job.task

    def _account(self) -> tuple[str, float, Trail, int, float]:
        """What follows in each: the policy, when it ended, its trail, and what it cost."""
        return self._plan.digest, self._now, self.trail(), self.spent, ledger.usd(self.spent)

    @staticmethod
    def _published(job: Job) -> dict[str, Any]:
        """The job as its publisher wrote it, with the id it was given."""
        return {**job.raw, "id": job.id, "task": job.task, "round": job.round}


def _top(distribution: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """The most likely labels of a local classifier: enough to read, not the whole vector."""
    if distribution is None or len(distribution) <= 5:
        return distribution
    return dict(sorted(distribution.items(), key=lambda item: -item[1])[:5])
