"""The keys of replies in the local store: what a call has in common with no other but itself, made again."""

from __future__ import annotations

import hashlib
from typing import Any

from sluiceway.core.call import Call
from sluiceway.core.catalog import Model
from sluiceway.core.job import Job

_FORMER = 32  # characters of a key in format 4

_ASKED: dict[tuple[int, str], tuple[Model, Any]] = {}
"""What is the same in the keys of many calls, hashed, by the model's id and the prompt's system part."""

_MOST = 256


def key_of(job: Job, call: Call, digest: str) -> str:
    """Of the same record's same call: a copy published again, or a record of a topic made anew, is another call."""
    request = call.request
    whole = (_ASKED.get((id(call.model), request.system)) or _asked(call))[1].copy()
    told = (
        f"\0{job.origin}\0{round(job.published_at * 1000)}\0{job.tenant or ''}\0{job.task}\0{job.id}\0{job.round}"
        f"\0{digest}\0{call.draw}\0{request.user}"
    )
    whole.update(told.encode("utf-8", "surrogatepass"))
    key: str = whole.hexdigest()[:40]
    return key


def _asked(call: Call) -> tuple[Model, Any]:
    model, system = call.model, call.request.system
    urls = [endpoint.base_url for endpoint in model.endpoints]
    asked = "\0".join([model.name, model.model, *urls, system])
    if len(_ASKED) >= _MOST:
        _ASKED.clear()
    known = _ASKED[id(model), system] = model, hashlib.sha256(asked.encode("utf-8", "surrogatepass"))
    return known


def is_former(key: str) -> bool:
    """Whether it is of format 4."""
    return len(key) == _FORMER


def former_key_of(job: Job, call: Call) -> str:
    """As format 4 had it."""
    request, model = call.request, call.model
    asked = (model.name, model.model, *[endpoint.base_url for endpoint in model.endpoints])
    parts = (
        job.origin,
        repr(job.published_at),
        *asked,
        job.tenant or "",
        job.task,
        job.id,
        str(job.round),
        job.digest,
        call.model.name,
        request.system,
        request.user,
        str(call.draw),
    )
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
