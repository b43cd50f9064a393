"""Sharing one answer: which calls are the same call, and what each of several copies pays for it.

Pure. Two calls are the same only if nothing that could change the answer, or who may see it, differs: tenant,
clearance, policy, model with its parameters, prompt, schema, whether logprobs are wanted, and which draw it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Annotated, Any

import orjson
from pydantic import Field

from sluiceway.core.call import Call, Reply, Usage
from sluiceway.core.catalog import Clearance, Frozen, Model
from sluiceway.core.quantity import Seconds, Size

_PREFIXES = 256  # prompts x schemas x models in use at once
# Where a key or a file lies does not change an answer; what the file holds does, and that is in `content`.
_PLACES: Any = {"api_key_env": True, "api_key_file": True, "file": True}
_WITHOUT = _PLACES | {"endpoints": {"__all__": {"api_key_env", "api_key_file"}}}


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply as it is given again, at no cost, and when it came in seconds since the epoch."""

    reply: Reply
    at: float


class Sharing(Frozen):
    """What the policy says under `sharing:`. All of it is off unless written."""

    coalesce: Annotated[bool, Field(description="true: identical jobs in flight make one call")] = False
    cache: Annotated[Seconds | None, Field(description="a duration such as 1h: how long answers serve")] = None
    cache_size: Annotated[Size, Field(description="a size such as 64MB: the room that kept answers may take")] = (
        64_000_000
    )
    confidential: Annotated[bool, Field(description="true: confidential and restricted answers are kept as well")] = (
        False
    )

    @property
    def on(self) -> bool:
        return self.coalesce or self.cache is not None

    def keeps(self, clearance: Clearance) -> bool:
        """Whether answers to data of `clearance` may be kept."""
        return self.cache is not None and (clearance < Clearance.CONFIDENTIAL or self.confidential)

    def serves(self, at: float, now: float) -> bool:
        """Whether an answer that came `at` still serves; one of the future, by a clock that was wrong, does not."""
        return self.cache is not None and at <= now < at + self.cache


class Keys:
    """Keys of the calls under one policy: 32 bytes that are equal exactly for calls that are the same.

    The stable part (policy, model, prompt, schema) is digested once and kept.
    """

    def __init__(self, digest: str) -> None:
        """`digest` is the policy's."""
        self._digest = digest
        self._known: dict[tuple[str, str, str, bool], tuple[Model, Any, bytes]] = {}

    def of(self, call: Call) -> bytes:
        request = call.request
        place = (call.model.name, request.system, request.schema_name, call.logprobs)
        known = self._known.get(place)
        if known is None or known[0] is not call.model or known[1] is not request.schema:
            known = (call.model, request.schema, self._prefix(call))
            if len(self._known) >= _PREFIXES:
                del self._known[next(iter(self._known))]
            self._known[place] = known
        return _sha256(known[2], (call.tenant, int(call.clearance), request.user, request.text, call.draw))

    def _prefix(self, call: Call) -> bytes:
        request = call.request
        model = call.model.model_dump(mode="json", exclude=_WITHOUT)
        said = (self._digest, model, request.system, request.schema_name, request.schema, call.logprobs)
        return _sha256(b"", said)


def _sha256(prefix: bytes, parts: tuple[Any, ...]) -> bytes:
    """Of a prefix whose length is always the same, and of the parts told apart."""
    # Lone surrogates can't be written as JSON; the whole is still told apart by its repr.
    try:
        told = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        told = repr(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(prefix + told).digest()


def split(usage: Usage, copies: int) -> list[Usage]:
    """What each of `copies` (1 or more) pays: whole tokens whose sum is exactly `usage`."""
    names = [field.name for field in fields(Usage)]
    shares = []
    for number in range(copies):
        part = {}
        for name in names:
            whole, rest = divmod(getattr(usage, name), copies)
            part[name] = whole + (number < rest)
        shares.append(Usage(**part))
    return shares
