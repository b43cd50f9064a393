"""Held against gold: how often answers are right, and what the first gate would do at ten thresholds.

Computed from recorded attempts. A job that a threshold would send to the reference, and whose reference was never
asked, counts as unknown; only a recorded reference is asked for it, since that costs nothing: those calls are
evaluation and stand in no ledger. Everything a threshold refuses is taken to be answered by the reference.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import orjson

from sluiceway.archive.backlog import Backlog, Row
from sluiceway.archive.outcomes import Whose
from sluiceway.core import ledger
from sluiceway.core.answer import Answer
from sluiceway.core.call import Call, Reply
from sluiceway.core.catalog import Api
from sluiceway.core.errors import InputError
from sluiceway.core.plan import Plan
from sluiceway.core.task import Kind
from sluiceway.ports import Models
from sluiceway.replay.run import whose_outcome

THRESHOLDS = 10
_LOOKED_AT = 1000  # rows


@dataclass(frozen=True, slots=True)
class Judged:
    """One job with gold. `None`: the first rung gave no scored answer; nobody knows what the reference would say.

    A model that was asked and gave no answer is not right. Costs are pico-dollars;
    `reference_cost` is an estimate by our own token counts where the reference was not paid.
    """

    score: float | None
    cheap_right: bool
    cheap_cost: int
    reference_right: bool | None
    reference_cost: int


@dataclass(frozen=True, slots=True)
class Point:
    """The first gate at one threshold. `accuracy` is over those where it is known; `unknown` is the others' share."""

    threshold: float
    escalated: float
    accuracy: float | None
    unknown: float
    cost_picousd: int
    cost_share: float | None  # of the all-reference cost
    policy: bool = False  # the policy's own threshold


@dataclass(frozen=True, slots=True)
class Held:
    """One task held against gold. `right` of `answered` were delivered; `left_out` had gold but nothing to judge."""

    task: str
    gold: int
    answered: int
    right: int
    left_out: int
    evaluated: int  # references asked for this table alone
    first: str
    reference: str
    reference_alone: Point | None  # every job answered by it, none by the first rung
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def require(backlog: Backlog, column: str) -> None:
    """Raises InputError where none of the first rows has `column`: to be asked before any call is paid for."""
    first = [row for row in islice(backlog.rows(), _LOOKED_AT) if isinstance(row, Row)]
    if first and not any(column in row.fields for row in first):
        known = ", ".join(map(str, first[0].fields))
        raise InputError("gold", f"{backlog.path}: no column {column!r}. Mend: --gold names one of {known}")


async def hold(
    backlog: Backlog, column: str, plans: Mapping[str, Plan], models: Models, lines: Iterable[Mapping[str, Any]]
) -> list[Held]:
    """Each task of the replay held against the gold in `column`; rows without it count for nothing."""
    outcomes = {Whose.of(line).digest: _Outcome.of(line) for line in lines if "trail" in line}
    found: dict[str, _Tally] = {}
    for row in backlog.rows():
        if not isinstance(row, Row):
            continue
        outcome = outcomes.pop(whose_outcome(row).digest, None)
        plan = plans.get(row.job.task)
        gold = row.fields.get(column)
        if outcome is not None and plan is not None and gold not in (None, ""):
            await found.setdefault(row.job.task, _Tally(plan)).add(row, gold, outcome, models)
    return [tally.held() for tally in found.values()]


def gold_answer(plan: Plan, gold: Any) -> bytes:
    """What an answer is compared with: the gold cell, read as the task's kind of answer."""
    task = plan.task
    if isinstance(gold, str) and gold.lstrip().startswith(("{", "[")):
        with contextlib.suppress(orjson.JSONDecodeError):  # else it is text that begins with a bracket
            gold = orjson.loads(gold)
    if isinstance(gold, dict):
        return plan.reader.compare(gold)
    if task.kind is Kind.TAGS and isinstance(gold, str):
        gold = [tag.strip() for tag in gold.split(";" if ";" in gold else ",") if tag.strip()]
    only = next(iter(task.compared), "")
    return plan.reader.compare({only: gold.strip() if isinstance(gold, str) else gold})


def points(judged: Sequence[Judged], own: float | None) -> tuple[Point, ...]:
    """The first gate at ten thresholds: tenths of the jobs' scores, the policy's own among them."""
    everything = sum(job.reference_cost for job in judged)
    return tuple(_point(judged, line, everything, own) for line in _thresholds(judged, own)) if judged else ()


def _point(judged: Sequence[Judged], threshold: float, everything: int, own: float | None) -> Point:
    known = right = escalated = cost = 0
    for job in judged:
        accepted = job.score is not None and job.score >= threshold
        verdict = job.cheap_right if accepted else job.reference_right
        known += verdict is not None
        right += verdict is True
        escalated += not accepted
        cost += job.cheap_cost + (0 if accepted else job.reference_cost)
    return Point(
        threshold=threshold,
        escalated=escalated / len(judged),
        accuracy=right / known if known else None,
        unknown=1 - known / len(judged),
        cost_picousd=cost,
        cost_share=cost / everything if everything else None,
        policy=threshold == own,
    )


