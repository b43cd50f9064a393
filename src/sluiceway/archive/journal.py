"""The journal: the local store as the runner uses it, one write for all calls and jobs of a turn of the event loop."""

from __future__ import annotations

from sluiceway.archive.store import Store
from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.catalog import Api
from sluiceway.core.job import Job

_PAID = (Api.OPENAI, Api.ANTHROPIC)  # what answers in-process costs nothing to ask again


class Journal:
    """Implements `ports.Journal` over a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def held(self, job: Job, call: Call) -> Reply | None:
        """The reply that this call got from us before."""
        return self._store.reply(job, call) if call.model.api in _PAID else None

    async def started(self, job: Job, call: Call) -> None:
        """Returns when it is on record that the call is made. Raises Bug when the store can't be written."""
        if call.model.api not in _PAID:
            return
        self._store.started(job, call)
        await self._store.written()

    def ended(self, job: Job, call: Call, event: Reply | Failure) -> None:
        """Puts on record, in a moment, what came of the call."""
        if call.model.api in _PAID:
            self._store.ended(job, call, event if isinstance(event, Reply) else None)
            self._store.soon()
