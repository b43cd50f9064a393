"""Topics from the outside: a bare aiokafka producer and consumer without a group, sharing nothing with the product.

What they read is what the laws are checked on, so they must not go through the code under test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata

FETCH = 64 * 2**20  # bytes; far above any record of ours


class Address(str):
    """A bootstrap address that knows what answers there: `embedded` or `apache`."""

    __slots__ = ("kind",)

    kind: str

    def __new__(cls, bootstrap: str, kind: str) -> Self:
        address = super().__new__(cls, bootstrap)
        address.kind = kind
        return address


@dataclass(frozen=True, slots=True)
class Seen:
    """One record as it lies in a topic. `timestamp` is in milliseconds, as Kafka keeps it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int

    def header(self, name: str) -> str | None:
        """The last header of that name, as text."""
        found = next((value for key, value in reversed(self.headers) if key == name), None)
        return None if found is None else found.decode("utf-8", "replace")


async def create_topics(bootstrap: str, partitions: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
    """Creates each topic with its number of partitions; one that exists already is left as it is."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        wanted = [
            NewTopic(name, count, 1, topic_configs=dict(config) if config else None)
            for name, count in partitions.items()
        ]
        answer = await admin.create_topics(wanted)
        for _, code, *_ in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"{partitions}")
    finally:
        await admin.close()


async def publish(
    bootstrap: str,
    topic: str,
    values: Iterable[bytes | tuple[bytes | None, bytes | None]],
    *,
    headers: Sequence[tuple[str, bytes]] = (),
    partition: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[tuple[int, int]]:
    """(partition, offset) of each value, acked by the broker, in order. A value may be a pair of key and value."""
    settings: dict[str, Any] = {"acks": "all", "max_request_size": FETCH, "linger_ms": 5, **(options or {})}
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, **settings)
    await producer.start()
    try:
        sent = []
        for value in values:
            key, body = value if isinstance(value, tuple) else (None, value)
            # One sender: aiokafka is quadratic in concurrent ones.
            sent.append(await producer.send(topic, value=body, key=key, partition=partition, headers=list(headers)))
        acked = await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return [(record.partition, record.offset) for record in acked]


class Reader:
    """Reads topics from their beginning, without a group; each `read` goes on where the last one ended.

    `async with Reader(bootstrap, "results", "reviews") as reader:`
    """

    def __init__(self, bootstrap: str, *topics: str, options: Mapping[str, Any] | None = None) -> None:
        self.seen: list[Seen] = []
        self._topics = topics
        settings: dict[str, Any] = {
            "isolation_level": "read_committed",
            "max_partition_fetch_bytes": FETCH,
            "fetch_max_wait_ms": 100,
            **(options or {}),
        }
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, **settings)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        partitions: list[TopicPartition] = []
        for topic in self._topics:
            numbers = await self._consumer._client._wait_on_metadata(topic) and self._consumer.partitions_for_topic(
                topic
            )
            partitions += [TopicPartition(topic, number) for number in sorted(numbers or ())]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def read(self) -> list[Seen]:
        """Everything up to the end as it is now; `seen` holds all of it too."""
        partitions = self._consumer.assignment()
        ends = await self.ends()
        before = len(self.seen)
        while [tp for tp in partitions if await self._consumer.position(tp) < ends[tp]]:
            self.seen += await self._fetch()  # at once: a caller that gives up may come again
        return self.seen[before:]

    async def ends(self) -> dict[TopicPartition, int]:
        """The end of each partition as it is now."""
        return dict(await self._consumer.end_offsets(self._consumer.assignment()))

    async def until(self, enough: Callable[[list[Seen]], bool], *, within: float = 60.0) -> list[Seen]:
        """All records seen so far, once `enough(seen)` holds. TimeoutError after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while not enough(self.seen):
                    self.seen += await self._fetch()
        except TimeoutError:
            raise TimeoutError(f"{self._topics}: {len(self.seen)} records after {within} s, not yet enough") from None
        return self.seen

    async def count(self, number: int, *, within: float = 60.0) -> list[Seen]:
        """All records seen so far, once there are `number` of them."""
        return await self.until(lambda seen: len(seen) >= number, within=within)

    async def _fetch(self) -> list[Seen]:
        batches = await self._consumer.getmany(timeout_ms=200)
        return [
            Seen(r.topic, r.partition, r.offset, r.key, r.value, tuple(r.headers), r.timestamp)
            for batch in batches.values()
            for r in batch
        ]


async def read_topic(bootstrap: str, *topics: str, options: Mapping[str, Any] | None = None) -> list[Seen]:
    """Every record that lies in the topics now."""
    async with Reader(bootstrap, *topics, options=options) as reader:
        return await reader.read()


async def ends(bootstrap: str, topic: str, *, options: Mapping[str, Any] | None = None) -> dict[int, int]:
    """The end of each partition: the offset that the next record there will have."""
    async with Reader(bootstrap, topic, options=options) as reader:
        return {tp.partition: end for tp, end in (await reader.ends()).items()}


async def group_offsets(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """All that a group has committed. Raises KafkaError: the admin client's own call gives nothing for an error."""
    coordinator = await admin.find_coordinator(group)
    answer = await admin._send_request(OffsetFetchRequest(group, None), coordinator)
    rows = [(TopicPartition(topic, row[0]), row) for topic, found in answer.topics for row in found]
    for code in (answer.error_code, *(row[3] for _, row in rows)):
        if code:
            raise for_code(code)(group)
    return {partition: OffsetAndMetadata(row[1], row[2]) for partition, row in rows if row[1] >= 0}


async def committed(
    bootstrap: str, group: str, topic: str, *, options: Mapping[str, Any] | None = None
) -> dict[int, OffsetAndMetadata]:
    """What the group has committed, by partition, read from the outside; partitions without a commit are left out.

    Not for the embedded broker, whose answer to this request can't be decoded.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **(options or {}))
    await admin.start()
    try:
        offsets = await group_offsets(admin, group)
    finally:
        await admin.close()
    return {tp.partition: found for tp, found in offsets.items() if tp.topic == topic}
