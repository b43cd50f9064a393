"""The publishing task: everything that goes out goes through one producer, in batches, and is told when it is acked.

Many tasks that each call aiokafka's `send` wake each other up for every drained batch (its cost is quadratic); so one
task fills a batch a partition from our own queues and hands it over, one outstanding batch each, and a batch's ack
settles all its records. A partition without a leader delays nobody else.

Nothing is dropped: a record is acked, or handed back as `TooLarge`, or the publisher fails as a whole and says why.
A producer that the broker has put out of step (OutOfOrderSequenceNumber) is replaced. What it has under way in other
partitions may still be written, so a lane waits for that, within bounds, before it sends the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from sluiceway.core.errors import InputError
from sluiceway.kafka.lane import Entry, Lane, OnAck, TooLarge, WrittenTopic, size_of
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.partitioner import partition_of
from sluiceway.kafka.producer import SendFault, close_producer, open_producer, send_fault
from sluiceway.kafka.security import Connection
from sluiceway.kafka.topics import sizes
from sluiceway.ports import Outgoing, Sending

__all__ = ["OnAck", "Publisher", "TooLarge"]

_ENVELOPE = 4096  # bytes of a request beside its largest record
_RETIRE = 5.0  # seconds for a replaced producer to hear of what it has under way
_MEASURE = 5.0  # seconds for asking how much the topics take


class Publisher:
    """One publisher serves all roles of a process. Made inside the running loop.

    `topics`: what will be written to; each must exist at the start.
    """

    def __init__(
        self,
        connection: Connection,
        topics: Iterable[str],
        *,
        meter: Meter | None = None,
        patience: float = 30.0,
        sending: Sending | None = None,
    ) -> None:
        """`patience`, in seconds: how long a missing topic may be the cluster's hiccup before it is a fault.

        `sending` may change a record's headers, and is told when it was acked.
        """
        self._connection = connection
        self._names = tuple(dict.fromkeys(topics))
        self._meter: Meter = meter or NoMeter()
        self._patience = patience
        self._sending = sending
        self._topics: dict[str, WrittenTopic] = {}
        self._ready: deque[Lane] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unacked = 0
        self._producer: AIOKafkaProducer | None = None
        self._generation = 0
        self._rebuild = False
        self._measured = True  # no refusal since the topics' limits were read
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._max_request = 1 << 20
        self.idempotent = self._connection.flag("enable.idempotence")
        self.acked = 0

    def __repr__(self) -> str:
        return f"<Publisher unacked={self._unacked} idempotent={self.idempotent}>"

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connected, all topics found. Raises InputError where the cluster or a topic is not there for us."""
        found = await sizes(self._connection, self._names)
        missing = [name for name, size in found.items() if size is None]
        if missing:
            raise InputError(
                "topics", f"missing on {self._connection.bootstrap}: {', '.join(missing)}. Mend: sluiceway topics apply"
            )
        limits = {name: size for name, size in found.items() if size is not None}
        self._max_request = max([*limits.values(), 1 << 20]) + _ENVELOPE
        try:
            self._producer = await self._new_producer()
            for name, limit in limits.items():
                self._topics[name] = WrittenTopic(name, len(await self._producer.partitions_for(name)), limit)
        except (kafka_errors.KafkaError, OSError) as error:
            raise InputError("connection", f"the producer does not start: {error!r}. Mend: see -b and -X") from None
        if not self.idempotent:
            self._meter.notice("producer_not_idempotent", bootstrap=self._connection.bootstrap)
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self, budget: float) -> bool:
        """True if everything was acked and the producer closed within `budget` seconds. Never waits longer."""
        loop = self._loop
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
        return await asyncio.shield(self._failed)

    @property
    def failed_now(self) -> bool:
        return self._failed.done()

    # -- sending ------------------------------------------------------------------------------------------------

    def too_large(self, outgoing: Outgoing) -> TooLarge | None:
        """What `publish` would answer for a record that does not fit its topic."""
        size, limit = size_of(outgoing), self._topic(outgoing).limit
        return TooLarge(outgoing.topic, size, limit) if size > limit else None

    def publish(self, outgoing: Outgoing, on_ack: Callable[[TooLarge | None], None]) -> None:
        """Returns at once. `on_ack(None)` follows the broker's ack, `on_ack(TooLarge)` at once for what can't fit.

        Raises InputError for a topic that was not declared at the start.
        """
        self.submit(outgoing, _plain, on_ack)

    def submit(self, outgoing: Outgoing, on_ack: OnAck, ticket: Any) -> None:
        """The same for callers in a hurry: `on_ack(ticket, outgoing, result)`, so that no closure is made a record."""
        topic = self._topic(outgoing)
        if self._sending is not None:
            outgoing, on_ack = _told(self._sending, outgoing, on_ack)
        size = size_of(outgoing)
        if size > topic.limit:
            on_ack(ticket, outgoing, TooLarge(outgoing.topic, size, topic.limit))
            return
        if not self._unacked:
            self._idle.clear()
        self._unacked += 1
        lanes, key = topic.lanes, outgoing.key
        lane = lanes[random.randrange(len(lanes)) if key is None else partition_of(key, len(lanes))]  # noqa: S311  spread, not secrecy
        waiting = lane.waiting
        waiting.append(Entry(outgoing, on_ack, ticket, size, self._loop.time()))
        if lane.sending is None and len(waiting) == 1:
            self._ready.append(lane)
            self._wake.set()

    def send(self, outgoing: Outgoing) -> asyncio.Future[TooLarge | None]:
        """The same as a future, for callers that are not in a hurry."""
        future: asyncio.Future[TooLarge | None] = self._loop.create_future()
        self.submit(outgoing, _resolve, future)
        return future

    def _topic(self, outgoing: Outgoing) -> WrittenTopic:
        try:
            return self._topics[outgoing.topic]
        except KeyError:
            raise InputError(
                "publish", f"{outgoing.topic}: was not declared when the worker started. Mend: restart the worker"
            ) from None

    def _lanes(self) -> list[Lane]:
        return [lane for topic in self._topics.values() for lane in topic.lanes]

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def unacked(self) -> int:
        return self._unacked

    def oldest(self) -> float:
        """Seconds that the longest waiting record has been without an ack; 0 with none."""
        since = min(
            (entry.since for lane in self._lanes() for entry in (*(lane.sending or ())[:1], *_first(lane))),
            default=None,
        )
        return 0.0 if since is None else self._loop.time() - since

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
                if not self._measured:
                    await self._measure()
                if self._rebuild:
                    await self._replace_producer()
                while self._ready and not self._rebuild:
                    await self._send_batch(self._ready.popleft())
        except Exception as error:  # noqa: BLE001  top of the task: the worker must stop, nothing was settled
            self._fail(error)

    async def _send_batch(self, lane: Lane) -> None:
        waiting = lane.waiting
        if lane.sending is not None or not waiting:
            return
        producer = self._producer
        assert producer is not None  # noqa: S101  the task runs only after start()
        limit = room = self._topics[lane.topic].limit
        batch = producer.create_batch()
        entries: list[Entry] = []
        while waiting:
            entry = waiting[0]
            if entry.done:  # the ack came after all
                waiting.popleft()
                continue
            if entry.size > limit:  # it was lowered while this one waited
                self._settle(waiting.popleft(), TooLarge(lane.topic, entry.size, limit))
                continue
            out, room = entry.outgoing, room - entry.size
            if room < 0 or batch.append(key=out.key, value=out.value, timestamp=None, headers=[*out.headers]) is None:
                break
            entries.append(waiting.popleft())
            if lane.single:
                break
        if not entries:
            return
        lane.sending, lane.producer = entries, self._generation
        try:
            future = await producer.send_batch(batch, lane.topic, partition=lane.number)
        except kafka_errors.KafkaError as error:
            self._batch_failed(lane, entries, error)
            return
        future.add_done_callback(partial(self._batch_done, lane, entries))

    def _batch_done(self, lane: Lane, entries: list[Entry], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            error: BaseException | None = kafka_errors.ProducerClosed()
        else:
            error = future.exception()
        if error is not None:
            self._batch_failed(lane, entries, error)
            return
        for entry in entries:
            self._settle(entry, None)
        if lane.sending is entries:
            lane.sending = None
            lane.first_failure = None
            if lane.waiting:
                self._ready.append(lane)
                self._wake.set()

    def _settle(self, entry: Entry, result: TooLarge | None) -> None:
        if entry.done:
            return
        entry.done = True
        self._unacked -= 1
        if result is None:
            self.acked += 1
        try:
            entry.on_ack(entry.ticket, entry.outgoing, result)
        except Exception as error:  # noqa: BLE001  an ack that can't be booked must stop the worker
            self._fail(error)
        if not self._unacked:
            self._idle.set()

    def _batch_failed(self, lane: Lane, entries: list[Entry], error: BaseException) -> None:
        if lane.sending is not entries or self.failed_now:
            return
        loop = self._loop
        lane.sending = None
        current = lane.producer == self._generation
        fault = send_fault(error)
        if fault is SendFault.TOO_LARGE:
            # The topic's limit was lowered after our start, and an idempotent producer is out of step for good now.
            self._rebuild = self._rebuild or (self.idempotent and current)
            self._measured = False
            if len(entries) == 1:
                self._settle(entries[0], TooLarge(lane.topic, entries[0].size, self._topics[lane.topic].limit))
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
            self._rebuild = self._rebuild or current
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

    def _again(self, lane: Lane) -> None:
        if lane.sending is None and lane.waiting:
            self._ready.append(lane)
        self._wake.set()

    async def _replace_producer(self) -> None:
        """A new producer id. What the old one has under way comes back into its lane unless it is acked meanwhile."""
        old, self._producer = self._producer, None
        self._meter.notice("producer_replaced", unacked=self._unacked)
        if old is not None:
            lanes = [lane for lane in self._lanes() if lane.producer == self._generation]
            left = [(lane, lane.sending) for lane in lanes if lane.sending]
            task = asyncio.create_task(self._retire(old, left))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._generation += 1
        pause = self._connection.number("retry.backoff.ms") / 1000
        while self._producer is None:
            try:
                self._producer = await self._new_producer()
            except (kafka_errors.KafkaError, OSError) as error:
                self._meter.notice("producer_start_retried", error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
        self._rebuild = False

    async def _retire(self, old: AIOKafkaProducer, left: list[tuple[Lane, list[Entry]]]) -> None:
        await close_producer(old, _RETIRE)
        for lane, entries in left:
            self._batch_failed(lane, entries, kafka_errors.ProducerClosed())

    async def _measure(self) -> None:
        """The topics' limits read again, if they can be: what does not fit is better refused than sent."""
        self._measured = True
        with contextlib.suppress(InputError, TimeoutError):
            async with asyncio.timeout(_MEASURE):
                found = await sizes(self._connection, self._names, 0.0)
            for name, limit in found.items():
                if limit is not None:
                    self._topics[name].limit = min(limit, self._max_request - _ENVELOPE)

    async def _new_producer(self) -> AIOKafkaProducer:
        producer, self.idempotent = await open_producer(self._connection, self._max_request, self.idempotent)
        return producer

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_result(error)


def _told(sending: Sending, outgoing: Outgoing, on_ack: OnAck) -> tuple[Outgoing, OnAck]:
    sent, ended = sending(outgoing)

    def acked(ticket: Any, record: Outgoing, result: TooLarge | None) -> None:
        ended(None if result is None else "too_large")
        on_ack(ticket, record, result)

    return sent, acked


def _plain(on_ack: Callable[[TooLarge | None], None], _: Outgoing, result: TooLarge | None) -> None:
    on_ack(result)


def _resolve(future: asyncio.Future[TooLarge | None], _: Outgoing, result: TooLarge | None) -> None:
    if not future.done():
        future.set_result(result)


def _first(lane: Lane) -> tuple[Entry, ...]:
    return (lane.waiting[0],) if lane.waiting else ()
