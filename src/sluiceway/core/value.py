"""Values that every job makes by the dozen: frozen to the type checker, plain at run time.

A frozen dataclass sets each field through `object.__setattr__`, six times as slow as plain assignment, and orjson
writes a slotted one field by field, four times as slowly as a plain one, whose dict it writes straight from. A job
makes some thirty such objects. That nobody assigns to their fields is therefore mypy's to hold, which reads them as
frozen. What is made once, or seldom, stays `@dataclass(frozen=True, slots=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_Made = TypeVar("_Made")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_Made]) -> type[_Made]:
    """`cls` as a dataclass that is compared and hashed by its fields."""
    return dataclass(unsafe_hash=True)(cls)
