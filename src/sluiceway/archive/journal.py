"""The journal: the local store as the runner uses it, one write for all calls of a turn of the event loop."""

from __future__ import annotations

from collections.abc import Awaitable

from sluiceway.archive.flight import FLOWN
from sluiceway.archive.inputs import Inputs, OnReused
from sluiceway.archive.keys import former_key_of, key_of
from sluiceway.archive.store import Store
from sluiceway.archive.turns import Flown
from sluiceway.core import ledger
from sluiceway.core.call import Call, Failure, Reply, Usage
from sluiceway.core.catalog import Api
from sluiceway.core.job import Job

_PAID = (Api.OPENAI, Api.ANTHROPIC)  # what answers in-process costs nothing to ask again


class Entry:
    """Implements `ports.Entry`: one call, from before it is made to after it came back."""

    __slots__ = ("_flown", "_store", "call", "job", "key", "number", "reply")

    def __init__(self, store: Store, job: Job, call: Call, flown: Flown | None) -> None:
        self._store = store
        self._flown = flown
        self.job = job
        self.call = call
        self.key = ""  # under which its reply is held, once that is asked for or the turn is over
        self.number = 0
        self.reply: Reply | None = None
        """The one that this very call got before."""

    def look(self) -> None:
        """Finds the reply."""
        replies = self._store.replies
        key = self.key = key_of(self.job, self.call, self.job.digest)
        self.reply = replies.held(key)
        if self.reply is None and replies.former:
            key = former_key_of(self.job, self.call)
            self.reply = replies.held(key)
        if self.reply is not None:
            self._has(key)

    def _has(self, key: str) -> None:
        """The reply of that key goes when a commit covers the job."""
        flown = self._flown
        if flown is None or flown.forsaken:
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
            key = self.key or key_of(self.job, self.call, self.job.digest)
            store.replies.keep(key, event)
            self._has(key)
            store.turn.answered.append(self.number)
        elif flown is None or not _billed(event):
            store.turn.answered.append(self.number)
        else:
            flown.calls += (self.number,)
        store.soon()


class Journal:
    """Implements `ports.Journal` over a `Store`. `reused` is told of ids that come with different inputs."""

    made = Entry  # the simulation's tells of a call that is made though its reply is on file

    def __init__(self, store: Store, reused: OnReused | None = None) -> None:
        self._store = store
        self._inputs = None if reused is None else Inputs(store, reused)
        self._fresh: list[Entry] = []
        store.gathers.append(self._gather)

    def entry(self, job: Job, call: Call) -> Entry | None:
        """What is known of this call; None for one that nobody pays for."""
        store = self._store
        if call.model.api not in _PAID:
            if self._inputs is not None:
                self._inputs.saw(job, job.digest)
                store.soon()
            return None
        flown = FLOWN.get()
        entry = self.made(store, job, call, flown)
        self._fresh.append(entry)
        # None is held for the first call of a job that was published in the very record which is worked on, if all
        # that are held are those of other jobs in flight. One that a role handed over may come in two records.
        if flown is None or flown.asked or store.replies.strays or flown.place[3] != job.published_at:
            entry.look()
        if flown is not None:
            flown.asked = True
        return entry

    def _gather(self) -> None:
        """All that asks for a job's input and its place, at the end of the turn in which its call begins.

        Then that is near at hand, for all of the turn's jobs in one loop.
        """
        fresh, self._fresh = self._fresh, []
        inputs = self._inputs
        for entry in fresh:
            job = entry.job
            digest = job.digest
            if inputs is not None:
                inputs.saw(job, digest)
            if not entry.key:
                entry.key = key_of(job, entry.call, digest)


def _billed(event: Reply | Failure) -> bool:
    """Whether the endpoint may want money for it."""
    return isinstance(event, Reply) or event.usage != Usage() or ledger.lost(event)
