"""Packed calls: small jobs of one task wait a moment for each other and go out in one call. Experimental.

It stands between what shares answers and the pool, and decides nothing itself: core/packing.py does. To the runner each
job makes its own call and gets its own reply, with its exact share of the usage. A job whose answer is missing or
malformed, or whose packed call the endpoint refuses as such, gets a call of its own at once, and pays for both. A
packed call that fails otherwise is each job's own failure, to be tried again by its cascade's rules: packed again, for
an endpoint in trouble wants fewer calls, not more; but the last of several tries is alone, so that no job is given up
for what a neighbour did to the endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sluiceway.core import packing
from sluiceway.core.allowance import TIMEOUT
from sluiceway.core.call import Call, Failure, FailureKind, Reply, Usage
from sluiceway.core.packing import Packer, Standing
from sluiceway.core.prompt import schema_name
from sluiceway.core.task import Task
from sluiceway.ports import Clock, Models, Tokens

Alike = Callable[[Call, Iterable[str]], None]
"""Told of a packed call that has ended: what is now known of its `job_id` is to be known of these jobs instead."""

_REMEMBERED = 10_000  # jobs that failed in a pack

_Told = Reply | Failure | Usage | None
"""What a job gets of its pack. A Usage: only this to pay, and it makes a call of its own. None: it was in no call."""


@dataclass(slots=True, eq=False)
class _Pack:
    """Jobs that gather, or that wait for the reply to their call."""

    key: Hashable
    packer: Packer
    calls: list[Call] = field(default_factory=list)
    places: list[asyncio.Future[_Told]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class PackedCalls:
    """Implements `ports.Models` over another, for the tasks of a policy that have `packing:`.

    `packs` counts packed calls, `packed` the jobs in them, `redone` those that needed a call of their own as well.
    """

    def __init__(
        self, inner: Models, tasks: Mapping[str, Task], tokens: Tokens, clock: Clock, alike: Alike | None = None
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._alike = alike
        self._packers = {
            schema_name(task): Packer(task, task.packing, tokens) for task in tasks.values() if task.packing is not None
        }
        self._open: dict[Hashable, _Pack] = {}
        self._standing: dict[tuple[str, str], Standing] = {}
        self._failed: dict[tuple[str, str], int] = {}  # by model and job: how many packs failed, overload not counted
        self.packs = self.packed = self.redone = 0

    async def call(self, call: Call) -> Reply | Failure:
        packer = self._packers.get(call.request.schema_name)
        if packer is None:
            return await self._inner.call(call)
        if not self._joins(packer, call):
            return await self._alone(call)
        told = await self._wait(*self._join(packer, call))
        if told is None:
            return await self._alone(call)
        if not isinstance(told, Usage):
            return told
        self.redone += 1
        own = await self._alone(call)
        return replace(own, usage=told + own.usage)

    async def _alone(self, call: Call) -> Reply | Failure:
        found = await self._inner.call(call)
        if self._failed and isinstance(found, Reply):
            self._failed.pop((call.model.name, call.job_id), None)
        return found

    # -- gathering -----------------------------------------------------------------------------------------------------

    def _joins(self, packer: Packer, call: Call) -> bool:
        if self._failed and self._failed.get((call.model.name, call.job_id), 0) >= packer.patience:
            return False
        now = self._clock.now()
        return not self._standing_of(call).rests(now) and packer.takes(call, now)

    def _standing_of(self, call: Call) -> Standing:
        return self._standing.setdefault((call.model.name, call.request.schema_name), Standing())

    def _join(self, packer: Packer, call: Call) -> tuple[_Pack, asyncio.Future[_Told]]:
        """The job's pack and its place there. A pack that is full goes out; the first job of a pack sets its time."""
        key = packing.together(call)
        pack = self._open.get(key)
        if pack is not None and not packer.fits(pack.calls, call):
            self._close(pack)
            pack = None
        loop = asyncio.get_running_loop()
        if pack is None:
            pack = self._open[key] = _Pack(key, packer)
            pack.timer = loop.call_later(packer.rules.wait, self._close, pack)
        place: asyncio.Future[_Told] = loop.create_future()
        pack.calls.append(call)
        pack.places.append(place)
        if len(pack.calls) >= packer.rules.jobs:
            self._close(pack)
        return pack, place

    def _close(self, pack: _Pack) -> None:
        """Nobody joins it any more: it goes out, or each goes alone where that is no dearer."""
        del self._open[pack.key]
        if pack.timer is not None:
            pack.timer.cancel()
        if not pack.packer.pays(pack.calls):
            _tell(pack.places, [None] * len(pack.places))
            return
        pack.task = asyncio.get_running_loop().create_task(self._send(pack))

    async def _wait(self, pack: _Pack, place: asyncio.Future[_Told]) -> _Told:
        try:
            return await place
        except asyncio.CancelledError:
            self._leave(pack, place)
            raise

    def _leave(self, pack: _Pack, place: asyncio.Future[_Told]) -> None:
        """A job is given up while it waits. Before its pack has gone out it is not in it."""
        if self._open.get(pack.key) is pack:
            at = pack.places.index(place)
            del pack.calls[at], pack.places[at]
            if not pack.places:
                del self._open[pack.key]
                if pack.timer is not None:
                    pack.timer.cancel()
        elif pack.task is not None and all(each.cancelled() for each in pack.places):
            pack.task.cancel()

    # -- one call for all ----------------------------------------------------------------------------------------------

    async def _send(self, pack: _Pack) -> None:
        """Makes the call and tells everybody what came of it; a Bug is raised where each waits."""
        try:
            await self._perform(pack)
        except Exception as error:  # the top of a task: whoever waits for it raises it
            waiting = [place for place in pack.places if not place.done()]
            if not waiting:
                raise
            for place in waiting:
                place.set_exception(error)

    async def _perform(self, pack: _Pack) -> None:
        calls = pack.calls
        count = len(calls)
        # It is a second try if it is one for any of them.
        known = [call.job_id for call in calls if (call.model.name, call.job_id) in self._failed]
        whole = pack.packer.pack(calls, known[0] if known else f"packed {calls[0].job_id}")
        self.packs += 1
        self.packed += count
        event = await self._inner.call(whole)
        now = self._clock.now()
        if self._alike is not None and (known or isinstance(event, Failure)):
            # Refused for being packed, it says nothing of them.
            refused = isinstance(event, Failure) and event.kind is FailureKind.INVALID
            self._alike(whole, [] if refused else [call.job_id for call in calls])
        found: Sequence[Reply | Failure | None]
        standing = self._standing_of(calls[0])
        if isinstance(event, Reply):
            found = pack.packer.unpack(event, count)
            standing.answered(count - found.count(None), count, now)
            self._forget(calls)
        elif event.kind is FailureKind.INVALID:
            standing.answered(0, count, now)
            found = [None] * count
        else:
            if event.detail == TIMEOUT:
                standing.answered(0, count, now)  # perhaps so many answers take too long
            self._remember(calls, 0 if event.kind is FailureKind.OVERLOADED else 1)
            found = [replace(event, packed=count)] * count
        self._share(pack, found, event.usage)

    @staticmethod
    def _share(pack: _Pack, found: Sequence[Reply | Failure | None], usage: Usage) -> None:
        """Each gets what is its own, with its share."""
        stay = [at for at, place in enumerate(pack.places) if not place.done()]
        if not stay:
            return
        paid = packing.paid(usage, pack.calls, stay)
        told: list[_Told] = []
        first = True  # of those who get what the call came to: it stands for the call
        for at, share in zip(stay, paid, strict=True):
            own = found[at]
            told.append(share if own is None else replace(own, usage=share, copy=not first))
            first = first and own is None
        _tell([pack.places[at] for at in stay], told)

    def _remember(self, calls: Sequence[Call], failed: int) -> None:
        for call in calls:
            key = (call.model.name, call.job_id)
            self._failed[key] = self._failed.pop(key, 0) + failed
        while len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]

    def _forget(self, calls: Sequence[Call]) -> None:
        if self._failed:
            for call in calls:
                self._failed.pop((call.model.name, call.job_id), None)

    async def close(self) -> None:
        """Whoever still gathers goes alone, and finds the models closed."""
        for pack in list(self._open.values()):
            del self._open[pack.key]
            if pack.timer is not None:
                pack.timer.cancel()
            _tell(pack.places, [None] * len(pack.places))
        await self._inner.close()

    def __repr__(self) -> str:
        return f"PackedCalls({len(self._open)} open, {self.packed} jobs in {self.packs} calls, {self.redone} redone)"


def _tell(places: Sequence[asyncio.Future[_Told]], told: Sequence[_Told]) -> None:
    for place, own in zip(places, told, strict=True):
        if not place.done():
            place.set_result(own)
