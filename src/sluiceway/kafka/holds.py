"""Held partitions on record in the control topic: known to the whole group, across restarts, until an operator resumes.

Implements `kafka.role.Holds`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

from sluiceway.core.control import Hold, Record, Resume, held, hold_at, hold_key, place, resume_key
from sluiceway.core.errors import InputError
from sluiceway.core.held import Partition
from sluiceway.kafka.control import Control
from sluiceway.kafka.meter import Meter, NoMeter

_CATCH_UP = 5.0  # seconds; a rebalance waits for it, and while the cluster is away what was last seen must do
_FLOOD = "flood"
_DETAIL = "too many of its jobs became dead letters"

OnResume = Callable[[str, Partition], None]
"""Told of a group and its partition that an operator has resumed."""


class ControlHolds:
    """Made inside the running loop. `instance` says who held a partition; `wall` tells epoch seconds."""

    def __init__(
        self,
        control: Control,
        instance: str,
        wall: Callable[[], float],
        on_resume: OnResume,
        meter: Meter | None = None,
    ) -> None:
        self._control = control
        self._instance = instance
        self._wall = wall
        self._on_resume = on_resume
        self._meter: Meter = meter or NoMeter()
        self._telling: set[asyncio.Task[None]] = set()
        control.on_change(self._changed)

    async def known(self, group: str) -> Collection[Partition]:
        """Those that are held now: all that was acked before this call is known, unless the cluster is away."""
        if not await self._control.catch_up(_CATCH_UP):
            self._meter.notice("holds_not_current", group=group)
        return held(self._control.records, group)

    def flooded(self, group: str, partition: Partition) -> None:
        """Returns at once; it is put on record as soon as the cluster takes it."""
        resumed = self._control.get(resume_key(group, partition))
        at = hold_at(self._wall(), resumed if isinstance(resumed, Resume) else None)
        hold = Hold(at, _FLOOD, _DETAIL, self._instance)
        task = asyncio.create_task(self._tell(hold_key(group, partition), hold))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, key: str, hold: Hold) -> None:
        try:
            while not await self._control.put(key, hold):
                self._meter.notice("hold_not_acked", key=key)
        except InputError as error:
            # It is held here all the same; what can't be told is that to the next worker.
            self._meter.notice("hold_refused", key=key, detail=error.detail)

    def _changed(self, key: str, record: Record | None) -> None:
        named = place(key)
        if named is None or not (isinstance(record, Resume) or (record is None and key.startswith("hold/"))):
            return
        group, partition = named
        if partition not in held(self._control.records, group):
            self._on_resume(group, partition)

    async def stop(self, budget: float) -> bool:
        """True if every hold was put on record within `budget` seconds."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=budget)
        left = list(self._telling)
        for task in left:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*left)
        return not left
