"""Explaining: what pydantic finds wrong in a policy, as faults with line and mend."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sluiceway.core.document import Document, Path
from sluiceway.core.errors import Fault


class Misfit(typing.NamedTuple):
    """One value that does not fit: its path in the file, and for an unknown key the one that was probably meant."""

    path: Path
    error: ErrorDetails
    owner: type[BaseModel] | None
    field: FieldInfo | None
    meant: str | None

    @property
    def unknown(self) -> bool:
        return self.error["type"] == "extra_forbidden"

    @property
    def missing(self) -> bool:
        return self.error["type"] == "missing"


def misfits(error: ValidationError, root: type[BaseModel], data: Any) -> list[Misfit]:
    """What `error` says of `data`, once each: of a union's complaints the most specific, of a misspelt key the key."""
    found: dict[Path, Misfit] = {}
    for detail in error.errors(include_url=False, include_input=False):
        misfit = _misfit(detail, root, data)
        found.setdefault(misfit.path, misfit)
    meant = {(*misfit.path[:-1], misfit.meant) for misfit in found.values() if misfit.meant}
    return [
        misfit
        for path, misfit in found.items()
        if not (misfit.missing and path in meant)
        and not any(len(other) > len(path) and other[: len(path)] == path for other in found)
    ]


def explain(found: Sequence[Misfit], doc: Document) -> Iterator[Fault]:
    for misfit in found:
        hint = _hint(misfit.field)
        name = misfit.path[-1] if misfit.path else "policy"
        if misfit.unknown:
            known = ", ".join(_names(misfit.owner))
            mend = f"did you mean {misfit.meant}?" if misfit.meant else f"remove it (known here: {known})"
            yield doc.fault(misfit.path, "unknown key", mend)
        elif misfit.missing:
            yield doc.fault(misfit.path, "it is missing", f"add {name}: {hint or '...'}")
        else:
            yield doc.fault(misfit.path, _problem(misfit.error), _mend(misfit, hint))


def _problem(error: ErrorDetails) -> str:
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return "it should be a mapping"
    return error["msg"].removeprefix("Value error, ").replace("Input should", "it should")


def _hint(field: Any) -> str | None:
    """The description of a field, or of the part of its union that has one."""
    if isinstance(field, FieldInfo):
        return field.description or _hint(field.annotation)
    return next((hint for part in typing.get_args(field) if (hint := _hint(part))), None)


def _mend(misfit: Misfit, hint: str | None) -> str:
    if misfit.path and isinstance(misfit.path[-1], int) and misfit.error["type"] == "string_type":
        return "write text, in quotes where it looks like a number"
    if hint:
        return f"write {hint}"
    expected = misfit.error.get("ctx", {}).get("expected")
    if expected:
        return f"write {expected}"
    kinds = {
        "dict": "a mapping such as {key: value}",
        "model": "a mapping such as {key: value}",
        "list": "a list such as [a, b]",
        "tuple": "a list such as [a, b]",
        "string": "text, in quotes where it looks like a number",
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "decimal": "a number",
    }
    return f"write {kinds.get(misfit.error['type'].split('_')[0], 'a value that fits')}"


def _misfit(detail: ErrorDetails, root: type[BaseModel], data: Any) -> Misfit:
    """The detail with its path in the file: pydantic's own also names the branches of unions."""
    owner: type[BaseModel] | None = root
    inner: type[BaseModel] | None = root
    field: FieldInfo | None = None
    value, path = data, []
    location = [part for part in detail["loc"] if part != "[key]"]
    for number, part in enumerate(location):
        last = number + 1 == len(location)
        there = part in value if isinstance(value, dict) else isinstance(value, list) and _within(part, value)
        adds = last and detail["type"] in ("missing", "extra_forbidden")
        if not there and not adds:
            continue
        path.append(part)
        if inner is not None and part in inner.model_fields:
            owner, field = inner, inner.model_fields[str(part)]
            inner = _model_in(field.annotation)
        elif last and inner is not None:
            owner = inner
        value = value[part] if there else None
    meant = None
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _names(owner), 1, 0.6)
        meant = near[0] if near else None
    return Misfit(tuple(path), detail, owner, field, meant)


def _within(part: str | int, value: list[Any]) -> bool:
    return isinstance(part, int) and part < len(value)


# Set when a policy is resolved, never written.
_RESOLVED = frozenset({"name", "shown", "content"})


def _names(owner: type[BaseModel] | None) -> list[str]:
    return [] if owner is None else sorted(set(owner.model_fields) - _RESOLVED)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for part in typing.get_args(annotation) if (inner := _model_in(part)) is not None), None)
