"""A job's whole work, as the Kafka layer asks for it: one record in, its one outgoing record out.

Here, and nowhere else, a record of a topic becomes a job, and an outcome becomes a record of a topic. Whatever is wrong
with a record makes it a dead letter; only a Bug raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import orjson

from sluiceway.core import job as jobs
from sluiceway.core import outcome as outcomes
from sluiceway.core import round as rounds
from sluiceway.core.cascade import Role
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job
from sluiceway.core.outcome import DeadLetter, DeadLetterReason, Ending, Escalation, HandOver, Result, Retry, Review
from sluiceway.ports import Headers, Outgoing, Record, Work
from sluiceway.runner import Runner
from sluiceway.topicmap import TopicMap

_DETAIL = 500  # characters of a dead letter's message
_TRAIL = 16_384  # bytes of a dead letter's trail
_JSON: Headers = (("content-type", b"application/json"),)

OnDeadLetter = Callable[[Record, DeadLetter, str], None]
"""Told of each dead letter and its task, which is empty where the record names none that is known."""

Tried = tuple[str, str, int, str]
"""One attempt, as a dead letter keeps it: model, verdict, cost in pico-dollars, the endpoint's id of the response."""

OnTombstone = Callable[[Record], None]
"""Told of each record without a value: it is nobody's job, and skipped."""


@dataclass(slots=True)
class _About:
    """What is known of a record's job so far; `task` is empty until it is known to be one of the policy's."""

    job_id: str
    round: int
    task: str = ""


