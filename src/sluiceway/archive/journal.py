"""The journal: the local store as the runner uses it, one write for all calls of a turn of the event loop."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from typing import Any

from sluiceway.archive.flight import FLOWN
from sluiceway.archive.inputs import Inputs, OnReused
from sluiceway.archive.store import Store
from sluiceway.archive.turns import Flown
from sluiceway.core import ledger
from sluiceway.core.call import Call, Failure, Reply, Usage
from sluiceway.core.catalog import Api, Model
from sluiceway.core.job import Job

_PAID = (Api.OPENAI, Api.ANTHROPIC)  # what answers in-process costs nothing to ask again


class Entry:
    """Implements `ports.Entry`: one call, from before it is made to after it came back."""

    __slots__ = ("_flown", "_store", "call", "digest", "job", "number", "reply")

    def __init__(self, store: Store, job: Job, call: Call, flown: Flown | None) -> None:
        self._store = store
        self._flown = flown
        self.job = job
        self.call = call
        self.digest = ""  # of its input, where it is known
        self.number = 0
        self.reply: Reply | None = None
        """The one that this very call got before."""

    @property
    def key(self) -> str:
        """Under which its reply is held."""
        return key_of(self.job, self.call, self.digest or self.job.digest)

    def look(self) -> None:
        """Finds the reply."""
        replies, key = self._store.replies, self.key
        self.reply = replies.held(key)
        if self.reply is None and replies.former:
            key = former_key_of(self.job, self.call)
            self.reply = replies.held(key)
        if self.reply is not None:
            self._has(key)

    def _has(self, key: str) -> None:
        """The reply of that key goes when a commit covers the job."""
        flown = self._flown
        if flown is None:
            self._store.replies.strays.add(key)
        elif key not in flown.replies:
            flown.replies += (key,)

    def started(self) -> Awaitable[None]:
        """Returns when it is on record that the call is made. Raises Bug when the store can't be written."""
        store = self._store
        store.turn.called.append(self)
        return store.written()

    def ended(self, event: Reply | Failure) -> None:
        """Puts on record, in a moment, what came of the call; its reply too, unless its data may not be kept.

        What may be billed and is not kept here stands in the job's trail alone: until that is published the call counts
        as one whose reply never came.
        """
        store, flown = self._store, self._flown
        if isinstance(event, Reply) and self.call.clearance <= store.bounds.clearance:
            store.replies.fresh.append((self, event))
            store.turn.answered.append(self.number)
        elif flown is None or not _billed(event):
            store.turn.answered.append(self.number)
        else:
            flown.calls += (self.number,)
        if not store.due:
            store.soon()

    def named(self) -> str:
        """The key that its reply lies under from now on."""
        key = self.key
        self._has(key)
        return key


class Journal:
    """Implements `ports.Journal` over a `Store`. `reused` is told of ids that come with different inputs."""

    made = Entry

    def __init__(self, store: Store, reused: OnReused | None = None) -> None:
        self._store = store
        self._inputs = None if reused is None else Inputs(store, reused)

    def entry(self, job: Job, call: Call) -> Entry | None:
        """What is known of this call; None for one that nobody pays for."""
        store, flown = self._store, FLOWN.get()
        entry = self.made(store, job, call, flown)
        if self._inputs is not None:
            self._inputs.seen.append(entry)
        if call.model.api not in _PAID:
            store.soon()
            return None
        # None is held for the first call of a job that was published in the very record which is worked on, if all
        # that are held are those of other jobs in flight. One that a role handed over may come in two records.
        if flown is None or flown.asked or store.replies.strays or flown.place[3] != job.published_at:
            entry.look()
        if flown is not None:
            flown.asked = True
        return entry


def _billed(event: Reply | Failure) -> bool:
    """Whether the endpoint may want money for it."""
    return isinstance(event, Reply) or event.usage != Usage() or ledger.lost(event)


_ASKED: dict[tuple[int, str], tuple[Model, Any]] = {}
"""What is the same in the keys of many calls, hashed, by the model's id and the prompt's system part."""

_MOST = 256


def key_of(job: Job, call: Call, digest: str) -> str:
    """Of the same record's same call: a copy published again, or a record of a topic made anew, is another call."""
    request, model = call.request, call.model
    known = _ASKED.get((id(model), request.system))
    if known is None:
        urls = [endpoint.base_url for endpoint in model.endpoints]
        asked = "\0".join([model.name, model.model, *urls, request.system])
        if len(_ASKED) >= _MOST:
            _ASKED.clear()
        known = _ASKED[id(model), request.system] = (model, hashlib.sha256(asked.encode("utf-8", "surrogatepass")))
    told = (
        f"\0{job.origin}\0{round(job.published_at * 1000)}\0{job.tenant or ''}\0{job.task}\0{job.id}\0{job.round}"
        f"\0{digest}\0{call.draw}\0{request.user}"
    )
    whole = known[1].copy()
    whole.update(told.encode("utf-8", "surrogatepass"))
    return whole.hexdigest()[:40]


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
