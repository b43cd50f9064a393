"""This process's part of shared limits and budgets, kept by its records in the control topic.

It performs what core/share.py and core/claim.py decide. While the cluster is away no heartbeat comes back: after a
lease's time the parts of limits are 0, as others may have taken them; what was granted of a budget stays.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import inf

from sluiceway.core.claim import Claims, name_of
from sluiceway.core.control import Lease, Record, Spend
from sluiceway.core.errors import InputError
from sluiceway.core.ledger import DayBudget
from sluiceway.core.share import LEASE, Share
from sluiceway.kafka.control import Control
from sluiceway.kafka.meter import Meter, NoMeter

_OLD = 2 * 86_400.0  # seconds; what has been over for so long is nobody's, and its key is deleted
_START = 20.0
_LOOK = 0.25  # seconds between two looks at what was spent

SetParts = Callable[[Mapping[str, float]], None]
"""Told of this process's part (0.0 to 1.0) of each limit, at each change."""


def worker_name(instance: str) -> str:
    """A name that no other process has or ever had; `instance` is for people."""
    return f"{instance}-{secrets.token_hex(6)}"


class Shares:
    """Made inside the running loop, with a Control that has started. `uses`: the limits that calls here count against.

    `now` tells epoch seconds that never run backwards. `budgets`, by task, are spent within what is granted of them.
    """

    def __init__(
        self,
        control: Control,
        worker: str,
        uses: Iterable[str],
        set_parts: SetParts,
        now: Callable[[], float],
        *,
        budgets: Mapping[str, DayBudget] | None = None,
        seconds: float = LEASE,
        meter: Meter | None = None,
    ) -> None:
        self._control = control
        self._key, self._spend_key = f"lease/{worker}", f"spend/{worker}"
        self._limits = frozenset(uses)
        self._set_parts = set_parts
        self._now = now
        self._patience = seconds / 2
        self._meter: Meter = meter or NoMeter()
        budgets = budgets or {}
        share = Share(worker, [*self._limits, *map(name_of, budgets)], now(), seconds=seconds)
        self._share = share
        self._claims = Claims(worker, budgets, lambda task: share.sharers(name_of(task)), now())
        self._look = _LOOK if budgets else inf
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
        """Returns when our first heartbeat was acked and each budget has a part for us, if anything of it is left.

        Parts of limits are 0 until others count us; `set_parts` was told so before anything is awaited. Where others
        are slow to give up a part of a budget it returns after `within` seconds all the same. Raises InputError where
        the cluster takes no record of ours in that time.
        """
        self._apply()
        now = self._now()
        for key, record in self._control.records.items():
            self._see(key, record, now, stood=True)
        self._control.on_change(self._changed)
        if not await self._control.put(self._key, self._share.beat(now), within):
            raise InputError("control", "the control topic takes no record. Mend: is the cluster healthy?")
        self._task = asyncio.create_task(self._beat(), name="shares")
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self._claims.settled(self._now()):  # noqa: ASYNC110  midnight grants too, and is no event
                    await asyncio.sleep(0.02)
            return
        self._meter.notice("budgets_not_granted", workers=len(self._share.workers))

    async def stop(self, budget: float) -> bool:
        """True if others were told within `budget` seconds that we leave. To be called when nothing calls any more."""
        if self._task is None:
            return True
        self._task.cancel()
        await asyncio.wait([self._task], timeout=budget / 4)
        self._task = None
        now = self._now()
        spend, lease = self._claims.record(now, last=True), self._share.leave(now)
        self._apply()
        puts: list[tuple[str, Record | None]] = [(self._key, lease), (self._key, None)]
        if spend.tasks:
            puts.insert(0, (self._spend_key, spend))
        try:
            for key, record in puts:
                if not await self._control.put(key, record, budget / 4):
                    return False
        except InputError:
            return False
        return True

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
                if self._claims.due(now):
                    await self._put(self._spend_key, self._claims.record(now))
                    continue
                ends = share.ends if share.ends > now else inf
                await self._wait(min(share.due(now), ends - now, self._look))
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
        """Deletes the records of those who died long ago: nobody else will."""
        old = self._now() - _OLD
        day = datetime.fromtimestamp(old, UTC).date().isoformat()
        for key, record in self._control.records.items():
            if isinstance(record, Lease):
                over = record.at + record.seconds < old
            else:
                over = isinstance(record, Spend) and all(claim.day < day for claim in record.tasks.values())
            if over and key not in (self._key, self._spend_key):
                await self._put(key, None)

    def _changed(self, key: str, record: Record | None) -> None:
        if key.startswith(("lease/", "spend/")):
            self._see(key, record, self._now())
            self._apply()
            self._wake.set()

    def _see(self, key: str, record: Record | None, now: float, *, stood: bool = False) -> None:
        kind, _, worker = key.partition("/")
        if isinstance(record, Lease):
            self._share.see(worker, record, now, stood=stood)
        elif kind == "spend" and (record is None or isinstance(record, Spend)):
            self._claims.see(worker, record, now)

    def _apply(self) -> None:
        now = self._now()
        parts = {limit: self._share.part(limit, now) for limit in self._limits}
        if parts != self._parts:
            self._parts = parts
            self._set_parts(dict(parts))
            self._meter.notice("parts", workers=len(self._share.workers), least=min(parts.values(), default=0.0))
