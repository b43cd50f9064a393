"""The route: which models of the ladder this job may use, in order, and why each other one is left out.

Decided before any call, on measured facts, what the job declares, and the models' health; never on what a text says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sluiceway.core.catalog import Api, Clearance, Level, Model
from sluiceway.core.health import Health
from sluiceway.core.job import Job
from sluiceway.core.outcome import RefusalReason
from sluiceway.core.rule import Facts, Rule, parse
from sluiceway.core.task import Rung, Task
from sluiceway.core.value import value
from sluiceway.core.worth import NONE, TooDear

_DOWN = "health: it has just failed several times in a row"
_KEPT = 1024  # routes that are remembered


@value
class Route:
    """`rungs` in the ladder's order; `left_out`: each other model and its reason; `rule` is what raised the start."""

    rungs: tuple[Rung, ...]
    left_out: Mapping[str, str]
    rule: str | None = None

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Their names. Kept, as most jobs of a task share one route."""
        return tuple([rung.model for rung in self.rungs])


@dataclass(frozen=True, slots=True)
class NoRoute:
    """No model may serve this job: a refusal."""

    reason: RefusalReason
    detail: str
    left_out: Mapping[str, str]


class Router:
    """One task's routing, its rules parsed once."""

    def __init__(self, task: Task, models: Mapping[str, Model]) -> None:
        self._task = task
        self._models = models
        self._start: tuple[tuple[Rule, int], ...] = tuple(
            (parse(start.when), self._position(start.at)) for start in task.start
        )
        self._refuse = tuple((parse(refuse.when), refuse.why) for refuse in task.refuse)
        self._always = tuple(parse(text) for text in task.review.always)
        self._levels = (task.stakes, task.priority, task.risk, task.clearance)
        self._reference = task.reference.model
        self._uncut = task.trim == "none"
        rules = [rule for rule, _ in (*self._start, *self._refuse)] + list(self._always)
        self.needs_language = any("language" in rule.facts for rule in rules)
        # All but health and worth follows from a few facts that most jobs share.
        self._usual = lru_cache(_KEPT)(self._standing)

    def _position(self, name: str) -> int:
        return next(number for number, rung in enumerate(self._task.ladder) if rung.model == name)

    def facts(self, job: Job, tokens: int, language: str = "und") -> Facts:
        """What rules can see of `job`: its levels are the higher of its own and the task's."""
        stakes, priority, risk, clearance = self._levels
        if job.stakes is not None:
            stakes = Level(max(job.stakes, stakes))
        if job.priority is not None:
            priority = Level(max(job.priority, priority))
        if job.clearance is not None:
            clearance = Clearance(max(job.clearance, clearance))
        chars, context = len(job.text), len(job.context)
        return Facts(tokens, chars, context, stakes, priority, risk, clearance, job.fields, language)

    def held(self, facts: Facts) -> str | None:
        """The text of the first review.always rule that holds, None where none does."""
        for rule in self._always:
            if rule.holds(facts):
                return rule.text
        return None

    def plan(
        self,
        job: Job,
        facts: Facts,
        health: Mapping[str, Health],
        now: float,
        left: float,
        too_dear: Mapping[str, TooDear] = NONE,
    ) -> Route | NoRoute:
        """The route of `job` with `left` seconds to its deadline, or why there is none.

        A model that is down is left out only where another cheap one remains: else the cascade treats it as a failed
        rung, so that an outage of the cheap tier does not send everything to the reference past `failed_share`. One
        that is too slow is left out only where any other remains, and one that is too dear where the one to be used
        instead does, and is up.
        """
        for rule, why in self._refuse:
            if rule.holds(facts):
                return NoRoute(RefusalReason.FORBIDDEN, why or f"the policy refuses: {rule.text}", {})
        lowest, chosen = 0, None
        for rule, position in self._start:
            if position > lowest and rule.holds(facts):
                lowest, chosen = position, rule.text
        tokens = facts.tokens if self._uncut else 0
        route = self._usual(facts.clearance, bool(job.context), tokens, lowest, chosen)
        unwell = self._unwell(health, now, left)
        if isinstance(route, NoRoute) or not (unwell or too_dear):
            return route
        left_out, rungs = dict(route.left_out), list(route.rungs)
        if unwell:
            cheap = [rung for rung in rungs if rung.model != self._reference]
            slow = {rung.model: reason for rung in cheap if (reason := self._too_slow(health.get(rung.model), left))}
            down = {rung.model: _DOWN for rung in cheap if rung.model not in slow and self._down(rung, health, now)}
            left_out |= (slow if len(slow) < len(rungs) else {}) | (down if len(slow | down) < len(cheap) else {})
            rungs = [rung for rung in rungs if rung.model not in left_out]
        if too_dear:
            there = {rung.model for rung in rungs if not self._down(rung, health, now)}
            dear = {rung.model: known for rung in rungs if (known := too_dear.get(rung.model))}
            left_out |= {model: known.reason for model, known in dear.items() if known.instead in there}
            rungs = [rung for rung in rungs if rung.model not in left_out]
        return Route(tuple(rungs), left_out, chosen)

    def _standing(
        self, clearance: Clearance, context: bool, tokens: int, lowest: int, chosen: str | None
    ) -> Route | NoRoute:
        """The route while all is well. `context`: passages came with the job; `tokens`: of a text that is not cut."""
        left_out: dict[str, str] = {}
        rungs: list[Rung] = []
        for position, rung in enumerate(self._task.ladder):
            reason = self._barred(rung, clearance, context, tokens)
            if reason is None and position < lowest:
                reason = f"rule: {chosen}"
            if reason is None:
                rungs.append(rung)
            else:
                left_out[rung.model] = reason
        if not rungs:
            return self._nothing(clearance, left_out, chosen)
        return Route(tuple(rungs), left_out, chosen)

    def _nothing(self, clearance: Clearance, left_out: Mapping[str, str], chosen: str | None) -> NoRoute:
        cause = f" (the rule {chosen!r} left out the cheaper ones)" if chosen else ""
        if any(reason.startswith("clearance") for reason in left_out.values()):
            word = clearance.name.lower()
            return NoRoute(
                RefusalReason.NO_CLEARED_MODEL, f"no model that could serve it may see {word} data{cause}", left_out
            )
        return NoRoute(RefusalReason.TOO_LONG, f"no model can take this job{cause}", left_out)

    def _barred(self, rung: Rung, clearance: Clearance, context: bool, tokens: int) -> str | None:
        """Why `rung` may never serve such a job, None where it may."""
        model = self._models[rung.model]
        if model.clearance < clearance:
            return f"clearance: {model.clearance.name.lower()} < {clearance.name.lower()}"
        if model.api in (Api.LOCAL, Api.RECORDED) and context:
            return "capability: it reads no context passages"
        window = min(rung.input_tokens or model.context_window, model.context_window - model.params.max_tokens)
        if self._task.trim == "none" and tokens > window:
            return f"context window: {tokens} tokens > {window}"
        return None

    @staticmethod
    def _unwell(health: Mapping[str, Health], now: float, left: float) -> bool:
        """Whether any model is down, or too slow for what is left."""
        for known in health.values():  # noqa: SIM110  a generator would cost each job several times as much
            if known.out_until > now or (known.p95 is not None and known.p95 > left):
                return True
        return False

    @staticmethod
    def _too_slow(known: Health | None, left: float) -> str | None:
        if known is None or known.p95 is None or known.p95 <= left:
            return None
        return f"deadline: p95 {known.p95:.1f} s > {left:.1f} s left"

    @staticmethod
    def _down(rung: Rung, health: Mapping[str, Health], now: float) -> bool:
        known = health.get(rung.model)
        return known is not None and known.out_until > now
