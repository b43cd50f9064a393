"""Reading topics as they grow, without a group: whoever watches takes nothing from the workers and commits nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import Connection
from sluiceway.ports import Record


class Watch:
    """The records of `topics` from the moment of `start`; each topic must exist."""

    def __init__(self, connection: Connection, topics: Iterable[str]) -> None:
        self._connection = connection
        self._topics = tuple(dict.fromkeys(topics))
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        """Stands at the end of every partition. Raises InputError where the cluster does not answer."""
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
            for partition, end in (await consumer.end_offsets(sorted(consumer.assignment()))).items():
                consumer.seek(partition, end)
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
