"""Sharing one answer: which calls are the same call, and what each of several copies pays for it.

Pure. Two calls are the same only if nothing that could change the answer, or who may see it, differs: tenant,
clearance, policy, model with its parameters, prompt, schema, whether logprobs are wanted, and which draw it is.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import orjson
from pydantic import Field

from sluiceway.core.call import Call, Usage
from sluiceway.core.catalog import Clearance, Frozen
from sluiceway.core.quantity import Seconds, Size


class Sharing(Frozen):
    """What the policy says under `sharing:`. All of it is off unless written."""

    coalesce: Annotated[bool, Field(description="true: identical jobs in flight make one call")] = False
    cache: Annotated[Seconds | None, Field(description="a duration such as 1h: how long answers serve")] = None
    cache_size: Annotated[Size, Field(description="a size such as 64MB: the memory that kept answers may take")] = (
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


def key(call: Call, digest: str) -> bytes:
    """32 bytes that are equal exactly for calls that are the same under the policy `digest`."""
    request = call.request
    parts = (
        call.tenant,
        int(call.clearance),
        digest,
        call.model.name,
        request.system,
        request.user,
        request.text,
        request.schema_name,
        request.schema,
        call.logprobs,
        call.draw,
    )
    # Lone surrogates can't be written as JSON; the whole is still told apart by its repr.
    try:
        told = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        told = repr(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(told).digest()


def split(usage: Usage, copies: int) -> list[Usage]:
    """What each of `copies` (1 or more) pays: whole tokens whose sum is exactly `usage`."""
    names = Usage.__slots__
    shares = []
    for number in range(copies):
        part = {}
        for name in names:
            whole, rest = divmod(getattr(usage, name), copies)
            part[name] = whole + (number < rest)
        shares.append(Usage(**part))
    return shares