def reference_alone(judged: Sequence[Judged]) -> Point | None:
    """What the reference would have done with every job."""
    if not judged:
        return None
    alone = [replace(job, score=None, cheap_cost=0) for job in judged]
    return _point(alone, 1.0, sum(job.reference_cost for job in judged), None)


def _thresholds(judged: Sequence[Judged], own: float | None) -> list[float]:
    """Ten different ones. Rounded down to four decimals, so that a printed one can be copied into a policy."""
    scores = sorted(job.score for job in judged if job.score is not None)
    tenths = [math.floor(scores[len(scores) * k // 10] * 10_000) / 10_000 for k in range(10)] if scores else []
    chosen = [] if own is None else [own]
    if own is not None and tenths:
        tenths.remove(min(tenths, key=lambda tenth: abs(tenth - own)))
    for threshold in (*tenths, *(k / 10 for k in range(10)), *(k / 20 for k in range(20))):
        if len(chosen) < THRESHOLDS and threshold not in chosen:
            chosen.append(threshold)
    return sorted(chosen)


class _Try(NamedTuple):
    model: str
    answer: Any
    score: float | None
    cost: int


class _Outcome(NamedTuple):
    """What the table needs of an outcome: a tenth of it, since all of a replay's are held at once."""

    answer: Any
    reference_cost: int
    tries: tuple[_Try, ...]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> _Outcome:
        steps = (step for step in line["trail"]["steps"] if step["step"] == "attempt")
        tries = (
            _Try(step["model"], step["answer"], (step["score"] or {}).get("value"), step["cost_picousd"])
            for step in steps
        )
        return cls(line.get("answer"), line.get("reference_cost_picousd") or 0, tuple(tries))


def _answered(tries: Sequence[_Try]) -> _Try | None:
    """The last try that gave an answer."""
    return next((one for one in reversed(tries) if one.answer is not None), None)


class _Tally:
    """One task's jobs with gold, as they come."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._first, self._reference = plan.task.ladder[0], plan.task.reference
        self._judged: list[Judged] = []
        self._gold = self._answered = self._right = self._left_out = self._evaluated = 0

    async def add(self, row: Row, gold: Any, outcome: _Outcome, models: Models) -> None:
        wanted = gold_answer(self._plan, gold)
        self._gold += 1
        self._answered += outcome.answer is not None
        self._right += self._is(outcome.answer, wanted)
        tried = [one for one in outcome.tries if one.model == self._first.model]
        asked = [one for one in outcome.tries if one.model == self._reference.model]
        cheap = _answered(tried)
        if asked:
            said = _answered(asked)
            known: tuple[Any, int] | None = (said and said.answer), sum(one.cost for one in asked)
        else:
            known = await self._ask(row, models) if cheap is not None else None
        if cheap is None and known is None:
            self._left_out += 1
            return
        self._judged.append(
            Judged(
                score=None if cheap is None else cheap.score,
                cheap_right=cheap is not None and self._is(cheap.answer, wanted),
                cheap_cost=sum(one.cost for one in tried),
                reference_right=None if known is None else self._is(known[0], wanted),
                reference_cost=known[1] if known is not None else outcome.reference_cost,
            )
        )

    def _is(self, answer: Any, wanted: bytes) -> bool:
        return answer is not None and self._plan.reader.compare(answer) == wanted

    async def _ask(self, row: Row, models: Models) -> tuple[Any, int] | None:
        """What a recorded reference answers, and what that would have cost; None for a real one."""
        plan, rung = self._plan, self._reference
        model = plan.models[rung.model]
        built = plan.prompt.build(plan.prompt.read(row.job), row.job.context, plan.limits[rung.model])
        if model.api is not Api.RECORDED or not isinstance(built, tuple):
            return None
        self._evaluated += 1
        reply = await models.call(Call(model, built[0], 0, math.inf, row.job.id))
        if not isinstance(reply, Reply):
            return None
        answer = plan.reader.read(reply.text)
        return (answer.value if isinstance(answer, Answer) else None), ledger.cost(reply.usage, plan.prices[rung.model])

    def held(self) -> Held:
        gate = self._plan.task.gate_of(self._first)
        gated = gate is not None and self._first is not self._reference
        return Held(
            task=self._plan.task.name,
            gold=self._gold,
            answered=self._answered,
            right=self._right,
            left_out=self._left_out,
            evaluated=self._evaluated,
            first=self._first.model,
            reference=self._reference.model,
            reference_alone=reference_alone(self._judged),
            points=points(self._judged, gate.threshold) if gated and gate is not None else (),
        )
