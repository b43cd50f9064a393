"""Coming back: where on its route a job goes on that had left to wait, perhaps under another policy.

What it paid for is never paid again. Under the policy it left with it goes on exactly as if it had slept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sluiceway.core.health import Health
from sluiceway.core.job import Job
from sluiceway.core.outcome import Retry
from sluiceway.core.plan import Plan
from sluiceway.core.route import NoRoute, Route
from sluiceway.core.rule import Facts
from sluiceway.core.task import Rung
from sluiceway.core.trail import Attempt, Role, Routed, Trail, Waited


def steps_at(trail: Trail, model: str) -> int:
    """How many calls and waits the trail holds at `model`'s rung."""
    return sum(1 for step in trail.steps if isinstance(step, Attempt | Waited) and step.model == model)


def draws_at(trail: Trail, model: str) -> list[Attempt]:
    """The draws of a vote at `model`'s rung that is not decided yet."""
    return [attempt for attempt in trail.attempts if attempt.model == model and attempt.reason == "vote"]


def route_again(
    plan: Plan, job: Job, facts: Facts, health: Mapping[str, Health], now: float, left: float, retry: Retry
) -> Route | NoRoute:
    """The route as it was planned, where `plan` is of the same policy; else a new one, which says why `retry.rung` is
    not on it."""
    former = _former(retry)
    if former is not None and former.policy == plan.digest:
        rungs = tuple([rung for rung in plan.task.ladder if rung.model in former.models])
        return Route(rungs, former.left_out, former.rule)
    route = plan.router.plan(job, facts, health, now, left)
    if isinstance(route, Route) and retry.rung not in {rung.model for rung in rungs_of(plan, route, retry.role)}:
        known = any(rung.model == retry.rung for rung in plan.task.ladder)
        why = "it is the reference now" if known else "the ladder does not have it any more"
        route = replace(route, left_out={retry.rung: why, **route.left_out})
    return route


def onward(plan: Plan, route: Route, retry: Retry) -> tuple[Rung, ...]:
    """The rungs still to be tried: the one it waited at, if it may, and those after it that have no attempt yet."""
    names = [rung.model for rung in plan.task.ladder]
    former = _former(retry)
    models = () if former is None else former.models
    later = models[models.index(retry.rung) + 1 :] if retry.rung in models else ()
    start = next((names.index(name) for name in (retry.rung, *later) if name in names), 0)
    tried = {attempt.model for attempt in retry.trail.attempts} - {retry.rung}
    after = set(names[start:]) - tried
    return tuple([rung for rung in rungs_of(plan, route, retry.role) if rung.model in after])


def rungs_of(plan: Plan, route: Route, role: Role) -> tuple[Rung, ...]:
    """The reference, which stands last, is the escalations role's alone, and its only one."""
    rungs = route.rungs
    cheap = len(rungs) - 1 if rungs and rungs[-1].model == plan.reference else len(rungs)
    return rungs[cheap:] if role is Role.ESCALATIONS else rungs[:cheap]


def _former(retry: Retry) -> Routed | None:
    """The route that it left with."""
    steps = [step for step in retry.trail.steps if isinstance(step, Routed) and step.role == retry.role.value]
    return steps[-1] if steps else None
