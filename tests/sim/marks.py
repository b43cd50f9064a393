"""What outgoing records say of themselves: the run they come from, and what is left of their deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import orjson

from sluiceway.core.errors import Bug
from sluiceway.ports import Outgoing

FROM = "sim-from"  # the header that says which run of which record an outgoing record comes from


def tagged(outgoing: Outgoing, run: bytes) -> Outgoing:
    kept = tuple(pair for pair in outgoing.headers if pair[0] != FROM)
    return replace(outgoing, headers=(*kept, (FROM, run)))


def remaining(value: bytes | None) -> float:
    """Seconds that are left of the deadline of a job on an internal topic."""
    left: float = orjson.loads(value or b"")["trail"]["remaining"]
    return left


def run_of(headers: tuple[tuple[str, bytes | None], ...]) -> int:
    found: Mapping[str, bytes | None] = dict(headers)
    tag = found.get(FROM)
    if tag is None:
        raise Bug("an outgoing record without its mark")
    return int(tag)
