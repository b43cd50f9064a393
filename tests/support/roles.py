"""A role under test: real RoleConsumers on a real broker, with a Work that the test commands.

`Works` keeps its own journal of what it was asked and can hold jobs back; `World` makes topics, publishes and reads.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sluiceway.core.stream import Limits, Partition
from sluiceway.kafka.consumer import RoleConsumer, RoleSettings
from sluiceway.kafka.embedded import SETTINGS
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.kafka.start import parse_start
from sluiceway.ports import Outgoing, Record
from tests.support.topics import group_offsets


@dataclass
class Works:
    """Copies a record to `out`. `held` says which ids wait for `release()`; `journal` has each id once a start."""

    out: str
    held: Callable[[bytes], bool] = lambda _: False
    seconds: float = 0.0
    journal: list[bytes] = field(default_factory=list)
    done: list[bytes] = field(default_factory=list)
    running: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        self._gate = asyncio.Event()

    def release(self) -> None:
        self._gate.set()

    async def __call__(self, record: Record) -> Outgoing | None:
        value = record.value or b""
        self.journal.append(value)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.held(value):
                await self._gate.wait()
            elif self.seconds:
                await asyncio.sleep(self.seconds)
            self.done.append(value)
            return Outgoing(self.out, record.key, record.value, record.headers)
        finally:
            self.running -= 1


class Notes:
    """A Meter that keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, dict[str, str | int | float]]] = []
        self.settled_count = 0
        self.taken_count = 0

    def taken(self, group: str, topic: str, count: int) -> None:  # noqa: ARG002  the protocol's
        self.taken_count += count

    def settled(self, group: str, topic: str, count: int) -> None:  # noqa: ARG002  the protocol's
        self.settled_count += count

    def notice(self, event: str, **fields: str | int | float) -> None:
        self.notices.append((event, fields))

    def events(self) -> list[str]:
        return [event for event, _ in self.notices]


class World:
    """Topics of its own on a shared broker. `name` is unique, so that tests never meet."""

    def __init__(self, bootstrap: str, *, embedded: bool = False, partitions: int = 4) -> None:
        self.bootstrap = bootstrap
        self.embedded = embedded
        pairs = [f"{key}={value}" for key, value in SETTINGS.items()] if embedded else []
        if not embedded:
            pairs = ["session.timeout.ms=6000", "heartbeat.interval.ms=500", "rebalance.timeout.ms=10000"]
        self.connection: Connection = read_connection(bootstrap, pairs)
        self.partitions = partitions
        self.notes = Notes()
        self.adopt(f"t{random.SystemRandom().randrange(1 << 40):x}")

    def adopt(self, name: str) -> None:
        """Be the world that another process has made under this name."""
        self.name = name
        self.jobs, self.results = f"{name}.jobs", f"{name}.results"
        self.group = f"{name}.group"

    async def make(self, *topics: str, **config: str) -> None:
        """The jobs and the results, unless topics are named."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.create_topics(
                [
                    NewTopic(name, self.partitions, 1, topic_configs=config)
                    for name in topics or (self.jobs, self.results)
                ]
            )
        finally:
            await admin.close()

    async def publish(
        self,
        values: Iterable[bytes],
        *,
        key: Callable[[bytes], bytes] = lambda value: value,
        compression: str | None = None,
        topic: str | None = None,
    ) -> None:
        """Returns when all are acked. To the jobs, unless a topic is named."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, acks="all", max_batch_size=1 << 17, compression_type=compression
        )
        await producer.start()
        try:
            acks = [await producer.send(topic or self.jobs, value, key=key(value)) for value in values]
            await asyncio.gather(*acks)
        finally:
            await producer.stop()

    async def read(self, topic: str | None = None) -> list[bytes]:
        """Every value on a topic, to its end as of now."""
        topic = topic or self.results
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            parts = [TopicPartition(topic, number) for number in range(self.partitions)]
            consumer.assign(parts)
            await consumer.seek_to_beginning(*parts)
            found: list[bytes] = []
            # By what fetches say: the embedded broker answers a question for the end with a wrong one.
            while any(
                [consumer.highwater(p) is None or await consumer.position(p) < consumer.highwater(p) for p in parts]
            ):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found.extend(record.value for record in records)
            return found
        finally:
            await consumer.stop()

    async def committed(self) -> dict[Partition, tuple[int, str]]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            found = await group_offsets(admin, self.group)
            return {Partition(*tp): (value.offset, value.metadata) for tp, value in found.items()}
        finally:
            await admin.close()

    def settings(self, **changes: object) -> RoleSettings:
        limits = changes.pop("limits", None) or Limits(commit_interval=0.2)
        base = RoleSettings(
            self.group,
            (self.jobs,),
            limits=limits,  # type: ignore[arg-type]  # a test's own
            start=parse_start("earliest"),
        )
        return replace(base, **changes)  # type: ignore[arg-type]  # a test's own

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publisher]:
        publisher = Publisher(self.connection, [self.results], meter=self.notes)
        await publisher.start()
        try:
            yield publisher
        finally:
            await publisher.stop(5.0)

    @asynccontextmanager
    async def role(self, works: Works, publisher: Publisher, **changes: object) -> AsyncIterator[RoleConsumer]:
        role = RoleConsumer(self.connection, self.settings(**changes), works, publisher, self.notes)
        await role.start()
        try:
            yield role
        finally:
            await role.stop(8.0)


async def until(fact: Callable[[], object], within: float = 40.0, what: str = "") -> None:
    """Waits for a fact that has no signal of its own; a coroutine is awaited. AssertionError after `within` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        found = fact()
        if await found if inspect.isawaitable(found) else found:
            return
        if loop.time() > end:
            raise AssertionError(f"not within {within} s: {what or fact}")
        await asyncio.sleep(0.02)


def caught_up(role: RoleConsumer, partitions: int = 4) -> bool:
    """All is done, and known to be: until its first fetch a partition's end, and so its lag, is unknown."""
    stats = role.stats()
    return len(stats.lag) == partitions and not sum(stats.lag.values()) and not stats.running


def ids(count: int, first: int = 0) -> list[bytes]:
    return [b"job-%06d" % number for number in range(first, first + count)]


def repeats(values: Sequence[bytes]) -> int:
    """How many values are there more than once, counted as often as they are too many."""
    return len(values) - len(set(values))
