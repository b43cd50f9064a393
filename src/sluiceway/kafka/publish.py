"""The publishing task: everything that goes out goes through one producer, in batches, and is told when it is acked.

Many tasks that each call aiokafka's `send` wake each other up for every drained batch (its cost is quadratic); so one
task fills a batch a partition from our own queues and hands it over, one outstanding batch each, and a batch's ack
settles all its records. A partition without a leader delays nobody else.

Nothing is dropped: a record is acked, or handed back as `TooLarge`, or the publisher fails as a whole and says why.
A producer that the broker has put out of step (OutOfOrderSequenceNumber) is replaced and what is unacked sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from sluiceway.core.errors import InputError
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.partitioner import partition_of
from sluiceway.kafka.producer import SendFault, close_producer, open_producer, send_fault
from sluiceway.kafka.security import Connection
from sluiceway.kafka.topics import sizes
from sluiceway.ports import Outgoing

_BATCH_HEADER = 61  # Kafka record batch v2
_RECORD_OVERHEAD = 32  # varints, timestamp delta, attributes: the most a record can take, and some


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The record does not fit its topic. `size` is our upper bound of it and `limit` what the topic takes, in bytes."""

    topic: str
    size: int
    limit: int


OnAck = Callable[[TooLarge | None], None]


class _Entry:
    __slots__ = ("done", "on_ack", "outgoing", "since", "size")

    def __init__(self, outgoing: Outgoing, on_ack: OnAck, size: int, since: float) -> None:
        self.outgoing = outgoing
        self.on_ack = on_ack
        self.size = size
        self.since = since
        self.done = False


class _Lane:
    """One partition's way out: what waits, and the one batch that is under way."""

    __slots__ = ("first_failure", "number", "sending", "single", "topic", "waiting")

    def __init__(self, topic: str, number: int) -> None:
        self.topic = topic
        self.number = number
        self.waiting: deque[_Entry] = deque()
        self.sending: list[_Entry] | None = None
        self.first_failure: float | None = None
        self.single = False  # one record a batch


