"""The control topic, as every process keeps it: read whole without a group, then followed; its values by key.

All records of ours go to partition 0, so that everybody reads them in one order. What can't be read as a record is
counted and skipped, and the key keeps its last good value. While the cluster is away the values stay as they were last
seen. Nothing here raises into the worker but a Bug in a callback, which `failed` tells.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from sluiceway.core import control
from sluiceway.core.control import Record
from sluiceway.core.errors import InputError
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.producer import SendFault, close_producer, open_producer, send_fault
from sluiceway.kafka.security import Connection
from sluiceway.kafka.topics import sizes

TOPIC = "sluiceway.control"
_SILENCE = 5.0  # seconds without a record after which the end is asked for, in case aiokafka has stopped unsaid
_LONGEST_PAUSE = 5.0
_REQUEST = 1 << 20  # bytes

OnChange = Callable[[str, Record | None], None]
"""Told of a key and its new record, None where it was deleted. Called on the loop, in the topic's order."""


class Control:
    """Made inside the running loop. `values` and `get` answer from memory."""

    def __init__(self, connection: Connection, topic: str = TOPIC, meter: Meter | None = None) -> None:
        self._connection = connection
        self._topic = topic
        self._meter: Meter = meter or NoMeter()
        self._loop = asyncio.get_running_loop()
        self._records: dict[str, Record] = {}
        self._callbacks: list[OnChange] = []
        self._positions: dict[TopicPartition, int] = {}
        self._moved = asyncio.Condition()
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._producer: AIOKafkaProducer | None = None
        self._idempotent = connection.flag("enable.idempotence")
        self._putting = asyncio.Lock()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self.skipped = 0

    def __repr__(self) -> str:
        return f"<Control {self._topic} keys={len(self._records)} skipped={self.skipped}>"

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self, within: float = 30.0) -> None:
        """All that stood in the topic is known; from now on it is followed. Callbacks are told of what comes after.

        Raises InputError where the topic is missing or the cluster does not answer `within` seconds.
        """
        try:
            async with asyncio.timeout(within):
                if (await sizes(self._connection, [self._topic]))[self._topic] is None:
                    raise InputError(
                        "topics", f"{self._connection.bootstrap} has no {self._topic}. Mend: sluiceway topics apply"
                    )
                self._consumer = await self._opened()
                ends = await self._ends(self._consumer)
                while not self._has_read(ends):
                    await self._read(self._consumer, 0.2)
        except (TimeoutError, KafkaError, OSError) as error:
            await self.stop(2.0)
            raise InputError(
                "connection", f"{self._topic} can't be read from {self._connection.bootstrap} ({error!r})."
                " Mend: check -b, -X and the principal's Read on this topic"
            ) from None  # fmt: skip
        except BaseException:
            await self.stop(2.0)
            raise
        self._task = asyncio.create_task(self._follow(), name="control")

    async def stop(self, budget: float) -> bool:
        """True if all was closed within `budget` seconds. Never waits longer; does nothing the second time."""
        end = self._loop.time() + budget
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=budget / 3)
            self._task = None
        producer, self._producer = self._producer, None
        clean = producer is None or await close_producer(producer, max(0.1, (end - self._loop.time()) / 2))
        consumer, self._consumer = self._consumer, None
        return await _closed(consumer, max(0.1, end - self._loop.time())) and clean

    async def failed(self) -> BaseException:
        """Waits until a callback has raised, and returns what: a Bug. From then on nothing is followed."""
        return await asyncio.shield(self._failed)

    # -- looking ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Record | None:
        return self._records.get(key)

    def values(self, kind: str) -> dict[str, Record]:
        """The records of that kind, by key."""
        return {key: record for key, record in self._records.items() if record.kind == kind}

    @property
    def records(self) -> dict[str, Record]:
        """All records by key, as they are now."""
        return dict(self._records)

    def on_change(self, callback: OnChange) -> None:
        """`callback` is told of every change from now on."""
        self._callbacks.append(callback)

    async def catch_up(self, budget: float) -> bool:
        """True once everything is known that was acked before this call; False where that took over `budget` seconds.

        The cluster may be away then: what is known is what was last seen.
        """
        try:
            async with asyncio.timeout(budget):
                ends = None
                while ends is None:
                    if self._consumer is not None:
                        ends = await self._asked(self._consumer)
                    if ends is None:
                        await asyncio.sleep(0.1)
                async with self._moved:
                    await self._moved.wait_for(lambda: self._has_read(ends))
                return True
        except TimeoutError:
            return False

    # -- writing ------------------------------------------------------------------------------------------------

    async def put(self, key: str, record: Record | None, within: float = 10.0) -> bool:
        """True once the broker has acked it (None deletes the key), False where it did not `within` seconds.

        A record that was not acked may still arrive, before any later one. Raises InputError where the cluster refuses.
        """
        value = None if record is None else control.encode(record)
        try:
            async with asyncio.timeout(within), self._putting:
                await self._put(key.encode(), value)
                return True
        except TimeoutError:
            return False

    async def _put(self, key: bytes, value: bytes | None) -> None:
        pause = 0.1
        while True:
            try:
                if self._producer is None:
                    opened = await open_producer(self._connection, _REQUEST, self._idempotent)
                    self._producer, self._idempotent = opened
                # By hand and not send_and_wait: when our time is up the record stays in line before later ones.
                acked = await self._producer.send(self._topic, value, key=key, partition=0)
                acked.add_done_callback(_look)
                await asyncio.shield(acked)
                return
            except (KafkaError, OSError) as error:
                fault = send_fault(error)
                if fault in (SendFault.REFUSED, SendFault.TOO_LARGE):
                    raise InputError(
                        "control", f"{self._topic}: {type(error).__name__}."
                        " Mend: the principal needs Write on this topic"
                    ) from None  # fmt: skip
                self._meter.notice("control_put_retried", error=type(error).__name__)
                if fault is SendFault.OUT_OF_STEP and self._producer is not None:
                    producer, self._producer = self._producer, None
                    await close_producer(producer, 1.0)
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    # -- the task -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pause = 0.1
        quiet = self._loop.time()
        behind = False
        try:
            while True:
                try:
                    if self._consumer is None:
                        self._consumer = await self._opened()
                    if await self._read(self._consumer, 1.0):
                        quiet, pause, behind = self._loop.time(), 0.1, False
                    elif self._loop.time() - quiet > _SILENCE:
                        quiet = self._loop.time()
                        was, behind = behind, await self._is_behind(self._consumer)
                        if was and behind:
                            raise KafkaError("nothing is fetched though there is more")
                except (KafkaError, OSError) as error:
                    self._meter.notice("control_read_again", error=type(error).__name__)
                    consumer, self._consumer = self._consumer, None
                    await _closed(consumer, 2.0)
                    await asyncio.sleep(pause)
                    pause = min(_LONGEST_PAUSE, pause * 2)
        except Exception as error:  # noqa: BLE001  top of the task: the worker is told, and stops
            if not self._failed.done():
                self._failed.set_result(error)

    async def _opened(self) -> AIOKafkaConsumer:
        """A consumer that stands where the last one has read to, or at the beginning."""
        consumer = AIOKafkaConsumer(
            self._topic,
            **self._connection.client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=self._connection.number("fetch.wait.max.ms"),
        )
        try:
            await consumer.start()
            # Without a group the whole topic is assigned by now.
            places = sorted(consumer.assignment())
            first = await consumer.beginning_offsets(places)
            for place in places:
                consumer.seek(place, max(first[place], self._positions.get(place, 0)))
        except BaseException:
            await _closed(consumer, 2.0)
            raise
        return consumer

    async def _read(self, consumer: AIOKafkaConsumer, within: float) -> bool:
        """Takes in what has come; waits up to `within` seconds for a first record. True if there was one."""
        batches = await consumer.getmany(timeout_ms=int(within * 1000))
        for place, records in batches.items():
            self._take_in(records)
            self._positions[place] = await consumer.position(place)
        if batches:
            async with self._moved:
                self._moved.notify_all()
        return bool(batches)

    def _take_in(self, records: Iterable[Any]) -> None:
        for record in records:
            try:
                key = (record.key or b"").decode()
                known = None if record.value is None else control.decode(key, record.value)
            except (InputError, UnicodeDecodeError) as error:
                self.skipped += 1
                reason = error.reason if isinstance(error, InputError) else "undecodable"
                self._meter.notice("control_record_skipped", offset=record.offset, reason=reason)
                continue
            if known is not None:
                self._records[key] = known
            elif record.value is not None or self._records.pop(key, None) is None:
                continue
            if self._task is None:
                continue  # what stood there at the start
            for callback in self._callbacks:
                callback(key, known)

    async def _ends(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        return dict(await consumer.end_offsets(consumer.assignment()))

    async def _asked(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int] | None:
        """The ends as of now, None where the cluster does not tell them."""
        try:
            return await self._ends(consumer)
        except (KafkaError, OSError):
            return None

    async def _is_behind(self, consumer: AIOKafkaConsumer) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SILENCE):
                ends = await self._asked(consumer)
                return ends is not None and not self._has_read(ends)
        return False

    def _has_read(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all(self._positions.get(place, 0) >= end for place, end in ends.items())


def _look(acked: asyncio.Future[Any]) -> None:
    """Nobody may be waiting for it any more."""
    if not acked.cancelled():
        acked.exception()


async def _closed(consumer: AIOKafkaConsumer | None, budget: float) -> bool:
    """False if it was cut short."""
    if consumer is None:
        return True
    task = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait([task], timeout=budget)
    if done:
        return task.exception() is None
    task.cancel()
    await asyncio.wait([task], timeout=0.5)
    return False
