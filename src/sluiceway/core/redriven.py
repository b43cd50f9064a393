"""The record of a redrive: which dead letters went back. Written after their acks, read by every later redrive.

It lies in a topic of its own and is kept longer than what it speaks of. So nothing is redriven twice, whatever filters
leave open, on any broker. (A group's offset with a map of holes would do for 20,000 open ones, on brokers that keep the
map, and for seven days: by then Apache Kafka has forgotten the offsets of a group that nobody is in.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from sluiceway.core.errors import InputError
from sluiceway.core.redrive import Mark


@dataclass(frozen=True, slots=True)
class Redriven:
    """Some dead letters of `topic` went back, as run `run` saw it; `at` in seconds since the epoch."""

    run: str
    topic: str
    at: float
    letters: tuple[Mark, ...]
    schema: Literal["sluiceway.redriven/1"] = "sluiceway.redriven/1"


_ADAPTER = TypeAdapter(Redriven)


def encode(record: Redriven) -> bytes:
    """The record's JSON bytes."""
    return orjson.dumps(record, default=list)


def decode(value: bytes) -> Redriven:
    """The record that `value` holds. Raises InputError("invalid"); fields of a newer minor version are let pass."""
    try:
        return _ADAPTER.validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError("invalid", f"{where or 'record'}: {first['msg']}") from None