class Desk:
    """Turns records into work for one runner; `cluster` names the Kafka cluster in each job's origin."""

    def __init__(
        self,
        runner: Runner,
        topics: TopicMap,
        cluster: str,
        on_dead_letter: OnDeadLetter,
        on_tombstone: OnTombstone,
    ) -> None:
        self._runner = runner
        self._topics = topics
        self._delays = topics.delays
        self._cluster = cluster
        self._on_dead_letter = on_dead_letter
        self._on_tombstone = on_tombstone

    def work(self, role: Role) -> Work:
        first = self._job if role is Role.JOBS else self._escalation

        def work(record: Record) -> Awaitable[Outgoing | None]:
            return self._retry(record, role) if record.topic in self._delays else first(record)

        return work

    async def _job(self, record: Record) -> Outgoing | None:
        """A record of a jobs topic: published by anybody, believed in nothing but its own job."""
        if record.value is None:
            self._on_tombstone(record)
            return None
        about = _about(record)
        try:
            _require_names(record.headers)
            job = self._decode(record, record.value, about)
            about.job_id, about.round = job.id, job.round
            plan = self._runner.plans.get(job.task)
            if plan is None:
                known = ", ".join(self._runner.plans)
                raise InputError(DeadLetterReason.UNKNOWN_TASK, f"the policy has no task of that name (it has {known})")
            about.task = job.task
            if len(record.value) > plan.task.max_bytes:
                detail = f"{len(record.value)} bytes; the task's max_bytes is {plan.task.max_bytes}"
                raise InputError(DeadLetterReason.TOO_LARGE, detail)
            return self._outgoing(record, await self._runner.run(job))
        except InputError as error:
            return self._dead(record, Role.JOBS, error, about)

    async def _escalation(self, record: Record) -> Outgoing | None:
        """A record of the escalations topic: internal, its trail and remaining deadline are believed."""
        return await self._internal(record, Escalation, Role.ESCALATIONS)

    async def _retry(self, record: Record, role: Role) -> Outgoing | None:
        """A record of one of the role's retry topics, as internal as an escalation."""
        return await self._internal(record, Retry, role)

    async def _internal(self, record: Record, kind: type[Escalation] | type[Retry], role: Role) -> Outgoing | None:
        if record.value is None:
            self._on_tombstone(record)
            return None
        about = _about(record)
        try:
            _require_names(record.headers)
            jobs.load_json(record.value)
            handed = _raised(outcomes.decode(kind, record.value), about.round)
            about.job_id, about.round = handed.job_id, handed.round
            if isinstance(handed, Retry) and handed.role is not role:
                raise InputError(DeadLetterReason.INVALID, f"role: {handed.role.value} has retry topics of its own")
            if handed.task not in self._runner.plans:
                raise InputError(DeadLetterReason.UNKNOWN_TASK, "the policy of this worker has no task of that name")
            about.task = handed.task
            return self._outgoing(record, await self._runner.resume(handed))
        except InputError as error:
            return self._dead(record, role, error, about)

    def _decode(self, record: Record, value: bytes, about: _About) -> Job:
        origin = f"{self._cluster}/{record.topic}/{record.partition}/{record.offset}"
        task, source = self._topics.foreign.get(record.topic, ("", None))
        return jobs.decode(
            value,
            origin=origin,
            default_id=about.job_id,
            source=source,
            task=task,
            published_at=record.timestamp,
            round=about.round,
        )

    def _outgoing(self, record: Record, made: Ending) -> Outgoing:
        match made:
            case Result():
                topic = self._topics.results[made.task]
            case Review():
                topic = self._topics.reviews
            case Escalation():
                topic = self._topics.escalations
            case _:
                topic = self._topics.retries[made.role][made.delay]
        key = record.key if record.key is not None else made.job_id.encode()
        try:
            value = outcomes.encode(made)
        except InputError as error:
            tried = [(try_.model, try_.verdict, try_.cost_picousd, try_.response_id) for try_ in made.trail.attempts]
            about = _About(made.job_id, made.round, made.task)
            return self._dead(record, self._topics.reader_of(record.topic), error, about, tried)
        return Outgoing(topic, key, value, _json_headers(record.headers))

    def oversize(self, role: Role) -> Callable[[Record, Outgoing, object], Outgoing]:
        """What is published instead of an outcome that does not fit its topic: a dead letter with its attempts."""

        def instead(record: Record, outgoing: Outgoing, _limit: object) -> Outgoing:
            made = orjson.loads(outgoing.value or b"{}")
            steps = made.get("trail", {}).get("steps", ())
            tried = [
                (step["model"], step["verdict"], step["cost_picousd"], step["response_id"])
                for step in steps
                if step["step"] == "attempt"
            ]
            detail = (
                f"its outcome does not fit {outgoing.topic}: raise max.message.bytes there (sluiceway topics check)"
            )
            error = InputError(DeadLetterReason.TOO_LARGE, detail)
            about = _About(made["job_id"], made["round"], made["task"])
            return self._dead(record, role, error, about, tried)

        return instead

    def crashed(self, role: Role) -> Callable[[Record], Outgoing]:
        """What is published instead of a job that a process has died of while nothing else ran."""

        def instead(record: Record) -> Outgoing:
            detail = "a worker's process ended while this job ran alone in it, and three times before"
            return self._dead(record, role, InputError(DeadLetterReason.CRASHES, detail), self._peeked(record))

        return instead

    def _peeked(self, record: Record) -> _About:
        """What a job that must not run again says of itself: a look at its JSON, and no more."""
        about = _about(record)
        task, source = self._topics.foreign.get(record.topic, ("", None))
        with suppress(orjson.JSONDecodeError):
            tree = orjson.loads(record.value or b"")
            if isinstance(tree, dict):
                # A job names its id so, what one role hands to another names the job's so.
                path = "/id" if source is None and "id" in tree else "/job_id" if source is None else source.id
                found = None if path is None else jobs.pointer(tree, path)
                if isinstance(found, str | int) and 0 < len(str(found)) <= rounds.ID_CHARS:
                    about.job_id = str(found)
                if source is None and type(tree.get("round")) is int and 0 <= tree["round"] <= rounds.MOST:
                    about.round = max(about.round, tree["round"])
                named = task or tree.get("task")
                about.task = named if isinstance(named, str) and named in self._runner.plans else ""
        return about

    def tenant(self, record: Record) -> str:
        """The tenant of a record's job, "" where it names none: a look at the value, for fairness only."""
        foreign = self._topics.foreign.get(record.topic)
        path = "/tenant" if foreign is None else foreign[1].tenant
        value = record.value or b""
        if path is None or (foreign is None and b'"tenant"' not in value):
            return ""
        try:
            tree = orjson.loads(value)
            # An escalation or a retry carries its job whole.
            found = jobs.pointer(tree, path if foreign is not None or "job" not in tree else f"/job{path}")
        except (orjson.JSONDecodeError, TypeError):
            return ""
        return found if isinstance(found, str) else ""

    def _dead(
        self, record: Record, role: Role, error: InputError, about: _About, tried: Sequence[Tried] = ()
    ) -> Outgoing:
        """The original record, byte for byte, with what we know in headers alone; `tried` is what no trail keeps."""
        value = record.value or b""
        reason = DeadLetterReason(error.reason) if error.reason in set(DeadLetterReason) else DeadLetterReason.INVALID
        sha256 = hashlib.sha256(value).hexdigest()
        letter = DeadLetter(reason, error.detail[:_DETAIL], sha256, about.job_id, about.round, about.task or None)
        self._on_dead_letter(record, letter, about.task)
        return Outgoing(
            self._topics.dead_letters,
            record.key,
            record.value,
            (
                *_named(rounds.kept(record.headers)),
                *_facts(record, self._topics.groups[role], letter, about),
                *_trail(tried),
            ),
        )


