"""A topic from its first record to its end as of now, read as often as one likes: no group, no commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import Connection
from sluiceway.ports import Record

_WAIT_MS = 200
_PATIENCE = 30.0  # seconds without a record or a known end


class Extent:
    """`async with Extent(connection, topic, largest) as extent:`; `largest`: the topic's largest record, in bytes.

    Its end is fixed by the first reading. Raises InputError where the cluster does not answer.
    """

    def __init__(self, connection: Connection, topic: str, largest: int) -> None:
        self._topic = topic
        self._bootstrap = connection.bootstrap
        arguments = connection.consumer()
        group_only = ("session_timeout_ms", "heartbeat_interval_ms", "rebalance_timeout_ms")
        arguments = {name: value for name, value in arguments.items() if name not in group_only}
        arguments["max_partition_fetch_bytes"] = max(arguments["max_partition_fetch_bytes"], largest)
        self._consumer = AIOKafkaConsumer(
            topic,
            **arguments,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        self._ends: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            await self._close()
            raise self._unanswered(repr(error)) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def batches(self) -> AsyncGenerator[list[Record]]:
        """Every record up to the end, in order within a partition, a fetch at a time."""
        consumer = self._consumer
        loop = asyncio.get_running_loop()
        try:
            partitions = sorted(consumer.assignment())
            await consumer.seek_to_beginning(*partitions)
            asked = dict(await consumer.end_offsets(partitions))
            left = set(partitions)
            since = loop.time()
            while left:
                found = await consumer.getmany(*left, timeout_ms=_WAIT_MS)
                read = []
                for partition in sorted(left):
                    end = self._end(partition, asked[partition])
                    read += [record for record in found.get(partition, ()) if end is None or record.offset < end]
                    if end is not None and await consumer.position(partition) >= end:
                        left.discard(partition)
                if read:
                    since = loop.time()
                    yield [_record(record) for record in read]
                elif left and loop.time() - since > _PATIENCE:
                    raise self._unanswered(f"nothing came for {_PATIENCE:.0f} s")
        except KafkaError as error:
            raise self._unanswered(repr(error)) from None

    def _end(self, partition: TopicPartition, asked: int) -> int | None:
        """Where reading stops; None until the first fetch has told."""
        known = self._ends.get(partition)
        if known is None:
            # The embedded broker, asked for the end, names the first record of its last batch: fetches know better.
            told = self._consumer.highwater(partition)
            if told is None:
                return None
            known = self._ends[partition] = max(asked, told)
        return known

    async def _close(self) -> None:
        with suppress(KafkaError, OSError):
            await self._consumer.stop()

    def _unanswered(self, detail: str) -> InputError:
        return InputError("connection", f"{self._bootstrap}: {self._topic}: {detail}. Mend: check -b, -X and ACLs")


def _record(record: ConsumerRecord) -> Record:
    return Record(
        record.topic, record.partition, record.offset, record.timestamp / 1000,
        record.key, record.value, tuple(record.headers),
    )  # fmt: skip
