"""The journal: the local store as the runner uses it, one write for all calls of a turn of the event loop."""

from __future__ import annotations

import asyncio

from sluiceway.archive.store import Store
from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.catalog import Api
from sluiceway.core.job import Job

_PAID = (Api.OPENAI, Api.ANTHROPIC)  # what answers in-process costs nothing to ask again


class Journal:
    """Implements `ports.Journal` over a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: asyncio.Future[None] | None = None

    def held(self, job: Job, call: Call) -> Reply | None:
        """The reply that this call got from us before."""
        return self._store.reply(job, call) if call.model.api in _PAID else None

    async def started(self, job: Job, call: Call) -> None:
        """Returns when it is on record that the call is made. Raises Bug when the store can't be written."""
        if call.model.api not in _PAID:
            return
        self._store.started(job, call)
        await self._flushed()

    def ended(self, job: Job, call: Call, event: Reply | Failure) -> None:
        """Puts on record, in a moment, what came of the call."""
        if call.model.api in _PAID:
            self._store.ended(job, call, event if isinstance(event, Reply) else None)
            self._flushed().add_done_callback(_seen)

    def _flushed(self) -> asyncio.Future[None]:
        """Done after the next flush, which is at the end of this turn of the loop."""
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            loop.call_soon(self._flush)
        return self._written

    def _flush(self) -> None:
        written, self._written = self._written, None
        try:
            self._store.flush()
        except Exception as error:  # noqa: BLE001  top of a callback: whoever awaits it fails with it
            if written is not None and not written.done():
                written.set_exception(error)
            return
        if written is not None and not written.done():
            written.set_result(None)


def _seen(written: asyncio.Future[None]) -> None:
    """A write that failed is raised by the next `started`, which finds the same disk."""
    if not written.cancelled():
        written.exception()
