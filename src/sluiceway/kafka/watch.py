"""Reading topics as they grow, without a group: whoever watches takes nothing from the workers and commits nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import Connection
from sluiceway.kafka.start import From, Start
from sluiceway.ports import Record

_END = Start(From.LATEST)


class Watch:
    """The records of `topics` from the moment of `start`, or from where it says; each topic must exist."""

    def __init__(self, connection: Connection, topics: Iterable[str]) -> None:
        self._connection = connection
        self._topics = tuple(dict.fromkeys(topics))
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self, at: Start = _END) -> None:
        """Stands at the end of every partition, or at `at`. Raises InputError where the cluster does not answer."""
        consumer = AIOKafkaConsumer(
            *self._topics,
            **self._connection.client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 << 20,
        )
        self._consumer = consumer
        try:
            await consumer.start()
            # Without a group the whole of each topic is assigned by now.
            for partition, offset in (await _offsets(consumer, at)).items():
                consumer.seek(partition, offset)
        except UnknownTopicOrPartitionError:
            names = ", ".join(self._topics)
            raise InputError("topics", f"not all there: {names}. Mend: sluiceway topics apply") from None
        except (KafkaError, OSError) as error:
            raise InputError(
                "connection", f"no answer from {self._connection.bootstrap} ({error!r}). Mend: check -b and -X"
            ) from None

    async def records(self, within: float) -> list[Record]:
        """What has come since the last call, in order within a partition; waits up to `within` seconds for a first one.

        Raises InputError where the cluster does not answer any more.
        """
        if self._consumer is None:
            raise RuntimeError("start() first")
        try:
            batches = await self._consumer.getmany(timeout_ms=int(within * 1000))
        except KafkaError as error:
            raise InputError(
                "connection", f"{self._connection.bootstrap}: {error!r}. Mend: check the cluster"
            ) from None
        return [
            Record(
                record.topic, record.partition, record.offset, record.timestamp / 1000,
                record.key, record.value, tuple(record.headers),
            )
            for batch in batches.values()
            for record in batch
        ]  # fmt: skip

    async def stop(self) -> None:
        if self._consumer is not None:
            with suppress(KafkaError, OSError):
                await self._consumer.stop()
            self._consumer = None


async def _offsets(consumer: AIOKafkaConsumer, at: Start) -> dict[TopicPartition, int]:
    """Where each assigned partition is read from; a time after its last record is its end."""
    partitions = sorted(consumer.assignment())
    if at.at is From.EARLIEST:
        return dict(await consumer.beginning_offsets(partitions))
    ends = dict(await consumer.end_offsets(partitions))
    if at.at is From.LATEST:
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, int(at.time * 1000)))
    return {partition: ends[partition] if known is None else known.offset for partition, known in found.items()}
