"""The fetch loop: asks `core.stream` what is wanted, fetches just that, hands whole batches to the intake.

It owns its wake-up: new data, room that was made, or half a second. Nothing it has fetched is ever dropped for want of
room: a partition that is full is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiokafka import ConsumerRecord

from sluiceway.core.errors import InputError
from sluiceway.core.stream import Partition, Stream
from sluiceway.kafka.agents import Batch, Intake
from sluiceway.kafka.group import Group, OutOfRangeError, UnansweredError
from sluiceway.kafka.meter import Meter
from sluiceway.kafka.role import RoleSettings
from sluiceway.ports import Record

_LOOK = 0.5  # seconds: the longest time without a look, should a wake-up ever be missed


class FetchLoop:
    """`fail` is told what ends the role; `run` then returns."""

    def __init__(
        self,
        stream: Stream,
        group: Group,
        intake: Intake,
        settings: RoleSettings,
        meter: Meter,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._stream = stream
        self._group = group
        self._intake = intake
        self._settings = settings
        self._meter = meter
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._nudge: asyncio.Future[None] | None = None
        self._nudged = False
        self._stopping = False
        self._not_before: dict[Partition, float] = {}  # partitions whose last fetch failed

    async def run(self) -> None:
        try:
            while not self._stopping:
                batches = await self._fetch()
                if batches:
                    await self._intake.put(batches)
                else:
                    await self._something()
        except Exception as error:  # noqa: BLE001  top of the task
            self._fail(error)

    def wake(self) -> None:
        """Something may be wanted that was not before."""
        self._nudged = True
        if self._nudge is not None and not self._nudge.done():
            self._nudge.set_result(None)

    def stop(self) -> None:
        self._stopping = True
        self.wake()

    async def _fetch(self) -> list[Batch]:
        batches = []
        room = self._stream.room()
        for partition, epoch, count in self._stream.wanted():
            if room <= 0:
                break
            if not self._is_current(partition, epoch):
                continue
            if self._not_before and self._not_before.get(partition, 0.0) > self._loop.time():
                continue
            began = self._loop.time()
            try:
                records, position = await self._group.fetch(partition, min(count, room))
            except UnansweredError as error:
                self._meter.notice("fetch_retried", topic=partition.topic, error=str(error))
                self._not_before[partition] = self._loop.time() + self._settings.retry_pause
                continue
            except OutOfRangeError as error:
                self._fail(
                    InputError(
                        "offset_expired",
                        f"{error}: this offset is not in the topic (deleted by retention, or the topic was recreated)."
                        " Records were never read. Mend: set the group's offset with kafka-consumer-groups"
                        " --reset-offsets, knowing that they are lost",
                    )
                )
                break
            room -= len(records)
            if self._settings.batched is not None and records:
                self._settings.batched("poll", partition.topic, self._settings.group, self._loop.time() - began)
            if position is not None and (records or self._stream.moved(partition, epoch, position)):
                batches.append(Batch(partition, epoch, [_record(record) for record in records], position))
        if self._settings.delays:
            self._group.pass_over(self._settings.delays)  # the rest of a retry topic is read when its head is due
        return batches

    def _is_current(self, partition: Partition, epoch: int) -> bool:
        """False where an earlier fetch of this turn let a rebalance in: a new epoch's position is not ours to move."""
        return self._stream.epoch(partition) == epoch

    async def _something(self) -> None:
        if self._nudged:
            self._nudged = False
            await asyncio.sleep(0)
            return
        if (error := self._group.broken()) is not None and not self._stopping:
            self._broken(error)
            await asyncio.sleep(self._settings.retry_pause)
            return
        arrival = self._group.arrival()
        self._nudge = self._loop.create_future()
        try:
            await asyncio.wait([arrival, self._nudge], timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
            if arrival.done() and (fault := arrival.exception()) is not None:
                self._broken(fault)
                await asyncio.sleep(self._settings.retry_pause)
        finally:
            arrival.cancel()
            self._nudge = None
            self._nudged = False

    def _broken(self, error: BaseException) -> None:
        """aiokafka's coordination has met an error that it does not mend by itself."""
        self._meter.notice("group_error", group=self._settings.group, error=repr(error))
        if getattr(error, "retriable", False):
            return
        group, instance = self._settings.group, self._settings.instance
        # aiokafka has no name for FENCED_INSTANCE_ID, the broker's answer to the one of two owners that it has left.
        if instance is not None and "UnknownError" in repr(error):
            detail = (
                f"group {group}: another live worker runs as --instance {instance}, and the broker has fenced this one"
                f" ({error!r}). Mend: give each worker a name of its own"
            )
            self._fail(InputError("instance", detail))
            return
        self._fail(InputError("group", f"group {group}: {error!r}. Mend: check the principal's rights on the group"))


def _record(record: ConsumerRecord) -> Record:
    return Record(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp / 1000,
        record.key,
        record.value,
        record.headers,
    )
