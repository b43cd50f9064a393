"""The job: one unit of work as it was published, and what makes bytes not a job.

Whatever is wrong with the bytes raises InputError with a closed reason; nothing else is ever raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sluiceway.core import tree as trees
from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.errors import InputError
from sluiceway.core.value import value

SCHEMA = "sluiceway.job/1"
ID_CHARS, TASK_CHARS = 256, 128

LevelWord = Literal["low", "normal", "high", "critical"]
ClearanceWord = Literal["public", "internal", "confidential", "restricted"]


class Passage(BaseModel):
    """A piece of text that helps with the job: data, never instructions."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    text: str


class JobRecord(BaseModel):
    """A job as published to the jobs topic. Only `id`, `task` and `input` are needed; unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=ID_CHARS)] | None = None
    task: Annotated[str, Field(min_length=1, max_length=TASK_CHARS)]
    input: Annotated[str, Field(min_length=1)] | Annotated[dict[str, Any], Field(min_length=1)]
    schema_: Annotated[Literal["sluiceway.job/1"] | None, Field(alias="schema")] = None
    tenant: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stakes: LevelWord | None = None
    priority: LevelWord | None = None
    clearance: ClearanceWord | None = None
    context: list[Passage] = Field(default_factory=list, max_length=64)
    expires_at: float | int | Annotated[str, Field(max_length=40)] | None = None  # RFC 3339, or seconds since the epoch
    round: Annotated[int, Field(ge=0, le=1_000_000)] = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Where the fields of a job stand in a foreign record: JSON Pointers (RFC 6901)."""

    topic: str
    input: Mapping[str, str]
    id: str | None = None
    tenant: str | None = None
    stakes: str | None = None
    priority: str | None = None
    clearance: str | None = None


@value
class Job:
    """A job ready to be routed. `text` is all of its input as one text; `origin` names the original record.

    `stakes`, `priority` and `clearance` are what the job declares, None where it is silent.
    `raw` is the record as published, unknown fields included. `digest` identifies the input bytes. `published_at`, in
    seconds since the epoch, tells two records apart that lay at the same offset of a topic made anew.
    """

    id: str
    task: str
    round: int
    input: str | Mapping[str, Any]
    text: str
    origin: str
    raw: Mapping[str, Any]
    tenant: str | None = None
    stakes: Level | None = None
    priority: Level | None = None
    clearance: Clearance | None = None
    context: tuple[Passage, ...] = ()
    expires_at: float | None = None
    published_at: float = 0.0

    @property
    def fields(self) -> frozenset[str]:
        """The names of the input's fields that are present and not null; a bare text has the one field `text`."""
        if isinstance(self.input, str):
            return _TEXT
        return frozenset(name for name, value in self.input.items() if value not in (None, "", [], {}))

    @property
    def digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.input, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


_TEXT = frozenset(("text",))
_RECORD = TypeAdapter(JobRecord).validator  # of the adapter's own method each call would pay for its options


def load_json(value: bytes) -> Any:
    """The JSON value of `value`. Raises InputError("undecodable"): bad UTF-8, cut or otherwise broken JSON."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError("undecodable", f"not JSON in UTF-8 ({where}); publish one JSON object a record") from None


def decode(
    value: bytes,
    *,
    origin: str,
    default_id: str,
    source: Source | None = None,
    task: str = "",
    published_at: float = 0.0,
    round: int = 0,  # noqa: A002  the word list's own name
) -> Job:
    """The job that `value` holds; `source` (with its `task`) reads it from a foreign shape.

    `round` is what the record's headers state: the higher of it and the job's own counts.

    Raises InputError with reason `undecodable` (not JSON) or `invalid` (JSON of another shape).
    """
    tree = load_json(value)
    if not isinstance(tree, dict):
        raise InputError("invalid", f"a job is a JSON object, not {_kind(tree)}")
    # All else that makes a tree unfit can't come out of JSON, and without enough brackets nothing is deep.
    if value.count(b"[") + value.count(b"{") > trees.DEPTH and trees.deeper(tree, trees.DEPTH):
        raise InputError("invalid", f"nested deeper than {trees.DEPTH} levels")
    return _job(tree if source is None else _foreign(tree, source, task), origin, default_id, published_at, round)


def admit(tree: Mapping[str, Any], *, origin: str, default_id: str, published_at: float = 0.0) -> Job:
    """The job of an already parsed record. Raises InputError("invalid") naming each field that is wrong."""
    unfit = trees.unfit(tree)
    if unfit is not None:
        raise InputError("invalid", unfit)
    return _job(tree, origin, default_id, published_at)


def _job(tree: Mapping[str, Any], origin: str, default_id: str, published_at: float, least: int = 0) -> Job:
    if _is_least(tree):
        text = tree["input"]
        return Job(tree["id"], tree["task"], least, text, text, origin, tree, published_at=published_at)
    try:
        record = _RECORD.validate_python(tree)
    except ValidationError as error:
        raise InputError("invalid", _faults(error)) from None
    return Job(
        id=record.id or default_id,
        task=record.task,
        round=max(record.round, least),
        input=record.input,
        text=_text(record.input),
        origin=origin,
        raw=tree,
        tenant=record.tenant,
        stakes=Level[record.stakes.upper()] if record.stakes else None,
        priority=Level[record.priority.upper()] if record.priority else None,
        clearance=Clearance[record.clearance.upper()] if record.clearance else None,
        context=tuple(record.context),
        expires_at=_time(record.expires_at),
        published_at=published_at,
    )


def _is_least(tree: Mapping[str, Any]) -> bool:
    """Whether it holds an id, a task and a text as `JobRecord` wants them and no more, as most jobs do."""
    if len(tree) != 3:
        return False
    name, task, text = tree.get("id"), tree.get("task"), tree.get("input")
    return (
        type(name) is type(task) is type(text) is str
        and 0 < len(name) <= ID_CHARS
        and 0 < len(task) <= TASK_CHARS
        and len(text) > 0
    )


def _faults(error: ValidationError) -> str:
    """Where and what, without any of the job's own values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'][:2]) or 'record'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)[:5]
    )


def _kind(value: object) -> str:
    names = {
        "list": "array",
        "str": "string",
        "NoneType": "null",
        "int": "number",
        "float": "number",
        "bool": "boolean",
    }
    return names.get(type(value).__name__, "object")


def _text(value: str | Mapping[str, Any]) -> str:
    if isinstance(value, str):
        return value
    if len(value) == 1:
        (only,) = value.values()
        if isinstance(only, str):
            return only
    return "\n".join(f"{name}: {_plain(part)}" for name, part in value.items() if part is not None)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _time(value: float | str | None) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise InputError("invalid", "expires_at: not an RFC 3339 time; write 2026-01-31T12:00:00Z") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def pointer(tree: Any, path: str) -> Any:
    """The value at JSON Pointer `path` (RFC 6901), None where there is none."""
    if path == "":
        return tree
    value = tree
    for part in path.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _foreign(tree: Mapping[str, Any], source: Source, task: str) -> dict[str, Any]:
    job: dict[str, Any] = {"task": task}
    found = {name: pointer(tree, path) for name, path in source.input.items()}
    job["input"] = {name: value for name, value in found.items() if value is not None}
    if not job["input"]:
        raise InputError("invalid", f"none of the input pointers {', '.join(source.input.values())} finds a value")
    for name in ("id", "tenant", "stakes", "priority", "clearance"):
        path = getattr(source, name)
        value = None if path is None else pointer(tree, path)
        if value is not None:
            job[name] = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return job