class Publisher:
    """`topics`: what will be written to; each must exist at the start. One publisher serves all roles of a process."""

    def __init__(
        self,
        connection: Connection,
        topics: Iterable[str],
        *,
        meter: Meter | None = None,
        patience: float = 30.0,
    ) -> None:
        """`patience`, in seconds: how long a missing topic may be the cluster's hiccup before it is a fault."""
        self._connection = connection
        self._topics = tuple(dict.fromkeys(topics))
        self._meter: Meter = meter or NoMeter()
        self._patience = patience
        self._limits: dict[str, int] = {}
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._partitions: dict[str, int] = {}
        self._ready: deque[_Lane] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unacked = 0
        self._producer: AIOKafkaProducer | None = None
        self._generation = 0
        self._rebuild = False
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[bool]] = set()
        self._failed: asyncio.Future[BaseException] | None = None
        self._last_ack = 0.0
        self.idempotent = self._connection.flag("enable.idempotence")
        self.acked = 0

    def __repr__(self) -> str:
        return f"<Publisher unacked={self._unacked} idempotent={self.idempotent}>"

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connected, all topics found. Raises InputError where the cluster or a topic is not there for us."""
        self._failed = asyncio.get_running_loop().create_future()
        found = await sizes(self._connection, self._topics)
        missing = [name for name, size in found.items() if size is None]
        if missing:
            raise InputError(
                "topics", f"missing on {self._connection.bootstrap}: {', '.join(missing)}. Mend: sluiceway topics apply"
            )
        self._limits = {name: size for name, size in found.items() if size is not None}
        try:
            self._producer = await self._new_producer()
            for topic in self._topics:
                self._partitions[topic] = len(await self._producer.partitions_for(topic))
        except (kafka_errors.KafkaError, OSError) as error:
            raise InputError("connection", f"the producer does not start: {error!r}. Mend: see -b and -X") from None
        if not self.idempotent:
            self._meter.notice("producer_not_idempotent", bootstrap=self._connection.bootstrap)
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self, budget: float) -> bool:
        """True if everything was acked and the producer closed within `budget` seconds. Never waits longer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + budget
        clean = True
        if self._unacked and not self.failed_now:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), max(0.0, budget * 0.8))
        if self._unacked:
            clean = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        if self._producer is not None:
            closed = await close_producer(self._producer, max(0.1, end - loop.time()))
            self._producer = None
            clean = clean and closed
        for task in list(self._closing):
            task.cancel()
        return clean

    async def failed(self) -> BaseException:
        """Waits until the publisher can't go on, and returns why."""
        if self._failed is None:
            raise RuntimeError("start() first")
        return await asyncio.shield(self._failed)

    @property
    def failed_now(self) -> bool:
        return self._failed is not None and self._failed.done()

    # -- sending ------------------------------------------------------------------------------------------------

    def too_large(self, outgoing: Outgoing) -> TooLarge | None:
        """What `publish` would answer for a record that does not fit its topic."""
        size = _size(outgoing)
        limit = self._limits.get(outgoing.topic)
        return TooLarge(outgoing.topic, size, limit) if limit is not None and size > limit else None

    def publish(self, outgoing: Outgoing, on_ack: OnAck) -> None:
        """Returns at once; `on_ack(None)` follows the broker's ack, `on_ack(TooLarge)` at once for what can't fit."""
        size = _size(outgoing)
        limit = self._limits.get(outgoing.topic)
        if limit is not None and size > limit:
            on_ack(TooLarge(outgoing.topic, size, limit))
            return
        entry = _Entry(outgoing, on_ack, size, asyncio.get_running_loop().time())
        if not self._unacked:
            self._idle.clear()
        self._unacked += 1
        lane = self._lane(outgoing)
        lane.waiting.append(entry)
        if lane.sending is None and len(lane.waiting) == 1:
            self._ready.append(lane)
            self._wake.set()

    def send(self, outgoing: Outgoing) -> asyncio.Future[TooLarge | None]:
        """The same as a future, for callers that are not in a hurry."""
        future: asyncio.Future[TooLarge | None] = asyncio.get_running_loop().create_future()
        self.publish(outgoing, lambda result: None if future.done() else future.set_result(result))
        return future

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def unacked(self) -> int:
        return self._unacked

    def oldest(self) -> float:
        """Seconds that the longest waiting record has been without an ack; 0 with none."""
        since = min(
            (entry.since for lane in self._lanes.values() for entry in (*(lane.sending or ())[:1], *_first(lane))),
            default=None,
        )
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    def ready(self, patience: float = 10.0) -> tuple[bool, list[str]]:
        """False with reasons when it failed, or nothing was acked for `patience` seconds though records wait."""
        if self.failed_now:
            return False, ["publisher failed"]
        if self._task is None:
            return False, ["publisher not started"]
        if self._unacked and self.oldest() > patience:
            return False, [f"publisher: no ack for {self.oldest():.0f} s"]
        return True, []

    # -- the task -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._rebuild:
                    await self._replace_producer()
                while self._ready and not self._rebuild:
                    await self._send_batch(self._ready.popleft())
        except Exception as error:  # noqa: BLE001  top of the task: the worker must stop, nothing was settled
            self._fail(error)

    async def _send_batch(self, lane: _Lane) -> None:
        waiting = lane.waiting
        if lane.sending is not None or not waiting:
            return
        producer = self._producer
        assert producer is not None  # noqa: S101  the task runs only after start()
        batch = producer.create_batch()
        entries: list[_Entry] = []
        while waiting:
            entry = waiting[0]
            if entry.done:
                waiting.popleft()
                continue
            out = entry.outgoing
            if batch.append(key=out.key, value=out.value, timestamp=None, headers=list(out.headers)) is None:
                break
            entries.append(waiting.popleft())
            if lane.single:
                break
        if not entries:
            return
        lane.sending = entries
        generation = self._generation
        try:
            future = await producer.send_batch(batch, lane.topic, partition=lane.number)
        except kafka_errors.KafkaError as error:
            self._batch_failed(lane, entries, generation, error)
            return
        future.add_done_callback(partial(self._batch_done, lane, entries, generation))

    def _batch_done(self, lane: _Lane, entries: list[_Entry], generation: int, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            error: BaseException | None = kafka_errors.ProducerClosed()
        else:
            error = future.exception()
        if error is not None:
            self._batch_failed(lane, entries, generation, error)
            return
        for entry in entries:
            self._settle(entry, None)
        if generation == self._generation:
            lane.sending = None
            lane.first_failure = None
            if lane.waiting:
                self._ready.append(lane)
                self._wake.set()

    def _settle(self, entry: _Entry, result: TooLarge | None) -> None:
        if entry.done:
            return
        entry.done = True
        self._unacked -= 1
        if result is None:
            self.acked += 1
        try:
            entry.on_ack(result)
        except Exception as error:  # noqa: BLE001  an ack that can't be booked must stop the worker
            self._fail(error)
        if not self._unacked:
            self._idle.set()

    def _batch_failed(self, lane: _Lane, entries: list[_Entry], generation: int, error: BaseException) -> None:
        if generation != self._generation or self.failed_now:
            return  # its records went back into the lane when the producer was replaced
        loop = asyncio.get_running_loop()
        lane.sending = None
        fault = send_fault(error)
        if fault is SendFault.TOO_LARGE:
            # The topic's limit was lowered after our start, and an idempotent producer is out of step for good now.
            self._rebuild = self.idempotent
            if len(entries) == 1:
                self._settle(entries[0], TooLarge(lane.topic, entries[0].size, self._limits.get(lane.topic, 0)))
            else:
                lane.single = True  # the batch was too large, perhaps no record of it: they go one by one from now on
                lane.waiting.extendleft(reversed(entries))
            self._again(lane)
            return
        lane.waiting.extendleft(reversed(entries))
        name = type(error).__name__
        self._meter.notice("publish_retried", topic=lane.topic, partition=lane.number, error=name, records=len(entries))
        if lane.first_failure is None:
            lane.first_failure = loop.time()
        if fault is SendFault.OUT_OF_STEP:
            self._rebuild = True
            self._again(lane)
        elif fault is SendFault.REFUSED:
            self._fail(
                InputError("publish", f"{lane.topic}: {name}. Mend: the worker's principal needs Write on this topic")
            )
        elif fault is SendFault.MISSING and loop.time() - lane.first_failure > self._patience:
            self._fail(InputError("publish", f"{lane.topic}: is missing. Mend: sluiceway topics apply"))
        elif fault is SendFault.BUG:
            self._fail(error)
        else:
            loop.call_later(self._connection.number("retry.backoff.ms") / 1000, self._again, lane)

    def _again(self, lane: _Lane) -> None:
        if lane.sending is None and lane.waiting:
            self._ready.append(lane)
        self._wake.set()

    async def _replace_producer(self) -> None:
        """A new producer id; every unacked record goes to the front of its lane and out again."""
        old, self._producer = self._producer, None
        self._generation += 1
        self._ready.clear()
        for lane in self._lanes.values():
            if lane.sending:
                lane.waiting.extendleft(reversed([entry for entry in lane.sending if not entry.done]))
            lane.sending = None
            if lane.waiting:
                self._ready.append(lane)
        self._meter.notice("producer_replaced", unacked=self._unacked)
        if old is not None:
            task = asyncio.create_task(close_producer(old, 5.0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        pause = self._connection.number("retry.backoff.ms") / 1000
        while self._producer is None:
            try:
                self._producer = await self._new_producer()
            except (kafka_errors.KafkaError, OSError) as error:
                self._meter.notice("producer_start_retried", error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
        self._rebuild = False

    async def _new_producer(self) -> AIOKafkaProducer:
        size = max([*self._limits.values(), 1 << 20]) + 4096
        producer, self.idempotent = await open_producer(self._connection, size, self.idempotent)
        return producer

    def _lane(self, outgoing: Outgoing) -> _Lane:
        topic = outgoing.topic
        count = self._partitions.get(topic)
        if count is None:
            raise InputError("publish", f"{topic}: was not declared when the worker started. Mend: restart the worker")
        number = partition_of(outgoing.key, count) if outgoing.key is not None else random.randrange(count)  # noqa: S311  spread, not secrecy
        lane = self._lanes.get((topic, number))
        if lane is None:
            lane = self._lanes[topic, number] = _Lane(topic, number)
        return lane

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)


def _first(lane: _Lane) -> tuple[_Entry, ...]:
    return (lane.waiting[0],) if lane.waiting else ()


def _size(outgoing: Outgoing) -> int:
    """The most that the record takes as a batch of its own, in bytes."""
    size = _BATCH_HEADER + _RECORD_OVERHEAD + len(outgoing.key or b"") + len(outgoing.value or b"")
    for name, content in outgoing.headers:
        size += len(name.encode()) + len(content or b"") + 10
    return size
