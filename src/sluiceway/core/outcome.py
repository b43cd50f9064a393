"""What a round of a job ends in: exactly one result, review or dead letter, under one stable id.

An `Escalation` and a `Retry` are no outcomes: they hand the job and its trail on, to the next tier or to a later
time. Records are these dataclasses, written by orjson and read by pydantic; the JSON Schemas in topics/schemas are
made from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from sluiceway.core.errors import InputError
from sluiceway.core.trail import EscalationReason, Role, Trail, Waited
from sluiceway.core.value import value

BAR_NOT_PROVED = "declared, not yet proved"


class Status(StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"


class RefusalReason(StrEnum):
    """Why Sluiceway would not answer: a decision, not a failure."""

    OUT_OF_SCOPE = "out_of_scope"
    NO_CLEARED_MODEL = "no_cleared_model"
    OVER_BUDGET = "over_budget"
    FORBIDDEN = "forbidden"
    TOO_LONG = "too_long"
    EXPIRED = "expired"


class ReviewReason(StrEnum):
    """Why a person decides."""

    ALWAYS = "always"  # the policy's review.always held the answer
    UNSETTLED = "unsettled"  # the frontier was uncertain, malformed or declined
    DEADLINE = "deadline"  # no model could be reached before the deadline
    FAILED = "failed"  # on_failure: review, or nothing left to try
    NO_REFERENCE = "no_reference"  # the cheap tiers doubt, and no reference may see the job
    OVER_BUDGET = "over_budget"  # budget.on_exceeded: review


class DeadLetterReason(StrEnum):
    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    UNKNOWN_TASK = "unknown_task"
    TOO_LARGE = "too_large"
    CRASHES = "crashes"


@value
class Sampled:
    """A delivered answer that a person should check, by a coin of this propensity; `job` is what to judge it by."""

    propensity: float
    job: Mapping[str, Any]


@value
class Candidate:
    """An answer that some model gave and nobody has confirmed."""

    model: str
    answer: Any
    score: float | None
    verdict: str


@value
class Result:
    """A delivered answer, or a refusal with its reason. Times are epoch seconds, money is pico-dollars and USD.

    `saving_picousd`: what the reference alone would have cost, less what all attempts cost; it may be negative.
    `context_use`: of the attempt that gave the answer.
    """

    outcome_id: str
    job_id: str
    round: int
    task: str
    status: Status
    policy: str
    finished_at: float
    trail: Trail
    cost_picousd: int
    cost_usd: float
    reason: RefusalReason | None = None
    detail: str | None = None
    answer: Any = None
    model: str | None = None
    tier: str | None = None
    score: float | None = None
    escalated: EscalationReason | None = None
    bar: str | None = None
    reference_cost_picousd: int | None = None
    sampled: Sampled | None = None
    tenant: str | None = None
    saving_picousd: int | None = None
    context_use: float | None = None
    schema: Literal["sluiceway.result/1"] = "sluiceway.result/1"


@value
class Review:
    """A job that a person decides, with everything they need: the job, the candidates, and what happened."""

    outcome_id: str
    job_id: str
    round: int
    task: str
    reason: ReviewReason
    policy: str
    finished_at: float
    trail: Trail
    cost_picousd: int
    cost_usd: float
    job: Mapping[str, Any]
    candidates: tuple[Candidate, ...] = ()
    detail: str | None = None
    escalated: EscalationReason | None = None
    tenant: str | None = None
    schema: Literal["sluiceway.review/1"] = "sluiceway.review/1"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes that can't become a job. Value, key and headers stay the original's; these facts are added as headers.

    `task` only where it is one of the policy's: a publisher's own words stand in no header.
    """

    reason: DeadLetterReason
    detail: str
    sha256: str
    job_id: str | None = None
    round: int = 0
    task: str | None = None


@value
class Escalation:
    """A job handed to the next tier with its trail: the record of the escalations topic."""

    job_id: str
    round: int
    task: str
    reason: EscalationReason
    policy: str
    trail: Trail
    job: Mapping[str, Any]
    detail: str | None = None
    schema: Literal["sluiceway.escalation/1"] = "sluiceway.escalation/1"


@value
class Retry:
    """A job that waits outside its worker, with its trail: the record of the retry topics, one for `role` and `delay`.

    It waits at model `rung` of its ladder. After `delay` seconds it still has `left` seconds to wait, and
    `trail.remaining` of its deadline: time that it lies in the topic beyond its delay counts for neither. `endpoint`,
    `tries` (calls there) and `waits` (of this role) are where it goes on; `distributions` is what local models said.
    """

    job_id: str
    round: int
    task: str
    role: Role
    rung: str
    delay: float
    left: float
    endpoint: int
    tries: int
    waits: int
    policy: str
    trail: Trail
    job: Mapping[str, Any]
    failed_over: bool = False
    escalated: EscalationReason | None = None
    distributions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    schema: Literal["sluiceway.retry/1"] = "sluiceway.retry/1"

    def __post_init__(self) -> None:
        if not self.trail.steps or not isinstance(self.trail.steps[-1], Waited):
            raise ValueError("its trail does not end in a wait")


Outcome = Result | Review | DeadLetter
HandOver = Escalation | Retry
Ending = Result | Review | Escalation | Retry
"""What a cascade ends in."""

_Kind = TypeVar("_Kind", bound=Ending)


_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Result, Review, Escalation, Retry)}


def outcome_id(job_id: str, round: int) -> str:  # noqa: A002  the word list's own name
    """The stable id of the outcome of `round` of a job: 32 hex digits.

    Where tenants or tasks use the same job ids they share it: what drops repeats looks at all three.
    """
    return hashlib.sha256(f"{job_id}\0{round}".encode()).hexdigest()[:32]


def encode(record: Ending) -> bytes:
    """The record's JSON bytes. Raises InputError("invalid") for a value that JSON in UTF-8 cannot hold."""
    try:
        return orjson.dumps(record, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise InputError("invalid", f"cannot be written as JSON: {error}") from None


def decode(kind: type[_Kind], value: bytes) -> _Kind:
    """The record that `value` holds. Raises InputError("invalid"); fields of a newer minor version are let pass."""
    try:
        record: _Kind = _ADAPTERS[kind].validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError("invalid", f"{where or 'record'}: {first['msg']}") from None
    return record


_RANK = {Result: 0, Review: 1, DeadLetter: 2}

_Any = TypeVar("_Any", bound=Outcome)


def effective(outcomes: Iterable[_Any]) -> _Any | None:
    """The one outcome of a job that counts: highest round, then result over review over dead letter, then the earliest.

    `outcomes` are one job's, in the order they were read; None where there are none.
    """
    best: _Any | None = None
    for outcome in outcomes:
        if best is None or (outcome.round, -_RANK[type(outcome)]) > (best.round, -_RANK[type(best)]):
            best = outcome
    return best
