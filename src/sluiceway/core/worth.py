"""Worth: whether a model of a task's ladder costs more for each success than the next one does.

A success is an answer that was delivered and not overturned since (by an audit, a review, a redrive). What all attempts
at the model cost is counted, whatever came of them, over the last jobs that tried it. The next model's price is what it
was measured to cost for each success here, else the most that such a job can cost there by the policy's prices.

Such a model is skipped, or its task pauses, but for a share of the jobs, chosen by their coins: so it is seen when it
gets better. A skip only ever takes a model off a route; no answer is judged by what it costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Annotated

from pydantic import BeforeValidator, Field

from sluiceway.core import ledger
from sluiceway.core.catalog import Frozen
from sluiceway.core.coin import Purpose
from sluiceway.core.outcome import Ending, Result, Retry
from sluiceway.core.quantity import share
from sluiceway.core.trail import Attempt, Role, VerdictKind

PREFIX = "worth: "
"""What each reason begins with, in `left_out` of a route and as the reason of a wait."""

_MEASURED = 30  # jobs that tried the next model, for its price to be a measured one


class Action(StrEnum):
    SKIP = "skip"  # jobs are routed past the model
    PAUSE = "pause"  # jobs wait before it, to their deadline at most
    KEEP = "keep"  # nothing: it is measured only


class Worth(Frozen):
    """What the policy says under a task's `worth:`."""

    action: Annotated[Action, Field(description="skip, pause or keep")] = Action.SKIP
    window: Annotated[int, Field(ge=20, le=100_000, description="jobs that are looked back on, 20 or more")] = 200
    probe: Annotated[
        float,
        BeforeValidator(share),
        Field(gt=0, le=1, description="a share such as 5%: the jobs that use the model all the same"),
    ] = 0.05


@dataclass(frozen=True, slots=True)
class TooDear:
    """A success of a model costs more than one of `instead`, a later rung of the ladder; `reason` tells both."""

    instead: str
    reason: str


NONE: Mapping[str, TooDear] = {}
"""Every model is worth what it costs."""


def skipped(rules: Worth, too_dear: Mapping[str, TooDear], coin: Callable[[Purpose], float]) -> Mapping[str, TooDear]:
    """Those that this job is to be routed past: none where it is a probe."""
    if not too_dear or rules.action is not Action.SKIP or coin(Purpose.PROBE) < rules.probe:
        return NONE
    return too_dear


def paused(rules: Worth, known: TooDear | None, coin: Callable[[Purpose], float]) -> str | None:
    """Why this job waits before a model of which that is `known`; None where it may go on, or is a probe."""
    if known is None or rules.action is not Action.PAUSE or coin(Purpose.PROBE) < rules.probe:
        return None
    return known.reason


@dataclass(slots=True)
class _Tried:
    """One job at one model. `cost` of all its attempts there, in pico-dollars; `tokens` of its largest request."""

    job_id: str
    round: int
    cost: int
    tokens: int
    success: bool


@dataclass(slots=True)
class _Window:
    """The last `size` jobs that tried one model, with their sums."""

    size: int
    jobs: deque[_Tried] = field(default_factory=deque)
    cost: int = 0
    tokens: int = 0
    successes: int = 0

    def add(self, tried: _Tried) -> None:
        self.jobs.append(tried)
        self.cost += tried.cost
        self.tokens += tried.tokens
        self.successes += tried.success
        if len(self.jobs) > self.size:
            gone = self.jobs.popleft()
            self.cost -= gone.cost
            self.tokens -= gone.tokens
            self.successes -= gone.success

    def overturn(self, job_id: str, before: int) -> None:
        for tried in self.jobs:
            if tried.success and tried.job_id == job_id and tried.round < before:
                tried.success = False
                self.successes -= 1


class WorthBoard:
    """What the models of one task cost for each success, as its jobs end in this process.

    `ladder`: its models, the reference last. `worst(model, tokens)`: the most that a job with a request of `tokens` can
    cost at `model`, in pico-dollars.
    """

    def __init__(self, rules: Worth, ladder: Sequence[str], worst: Callable[[str, int], int]) -> None:
        self._judges = rules.action is not Action.KEEP
        self._enough = min(rules.window, _MEASURED)  # jobs that tried the next model, for its price to be measured
        self._reference = ladder[-1]
        self._down = tuple(reversed(ladder[:-1]))  # the other models, from the top down
        # Asked after each job while the next model is not measured, for a mean that seldom changes.
        self._worst = lru_cache(256)(worst)
        self._windows = {model: _Window(rules.window) for model in ladder}
        self._of = {Role.JOBS: frozenset(ladder[:-1]), Role.ESCALATIONS: frozenset(ladder[-1:])}
        self.too_dear: Mapping[str, TooDear] = NONE

    def ended(self, record: Ending, role: Role) -> None:
        """A job left `role`. What it did at each model of that role counts once, when it leaves for good.

        An answer that a gate accepted and a rule holds for a person (`review.always`) counts neither way.
        """
        if isinstance(record, Retry):
            return
        steps, models = record.trail.steps, self._of[role]
        last = steps[-1] if steps else None
        accepted = last.model if isinstance(last, Attempt) and last.verdict is VerdictKind.ACCEPT else None
        held = accepted if not isinstance(record, Result) else None
        found: dict[str, _Tried] = {}
        for step in steps:
            if not isinstance(step, Attempt):
                continue
            model = step.model
            if model not in models or model == held:
                continue
            tokens = 0 if step.prompt is None else step.prompt.tokens
            tried = found.get(model)
            if tried is None:
                found[model] = _Tried(record.job_id, record.round, step.cost_picousd, tokens, model == accepted)
                continue
            tried.cost += step.cost_picousd
            if tokens > tried.tokens:
                tried.tokens = tokens
        for model, tried in found.items():
            self._windows[model].add(tried)
        if found:
            self._judge()

    def overturned(self, job_id: str, before: int) -> None:
        """What was delivered of the job in a round below `before` is no success any more."""
        for window in self._windows.values():
            window.overturn(job_id, before)
        self._judge()

    def prices(self) -> Mapping[str, float]:
        """US dollars for each success, of every model that was tried; infinite where there was none."""
        return {
            model: ledger.usd(window.cost) / window.successes if window.successes else float("inf")
            for model, window in self._windows.items()
            if window.jobs
        }

    def _judge(self) -> None:
        """From the top down, so that each is held to the next one that is used."""
        if not self._judges:
            return
        found: dict[str, TooDear] = {}
        instead = self._reference
        for model in self._down:
            window = self._windows[model]
            if len(window.jobs) == window.size:
                cost, successes = self._price(instead, window)
                if window.cost * successes > cost * window.successes:
                    found[model] = TooDear(instead, _reason(window, instead, cost, successes))
                    continue
            instead = model
        self.too_dear = found or NONE

    def _price(self, model: str, such: _Window) -> tuple[int, int]:
        """Pico-dollars at `model` and the successes they bought: measured, else the worst for jobs as in `such`."""
        known = self._windows[model]
        if len(known.jobs) >= self._enough:
            return known.cost, known.successes
        return self._worst(model, -(-such.tokens // len(such.jobs))), 1


def _reason(window: _Window, instead: str, cost: int, successes: int) -> str:
    theirs = f"{ledger.usd(cost) / successes:.3g} USD at {instead}"
    if not window.successes:
        return f"{PREFIX}{ledger.usd(window.cost):.3g} USD and no success in {len(window.jobs)} jobs, {theirs}"
    return f"{PREFIX}{ledger.usd(window.cost) / window.successes:.3g} USD a success, {theirs}"
