"""The records of the control topic: what the workers of a cluster tell each other, one writer a key.

    hold/GROUP/TOPIC/PARTITION     the worker that holds a partition, and why
    resume/GROUP/TOPIC/PARTITION   the operator: that hold is over
    lease/WORKER                   a worker: it lives, and whom it knows (core/share.py)
    spend/WORKER                   a worker: what it spent and claims of each day's budgets (core/claim.py)

The kind of a record follows from its key and stands in its value too. Kinds that are not known here are a newer
version's and let pass; so are unknown fields, and minor versions (`sluiceway.control/1.4`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from sluiceway.core.errors import InputError
from sluiceway.core.held import Partition

Version = Annotated[str, Field(pattern=r"^sluiceway\.control/1(\.\d+)?$")]
VERSION = "sluiceway.control/1"


@dataclass(frozen=True, slots=True)
class Hold:
    """A partition is not read until an operator resumes it. `at` in epoch seconds; `detail` holds no payload."""

    at: float
    reason: str
    detail: str
    instance: str
    kind: Literal["hold"] = "hold"
    schema: Version = VERSION


@dataclass(frozen=True, slots=True)
class Resume:
    """The hold of that partition is over, if it is not newer than `at`: the `at` of the hold that was resumed."""

    at: float
    kind: Literal["resume"] = "resume"
    schema: Version = VERSION


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker lives for `seconds` after this. `born`: when this life of it began, by its own clock; so is `at`.

    `uses`: the limits that it draws on. `knows`: the workers that it counts when it takes its part, by their `born`.
    """

    born: float
    number: int
    at: float
    seconds: float
    uses: tuple[str, ...]
    knows: Mapping[str, float]
    kind: Literal["lease"] = "lease"
    schema: Version = VERSION


@dataclass(frozen=True, slots=True)
class Claim:
    """Of one day's budget, in pico-dollars: `committed` is spent or in flight, up to `claimed` may yet be."""

    day: str
    committed: int
    claimed: int


@dataclass(frozen=True, slots=True)
class Spend:
    """What a worker has spent of the day's budgets, and what it claims of them, by task."""

    born: float
    number: int
    tasks: Mapping[str, Claim]
    kind: Literal["spend"] = "spend"
    schema: Version = VERSION


Record = Hold | Resume | Lease | Spend
KINDS: Mapping[str, type[Record]] = {"hold": Hold, "resume": Resume, "lease": Lease, "spend": Spend}
ANY: TypeAdapter[Any] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def kind_of(key: str) -> str:
    """The part of a key that says what it is about."""
    return key.partition("/")[0]


def encode(record: Record) -> bytes:
    """The record's JSON bytes."""
    return orjson.dumps(record)


def decode(key: str, value: bytes) -> Record | None:
    """The record, None for a kind that is not known here. Raises InputError("invalid")."""
    kind = kind_of(key)
    if kind not in KINDS:
        return None
    try:
        record: Record = ANY.validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError("invalid", f"{where or 'record'}: {first['msg']}") from None
    if record.kind != kind:
        raise InputError("invalid", f"a {record.kind} under a key of a {kind}")
    return record


def hold_key(group: str, partition: Partition) -> str:
    return f"hold/{group}/{partition.topic}/{partition.partition}"


def resume_key(group: str, partition: Partition) -> str:
    return f"resume/{group}/{partition.topic}/{partition.partition}"


def place(key: str) -> tuple[str, Partition] | None:
    """Group and partition that a hold or resume key names; None for any other. A group's name may hold a slash."""
    kind, _, rest = key.partition("/")
    parts = rest.rsplit("/", 2)
    if kind not in ("hold", "resume") or len(parts) != 3 or not parts[2].isdecimal():
        return None
    return parts[0], Partition(parts[1], int(parts[2]))


def held(records: Mapping[str, Record], group: str) -> dict[Partition, Hold]:
    """The partitions of `group` that are held, each with its hold: those whose hold is newer than their resume."""
    found = {}
    for key, hold in records.items():
        named = place(key) if isinstance(hold, Hold) else None
        if named is None or named[0] != group or not isinstance(hold, Hold):
            continue
        resume = records.get(resume_key(group, named[1]))
        if not isinstance(resume, Resume) or hold.at > resume.at:
            found[named[1]] = hold
    return found


def groups(records: Mapping[str, Record]) -> list[str]:
    """The groups that have a hold on record, resumed or not."""
    return sorted({named[0] for key in records if kind_of(key) == "hold" and (named := place(key)) is not None})


def hold_at(now: float, resume: Resume | None) -> float:
    """The `at` of a new hold: now, and later than what was resumed, whatever clocks told those times."""
    return now if resume is None or now > resume.at else math.nextafter(resume.at, math.inf)
