"""This process's part of shared limits, kept by heartbeats in the control topic. It performs what core/share.py says.

While the cluster is away no heartbeat comes back: after a lease's time the parts are 0, as others may have taken them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from math import inf

from sluiceway.core.control import Lease, Record
from sluiceway.core.errors import InputError
from sluiceway.core.share import LEASE, Share
from sluiceway.kafka.control import Control
from sluiceway.kafka.meter import Meter, NoMeter

_KIND = "lease"
_OLD = 86_400.0  # seconds; a lease that has been over for so long is nobody's, and its key is deleted
_START = 20.0

SetParts = Callable[[Mapping[str, float]], None]
"""Told of this process's part (0.0 to 1.0) of each limit, at each change."""


def worker_name(instance: str) -> str:
    """A name that no other process has or ever had; `instance` is for people."""
    return f"{instance}-{secrets.token_hex(6)}"


class Shares:
    """Made inside the running loop, with a Control that has started. `uses`: the limits that calls here count against.

    `now` tells epoch seconds that never run backwards.
    """

    def __init__(
        self,
        control: Control,
        worker: str,
        uses: Iterable[str],
        set_parts: SetParts,
        now: Callable[[], float],
        *,
        seconds: float = LEASE,
        meter: Meter | None = None,
    ) -> None:
        self._control = control
        self._worker = worker
        self._key = f"{_KIND}/{worker}"
        self._set_parts = set_parts
        self._now = now
        self._patience = seconds / 2
        self._meter: Meter = meter or NoMeter()
        self._share = Share(worker, uses, now(), seconds=seconds)
        self._parts: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Shares {self._share!r} {self._parts}>"

    @property
    def workers(self) -> tuple[str, ...]:
        """All workers whose leases run, as far as is known here."""
        return self._share.workers

    @property
    def parts(self) -> dict[str, float]:
        return dict(self._parts)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self, within: float = _START) -> None:
        """Returns when our first heartbeat is known to have been written; parts are 0 until others count us.

        `set_parts` has been told of 0 before anything is awaited. Raises InputError where the cluster takes no record
        of ours `within` seconds.
        """
        self._apply()
        now = self._now()
        for key, lease in self._control.values(_KIND).items():
            if isinstance(lease, Lease):
                self._share.see(key.partition("/")[2], lease, now, stood=True)
        self._control.on_change(self._changed)
        if not await self._control.put(self._key, self._share.beat(now), within):
            raise InputError("control", "the control topic takes no record. Mend: is the cluster healthy?")
        self._task = asyncio.create_task(self._beat(), name="shares")

    async def stop(self, budget: float) -> bool:
        """True if others were told within `budget` seconds that we leave. To be called when nothing calls any more."""
        if self._task is None:
            return True
        self._task.cancel()
        await asyncio.wait([self._task], timeout=budget / 4)
        self._task = None
        last = self._share.leave(self._now())
        self._apply()
        try:
            told = await self._control.put(self._key, last, budget / 2)
            return told and await self._control.put(self._key, None, budget / 4)
        except InputError:
            return False

    async def failed(self) -> BaseException:
        """Waits until heartbeats can't go on, and returns why: a Bug."""
        return await asyncio.shield(self._failed)

    # -- the task -----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        share = self._share
        try:
            await self._sweep()
            while True:
                self._wake.clear()
                self._apply()
                now = self._now()
                if share.due(now) <= 0:
                    await self._put(self._key, share.beat(now))
                    continue
                ends = share.ends if share.ends > now else inf
                await self._wait(min(share.due(now), ends - now))
        except Exception as error:  # noqa: BLE001  top of the task: the worker is told, and stops
            if not self._failed.done():
                self._failed.set_result(error)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _put(self, key: str, record: Record | None) -> None:
        # Our lease may end while this waits for its ack.
        put = asyncio.ensure_future(self._control.put(key, record, self._patience))
        try:
            while not put.done():
                left = self._share.ends - self._now()
                await asyncio.wait([put], timeout=left if left > 0 else None)
                self._apply()
            if not put.result():
                self._meter.notice("heartbeat_not_acked", key=key)
        except InputError as error:
            self._meter.notice("heartbeat_refused", key=key, detail=error.detail)
            await self._wait(self._patience)
        finally:
            put.cancel()

    async def _sweep(self) -> None:
        """Deletes the leases of those who died long ago: nobody else will."""
        now = self._now()
        for key, lease in self._control.values(_KIND).items():
            if isinstance(lease, Lease) and lease.at + lease.seconds + _OLD < now:
                await self._put(key, None)

    def _changed(self, key: str, record: Record | None) -> None:
        if isinstance(record, Lease):
            self._share.see(key.partition("/")[2], record, self._now())
            self._apply()
            self._wake.set()

    def _apply(self) -> None:
        parts = self._share.parts(self._now())
        if parts != self._parts:
            self._parts = parts
            self._set_parts(dict(parts))
            self._meter.notice("parts", workers=len(self._share.workers), least=min(parts.values(), default=0.0))