def _about(record: Record) -> _About:
    """What the record's headers and place say of its job, before its value is read."""
    said = rounds.stated(record.headers)
    return _About(said.job_id or f"{record.topic}-{record.partition}-{record.offset}", said.round)


def _raised(handed: HandOver, stated: int) -> HandOver:
    """What was handed over, in the round that a redrive has opened for it, if one has."""
    if stated <= handed.round:
        return handed
    return replace(handed, round=stated, job={**handed.job, "round": stated})


def _require_names(headers: Headers) -> None:
    """Raises InputError for a header that can't be written again: its name's bytes, no UTF-8, came as surrogates."""
    for number, (name, _) in enumerate(headers):
        if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name):
            raise InputError(DeadLetterReason.UNDECODABLE, f"header {number + 1}: its name is not UTF-8")


def _named(headers: Headers) -> Headers:
    """The same, with what is not UTF-8 in their names written as \\xNN: Kafka's client takes no other names."""
    return tuple(
        [
            (
                name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                content,
            )
            for name, content in headers
        ]
    )


def _json_headers(headers: Headers) -> Headers:
    if not headers:
        return _JSON
    kept = tuple((name, value) for name, value in rounds.kept(headers) if name.lower() != "content-type")
    return (*kept, *_JSON)


def _trail(tried: Sequence[Tried]) -> Headers:
    """The attempts, first ones first, as many as the header may hold; what all of them cost stands beside it."""
    if not tried:
        return ()
    parts: list[bytes] = []
    room = _TRAIL - 1
    for attempt in tried:
        part = json.dumps(attempt, separators=(",", ":")).encode()  # orjson takes no lone surrogate
        room -= len(part) + 1
        if room < 0:
            break
        parts.append(part)
    total = sum(cost for _, _, cost, _ in tried)
    return (("sluiceway.trail", b"[" + b",".join(parts) + b"]"), ("sluiceway.cost_picousd", str(total).encode()))


def _facts(record: Record, group: str, letter: DeadLetter, about: _About) -> Headers:
    """Apache Kafka's own names for a dead letter's headers (KIP-1191), and ours."""
    facts = {
        "__dlq.errors.topic": record.topic,
        "__dlq.errors.partition": str(record.partition),
        "__dlq.errors.offset": str(record.offset),
        "__dlq.errors.group": group,
        "__dlq.errors.delivery.count": "1",
        "__dlq.errors.message": letter.detail,
        "sluiceway.reason": letter.reason.value,
        "sluiceway.sha256": letter.sha256,
    }
    return (
        *((name, value.encode()) for name, value in facts.items()),
        *rounds.written(about.job_id, about.round),
        *(((rounds.TASK, about.task.encode()),) if about.task else ()),
    )
