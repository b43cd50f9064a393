"""What a run left behind, as the laws read it: published jobs, outcome records, samples of commits.

Read from topics and journals alone, with no code of the product: the record formats are those of the user's reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tests.support.fake_journal import Metered
from tests.support.topics import Seen

INTERNAL = ("sluiceway.escalations", "sluiceway.retries-")
"""What the topics that only workers write to begin with: a trail is believed there alone."""


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Published:
    """A job that the broker acked to the test's producer. `job_id` is None where no id can be read from the bytes."""

    job_id: str | None
    place: Place
    clearance: str = "internal"


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt of a trail. `usage` is None where a dead letter's header tells of it: that keeps the cost alone."""

    model: str
    response_id: str
    usage: Metered | None
    cost_picousd: int
    failure: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One record of results, reviews or dead letters. `place` is where it lies, `origin` where its job came from.

    `answer` is what a duplicate may not change: the decision itself, without times, costs and trail.
    """

    kind: Literal["result", "review", "dead_letter"]
    place: Place
    origin: Place | None
    job_id: str | None
    round: int = 0
    outcome_id: str = ""
    cost_picousd: int = 0
    tries: tuple[Try, ...] = ()
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a running worker: the committed offsets, read first, then the places whose one outgoing record lay out.

    Read in that order a race can only hide an early commit, never invent one.
    """

    at: float
    committed: Mapping[tuple[str, int], int]
    settled: frozenset[Place]


@dataclass(frozen=True, slots=True)
class Lag:
    """How far one look found a partition: `committed` of `end`."""

    at: float
    partition: tuple[str, int]
    committed: int
    end: int


@dataclass(slots=True)
class Disturbance:
    """What a run was put through, for the laws that allow redone work in proportion."""

    kills: int = 0
    revokes: int = 0
    timeouts: int = 0
    in_flight: int = 0  # the most jobs one worker holds at once
    per_commit: int = 0  # the most jobs finished in one commit interval
    unacked: set[str] = field(default_factory=set)  # job ids sent, but not acked to the producer

    @property
    def redo(self) -> int:
        """Jobs that may be done twice (fault-matrix L3)."""
        return self.kills * (self.in_flight + self.per_commit) + self.revokes * self.in_flight


def outcome_id(job_id: str, round_: int) -> str:
    """The id the format promises: 32 hex digits of SHA-256 over job id, NUL and round."""
    return hashlib.sha256(f"{job_id}\0{round_}".encode()).hexdigest()[:32]


def origin(text: str) -> Place | None:
    """`cluster/topic/partition/offset` of a trail; None for a replayed row."""
    parts = text.split("/")
    if len(parts) < 4 or not (parts[-1].isdigit() and parts[-2].isdigit()):
        return None
    return Place(parts[-3], int(parts[-2]), int(parts[-1]))


def read_outcomes(records: Iterable[Seen]) -> list[Outcome]:
    """The outcomes among the records, in order; ValueError for a record that is none."""
    return [_outcome(record) for record in records]


def _outcome(record: Seen) -> Outcome:
    place = Place(record.topic, record.partition, record.offset)
    topic = record.header("__dlq.errors.topic")
    if topic is not None:
        came_from = _died_at(record, topic)
        digest = hashlib.sha256(record.value or b"").hexdigest()
        tries = _kept_tries(record, topic)
        cost = int(record.header("sluiceway.cost_picousd") or sum(attempt.cost_picousd for attempt in tries))
        answer = f"{record.header('sluiceway.reason')} {digest}"
        return Outcome("dead_letter", place, came_from, None, cost_picousd=cost, tries=tries, answer=answer)
    body = json.loads(record.value or b"null")
    kinds: dict[str, Literal["result", "review"]] = {"sluiceway.result/1": "result", "sluiceway.review/1": "review"}
    kind = kinds.get(str(body.get("schema"))) if isinstance(body, dict) else None
    if kind is None:
        raise ValueError(f"{place} holds no outcome")
    parts = ("status", "answer", "reason") if kind == "result" else ("reason",)
    return Outcome(
        kind=kind,
        place=place,
        origin=origin(body["trail"]["origin"]),
        job_id=body["job_id"],
        round=body["round"],
        outcome_id=body["outcome_id"],
        cost_picousd=body["cost_picousd"],
        tries=read_tries(body["trail"]),
        answer=json.dumps({part: body.get(part) for part in parts}, sort_keys=True),
    )


def _died_at(record: Seen, topic: str) -> Place | None:
    """Where a dead letter's job came from: the record it was, or, for one of ours, what its trail began with."""
    if topic.startswith(INTERNAL):
        try:
            return origin(json.loads(record.value or b"null")["trail"]["origin"])
        except (ValueError, TypeError, KeyError):
            pass  # a forged one: it came from nowhere else
    partition, offset = record.header("__dlq.errors.partition"), record.header("__dlq.errors.offset")
    return Place(topic, int(partition or -1), int(offset or -1))


def _kept_tries(record: Seen, topic: str) -> tuple[Try, ...]:
    """The attempts that a dead letter tells of, or else those of the internal record that died."""
    kept = record.header("sluiceway.trail")
    if kept is not None:
        return tuple(Try(model, response, None, cost, None) for model, _verdict, cost, response in json.loads(kept))
    if "escalations" not in topic and "retries-" not in topic:  # nobody's trail is believed elsewhere
        return ()
    try:
        return read_tries(json.loads(record.value or b"")["trail"])
    except (ValueError, TypeError, KeyError):
        return ()


def read_tries(trail: Mapping[str, Any]) -> tuple[Try, ...]:
    """The attempts of a trail, in order."""
    return tuple(
        Try(
            model=step["model"],
            response_id=step.get("response_id") or "",
            usage=Metered(**step["usage"]),
            cost_picousd=step["cost_picousd"],
            failure=step.get("failure"),
        )
        for step in trail["steps"]
        if step["step"] == "attempt"
    )


def settled(records: Iterable[Seen]) -> frozenset[Place]:
    """The places of jobs whose one outgoing record is among these (outcomes, escalations, retries)."""
    places: set[Place | None] = set()
    for record in records:
        topic = record.header("__dlq.errors.topic")
        if topic is not None:
            offset = int(record.header("__dlq.errors.offset") or -1)
            places.add(Place(topic, int(record.header("__dlq.errors.partition") or -1), offset))
        elif record.value is not None:
            places.add(origin(json.loads(record.value)["trail"]["origin"]))
    return frozenset(place for place in places if place is not None)
