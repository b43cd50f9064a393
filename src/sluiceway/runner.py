"""The runner: the one loop that performs what a job's cascade asks, and feeds back what came of it.

It keeps what cascades share (the policy in use, health, budgets, failed shares) and decides nothing itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sluiceway.core import job as jobs
from sluiceway.core import ledger
from sluiceway.core.call import CACHED, Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Ask, Cascade, Conditions, Finish, Left, Role, State, Wait, Woke
from sluiceway.core.coin import Purpose, coin
from sluiceway.core.errors import InputError
from sluiceway.core.health import FailedShare, HealthBoard
from sluiceway.core.job import Job
from sluiceway.core.leave import NEVER, Leaving
from sluiceway.core.ledger import DayBudget
from sluiceway.core.outcome import Ending, HandOver, Retry
from sluiceway.core.plan import Plan, compile_plans
from sluiceway.core.policy import Policy
from sluiceway.core.worth import WorthBoard
from sluiceway.ports import Clock, Journal, Meter, Models, NoJournal, Tokens, Tracer

_LONG = 50_000  # characters of a job whose text is read, cut and hashed beside the loop


class Runner:
    """Runs jobs under one policy. `secret` feeds the coins; `language` tells a text's ISO 639-1 code.

    `leaving`: which waits end in a retry topic instead of being slept.
    """

    def __init__(
        self,
        policy: Policy,
        models: Models,
        *,
        clock: Clock,
        tokens: Tokens,
        meter: Meter,
        secret: bytes,
        language: Callable[[str], str] | None = None,
        journal: Journal | None = None,
        leaving: Leaving = NEVER,
        tracer: Tracer | None = None,
    ) -> None:
        self.policy = policy
        self.plans = compile_plans(policy, tokens)
        self._models = models
        self._clock = clock
        self._meter = meter
        self._secret = secret
        self._language = language
        self._journal: Journal = journal or NoJournal()
        self._leaving = leaving
        self._tracer = tracer
        self._health = HealthBoard()
        self._usual = Conditions(self._health.view())
        self._shares = {name: FailedShare(task.failed_share) for name, task in policy.tasks.items()}
        self._days = {
            name: DayBudget(ledger.from_usd(Decimal(str(task.budget.usd_per_day))), ZoneInfo(task.budget.timezone))
            for name, task in policy.tasks.items()
            if task.budget.usd_per_day is not None
        }
        self._worth = {
            name: WorthBoard(plan.task.worth, [rung.model for rung in plan.task.ladder], plan.worst_at)
            for name, plan in self.plans.items()
        }
        self.spent = 0  # pico-dollars, in this process
        self.waiting: Counter[Role] = Counter()  # jobs that sleep by rule now: no work is held by them

    @property
    def days(self) -> Mapping[str, DayBudget]:
        """The budgets of the day, by task; whoever shares them with other workers grants what may be spent here."""
        return self._days

    @property
    def worth(self) -> Mapping[str, WorthBoard]:
        """What each task's models cost for each success, in this process."""
        return self._worth

    def run(self, job: Job, role: Role = Role.JOBS) -> Coroutine[Any, Any, Ending]:
        """What this round of `job` comes to in `role`; its task must be one of the policy's."""
        return self._traced(job, role, None)

    async def resume(self, handed: HandOver) -> Ending:
        """What the reference makes of an escalated job, or its role of one that comes back, from its trail on.

        Raises InputError("invalid") where what was handed over is not of one job.
        """
        trail = handed.trail
        job = jobs.admit(handed.job, origin=trail.origin, default_id=handed.job_id, published_at=trail.taken_at)
        if (job.task, job.id, job.round) != (handed.task, handed.job_id, handed.round):
            raise InputError("invalid", "its job is another one than the record's task, job_id and round say")
        role = handed.role if isinstance(handed, Retry) else Role.ESCALATIONS
        return await self._traced(job, role, handed)

    def _traced(self, job: Job, role: Role, resumed: HandOver | None) -> Coroutine[Any, Any, Ending]:
        climb = self._climb(self.plans[job.task], job, role, resumed)
        return climb if self._tracer is None else self._tracer.job(job, role, climb)

    async def _climb(self, plan: Plan, job: Job, role: Role, resumed: HandOver | None) -> Ending:
        def tossed(purpose: Purpose) -> float:
            return coin(self._secret, purpose, job.origin)

        # Counting the tokens of a megabyte takes a tenth of a second, for which the neighbours would stand still.
        size = len(job.text) if not job.context else len(job.text) + sum([len(part.text) for part in job.context])
        beside = size > _LONG
        text = await asyncio.to_thread(plan.prompt.read, job) if beside else None
        cascade = Cascade(plan, job, role, tossed, resumed, text)
        language = self._language(job.text) if self._language is not None and plan.router.needs_language else "und"
        share = self._shares[job.task]
        now = self._clock.now()
        counted = False
        if isinstance(resumed, Retry):
            counted = resumed.failed_over
        else:
            if resumed is None:  # the minute in which it was new has counted it
                share.job(now)
            if job.round:  # somebody opened another round: what was delivered before it no longer stands
                self._worth[job.task].overturned(job.id, job.round)
        known = self._conditions(job.task, now, language, beside=beside)
        ask = await asyncio.to_thread(cascade.start, now, known) if beside else cascade.start(now, known)
        while True:
            if beside and isinstance(ask, Call):
                ask = self._still_fits(ask, cascade, plan, now)
            if cascade.failed_over and not counted:
                counted = True
                share.failed(now)
            if isinstance(ask, Finish):
                break
            event = await (self._wait(ask, now, role) if isinstance(ask, Wait) else self._perform(ask, plan, job))
            now = self._clock.now()
            known = self._conditions(job.task, now, language, beside=beside)
            ask = (
                await asyncio.to_thread(cascade.receive, event, now, known)
                if beside
                else cascade.receive(event, now, known)
            )
        self._worth[job.task].ended(ask.record, role)
        self._meter.finished(ask.record, known=0 if resumed is None else len(resumed.trail.steps))
        return ask.record

    def _conditions(self, task: str, now: float, language: str, *, beside: bool = False) -> Conditions:
        """`beside`: what goes on changing in the loop is copied for whoever reads it beside the loop."""
        day = self._days.get(task)
        left = None if day is None else day.left(now)
        health, too_dear, may_fail = self._health.view(), self._worth[task].too_dear, self._shares[task].allows(now)
        if beside:
            health, too_dear = dict(health), dict(too_dear)
        elif left is None and may_fail and language == "und" and not too_dear:
            return self._usual
        return Conditions(health, left, may_fail, language, too_dear)

    def _still_fits(self, ask: Call, cascade: Cascade, plan: Plan, now: float) -> Ask:
        """The call, or what is to be done instead: others may have spent while it was decided on beside the loop."""
        day = self._days.get(plan.task.name)
        if day is None or cascade.state is not State.CALLING:
            return ask
        left = day.left(now)
        return ask if plan.worst_cost(ask.model.name, ask.request) <= left else cascade.unpaid(left)

    async def _wait(self, ask: Wait, now: float, role: Role) -> Woke | Left:
        """Sleeps, unless the job is to leave."""
        delay = self._leaving.through(ask.until - now, ask.deadline - now, self.waiting[role])
        if delay is not None:
            return Left(delay)
        self.waiting[role] += 1
        try:
            await self._clock.sleep_until(ask.until)
        finally:
            self.waiting[role] -= 1
        return Woke()

    async def _perform(self, ask: Call, plan: Plan, job: Job) -> Reply | Failure:
        """What came of the call, for which its worst cost is reserved from the day's budget until it has come."""
        entry = self._journal.entry(job, ask)
        if entry is not None and entry.reply is not None:
            return entry.reply
        day = self._days.get(job.task)
        worst = counted = 0
        if day is not None:
            worst = plan.worst_cost(ask.model.name, ask.request)
            day.reserve(worst)  # before anything is awaited: others would decide on the same money
        try:
            if entry is not None:
                await entry.started()  # on record first, where it is to be remembered
            event = await self._models.call(ask)
            actual = self._paid(ask.model.name, event, plan)
            if entry is not None:
                entry.ended(event)
            # The endpoint may bill what no count came back of; trails and `spent` hold what was metered alone.
            counted = worst if day is not None and ledger.lost(event) else actual
        except asyncio.CancelledError:
            counted = worst  # it may have been sent
            raise
        finally:
            if day is not None:
                day.settle(worst, counted, self._clock.now())
        return event

    def _paid(self, name: str, event: Reply | Failure, plan: Plan) -> int:
        """A call to model `name` has ended: what it cost, in pico-dollars, which is counted, as is what it says."""
        actual = ledger.cost(event.usage, plan.prices[name])
        self.spent += actual
        # A call refused as invalid says something of itself, and one that came too fast something of us.
        # A kept answer says nothing at all, and a copy what another has said: one call is one observation.
        if not event.copy and (
            event.endpoint != CACHED if isinstance(event, Reply) else event.kind is FailureKind.TRANSIENT
        ):
            failed = isinstance(event, Failure)
            self._health.observe(name, event.seconds, failed=failed, now=self._clock.now())
        return actual
