"""The keys of replies in the local store: of the same record's same call, whose reply is then the same.

A copy of a record that was published again, or a record of a topic made anew, is another call. So is one of the same
record to another model, with another prompt, of another input or of another draw. All of that is said outright, or by
SHA-256, but for the user part of the prompt, which follows from what is said. It differs for one record only where the
policy has changed, or where an answer is asked for once more: then one prompt in four thousand million of the same
length is taken for the other. Tenant and task follow from the record and the system part.
"""

from __future__ import annotations

import hashlib
from typing import Any
from zlib import crc32

from sluiceway.core.call import Call
from sluiceway.core.catalog import Model
from sluiceway.core.job import Job

_FORMER = (32, 40)  # characters of a key in formats 4 and 5
_MOST = 256

_ASKED: dict[tuple[int, str], tuple[Model, str, Any]] = {}
"""What is the same in the keys of many calls, by the model's id and the prompt's system part: digest and hash."""


def key_of(job: Job, call: Call, digest: str) -> str:
    """`digest` is the job's own, which whoever calls may know."""
    request = call.request
    _, asked, _ = _ASKED.get((id(call.model), request.system)) or _asked(call)
    user = crc32(request.user.encode("utf-8", "surrogatepass"))
    at = round(job.published_at * 1000)
    return f"{asked} {job.origin} {at} {job.round} {call.draw} {digest} {len(request.user):x}-{user:x} {job.id}"


def is_former(key: str) -> bool:
    """Whether it is of a former format."""
    return len(key) in _FORMER


def former_keys_of(job: Job, call: Call) -> tuple[str, str]:
    """As formats 5 and 4 had it."""
    request, model, digest = call.request, call.model, job.digest
    told = (
        f"\0{job.origin}\0{round(job.published_at * 1000)}\0{job.tenant or ''}\0{job.task}\0{job.id}\0{job.round}"
        f"\0{digest}\0{call.draw}\0{request.user}"
    )
    whole = _asked(call)[2].copy()
    whole.update(told.encode("utf-8", "surrogatepass"))
    parts = (
        job.origin,
        repr(job.published_at),
        model.name,
        model.model,
        *[endpoint.base_url for endpoint in model.endpoints],
        job.tenant or "",
        job.task,
        job.id,
        str(job.round),
        digest,
        model.name,
        request.system,
        request.user,
        str(call.draw),
    )
    first = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16)
    return whole.hexdigest()[: _FORMER[1]], first.hexdigest()


def _asked(call: Call) -> tuple[Model, str, Any]:
    model, system = call.model, call.request.system
    urls = [endpoint.base_url for endpoint in model.endpoints]
    hashed = hashlib.sha256("\0".join([model.name, model.model, *urls, system]).encode("utf-8", "surrogatepass"))
    if len(_ASKED) >= _MOST:
        _ASKED.clear()
    known = _ASKED[id(model), system] = model, hashed.hexdigest()[:32], hashed
    return known
