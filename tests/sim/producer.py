"""aiokafka's producer, as the publisher under test sees it: batches out, acks back, or never."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import errors as kafka_errors

from tests.sim.broker import BROKER
from tests.sim.loop import current

_PRODUCE_TIMEOUTS = (3.0, 8.0)  # seconds: less and more than a replaced producer is waited for


class _Batch:
    """aiokafka's batch builder: it is full at a number of records here."""

    def __init__(self, most: int) -> None:
        self.records: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]] = []
        self._most = most

    def append(
        self,
        *,
        key: bytes | None,
        value: bytes | None,
        timestamp: int | None,  # noqa: ARG002  aiokafka's signature
        headers: Sequence[tuple[str, bytes | None]],
    ) -> object | None:
        if len(self.records) >= self._most:
            return None
        self.records.append((key, value, tuple(headers)))
        return self


class SimProducer:
    """Sends batches. What has left arrives, whatever becomes of the process."""

    def __init__(self, idempotent: bool) -> None:
        self.broker = BROKER[-1]
        self.process = current()
        self.idempotent = idempotent
        self.out_of_step = False
        self.closed = False  # nobody is told any more of what is under way
        self.under_way: dict[asyncio.Future[None], _Batch] = {}
        self.client = self

    async def partitions_for(self, topic: str) -> set[int]:
        await self.broker.travel()
        return set(range(len(self.broker.topics[topic])))

    def create_batch(self) -> _Batch:
        return _Batch(self.broker.dice.choice((1, 5, 200)))

    async def send_batch(self, batch: _Batch, topic: str, *, partition: int) -> asyncio.Future[None]:
        broker, weather = self.broker, self.broker.weather
        await asyncio.sleep(0)
        acked: asyncio.Future[None] = broker.loop.create_future()

        self.under_way[acked] = batch

        def fails(error: BaseException) -> None:
            self.under_way.pop(acked, None)
            if not acked.done() and not self.process.dead and not self.closed:
                acked.set_exception(error)
                acked.exception()  # seen: its owner may be frozen, and killed before it looks

        def is_acked() -> None:
            if not acked.done() and not self.closed:
                timeout.cancel()
                self.under_way.pop(acked, None)
                acked.set_result(None)
                if not (self.process.dead or self.process.frozen):
                    for _, _, headers in batch.records:
                        broker.acked(self.process, headers)

        def arrives(lost: bool) -> None:
            limit = broker.limits.get(topic)
            if limit is not None and any(len(value or b"") > limit for _, value, _ in batch.records):
                broker.note("produce_too_large")
                self.out_of_step = self.idempotent
                fails(kafka_errors.MessageSizeTooLargeError())
                return
            for key, value, headers in batch.records:
                broker.append(topic, partition, key, value, headers, broker.wall())
            if lost:
                broker.note("produce_ack_lost", topic=topic, records=len(batch.records))
            elif not acked.done() and not self.closed:
                broker.later(0.001, is_acked)

        dice = broker.dice.random()
        if self.out_of_step or dice < weather.out_of_step:
            self.out_of_step = self.idempotent
            broker.note("produce_out_of_step")
            broker.later(broker.latency(), fails, kafka_errors.OutOfOrderSequenceNumber())
            return acked
        dice -= weather.out_of_step
        if dice < weather.produce_error:
            broker.note("produce_error")
            error = broker.dice.choice((kafka_errors.NotLeaderForPartitionError, kafka_errors.RequestTimedOutError))
            broker.later(broker.latency(), fails, error())
            return acked
        broker.later(broker.latency(), arrives, dice - weather.produce_error < weather.produce_lost)
        timeout = broker.later(broker.dice.choice(_PRODUCE_TIMEOUTS), self._timed_out, acked)
        return acked

    def doubt(self, acked: asyncio.Future[None]) -> None:
        """Nobody knows whether the batch has arrived, or will: its records may go out again."""
        batch = self.under_way.pop(acked, None)
        if batch is not None:
            for _, _, headers in batch.records:
                self.broker.doubted(headers)

    def _timed_out(self, acked: asyncio.Future[None]) -> None:
        self.doubt(acked)
        if not acked.done() and not self.process.dead and not self.closed:
            self.broker.note("produce_timeout")
            acked.set_exception(kafka_errors.RequestTimedOutError())
            acked.exception()
