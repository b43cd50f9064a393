"""A header whose name is not UTF-8: aiokafka can't read such a record; a role takes it and its neighbours once."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy, _DefaultRecordBatchPy
from tests.support.roles import World, caught_up, until
from tests.support.topics import Address

from sluiceway.core.stream import Limits
from sluiceway.kafka.misnamed import read
from sluiceway.ports import Outgoing, Record

NAME = b"\xff\xfena\xc3"


class Bytes(str):
    """A header's name that is written as any bytes."""

    __slots__ = ("raw",)
    raw: bytes

    def encode(self, *_: object) -> bytes:  # as aiokafka's builder in Python asks
        return self.raw


def name(raw: bytes) -> str:
    made = Bytes("?" * len(raw))
    made.raw = raw
    return made


async def publish_batches(
    world: World, batches: Sequence[Sequence[tuple[bytes, Sequence[tuple[str, bytes | None]]]]], codec: int = 0
) -> None:
    """Each batch as one record batch of partition 0, headers' names as they are."""
    producer = AIOKafkaProducer(bootstrap_servers=world.bootstrap, acks="all")
    await producer.start()
    try:
        for records in batches:
            made = producer.create_batch()
            made._builder = _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, 0, 1 << 20)
            for number, (value, headers) in enumerate(records):
                assert made.append(key=b"k%d" % number, value=value, timestamp=None, headers=list(headers))
            await (await producer.send_batch(made, world.jobs, partition=0))
    finally:
        await producer.stop()


class Taken:
    """A work that keeps what it was given and publishes the value alone."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.records: list[Record] = []

    async def __call__(self, record: Record) -> Outgoing:
        self.records.append(record)
        return Outgoing(self.out, record.key, record.value, ())


@pytest.fixture
async def world(any_kafka: Address) -> World:
    world = World(any_kafka, embedded=any_kafka.kind == "embedded", partitions=1)
    await world.make()
    return world


def test_aiokafka_can_not_read_such_a_name() -> None:
    """The stock behaviour, in both of its builds: an upgrade that changes it is noticed."""
    builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 1 << 20)
    builder.append(0, timestamp=1, key=None, value=b"v", headers=[(name(NAME), b"1")])
    data = bytes(builder.build())
    with pytest.raises(UnicodeDecodeError):
        list(DefaultRecordBatch(data))
    with pytest.raises(Exception, match="UnicodeDecodeError") as caught:
        list(_DefaultRecordBatchPy(data))
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize("codec", [0, 1], ids=["plain", "gzip"])
async def test_every_record_is_taken_once_and_the_names_bytes_are_kept(world: World, codec: int) -> None:
    """First, last and in the middle of a batch, two in a row, and large batches of good ones around them."""
    bad = [(name(NAME), b"1"), ("trace", b"2"), (name(b"\x80"), None), ("é", b"")]
    good = [("trace", b"3")]
    values = [b"%06d" % number for number in range(400)]
    marks = {0, 57, 58, 199, 200, 399}
    records = [(value, bad if number in marks else good) for number, value in enumerate(values)]
    await publish_batches(world, [records[:100], records[100:200], records[200:], [(b"end", good)]], codec)
    taken = Taken(world.results)
    async with (
        world.publisher() as publisher,
        world.role(taken, publisher, limits=Limits(jobs=50, commit_interval=0.2)) as role,  # type: ignore[arg-type]
    ):
        await until(lambda: caught_up(role, partitions=1) and role.stats().settled == 401)
    assert [record.value for record in taken.records] == [*values, b"end"]
    assert [record.offset for record in taken.records] == list(range(401))
    for number, record in enumerate(taken.records[:400]):
        headers = tuple((known.encode("utf-8", "surrogateescape"), content) for known, content in record.headers)
        expected = ((NAME, b"1"), (b"trace", b"2"), (b"\x80", None), ("é".encode(), b"")) if number in marks else None
        assert headers == (expected or ((b"trace", b"3"),))
        assert abs(record.timestamp - taken.records[-1].timestamp) < 600
    assert sorted(await world.read()) == sorted([*values, b"end"])


def batch(base: int, *, producer: int = -1, transactional: int = 0, headers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """Two records from offset `base` on."""
    builder = _DefaultRecordBatchBuilderPy(2, 0, transactional, producer, 0, 0, 1 << 20)
    for number in range(2):
        builder.append(number, timestamp=5 + number, key=None, value=b"%d" % (base + number), headers=list(headers))
    return struct.pack(">q", base) + bytes(builder.build())[8:]


def test_what_is_read_by_hand_is_what_aiokafka_reads() -> None:
    """Aborted transactions are passed over, as many are given as were asked for, and what is cut short is left."""
    place = TopicPartition("t", 3)
    odd = [(name(NAME), b"1")]
    data = batch(10, headers=odd) + batch(12, producer=7, transactional=1, headers=odd) + batch(14, headers=odd)
    found, position = read(data, [(7, 12)], place, 11, 100)
    assert [(record.offset, record.value, record.timestamp) for record in found] == [
        (11, b"11", 6),
        (14, b"14", 5),
        (15, b"15", 6),
    ]
    assert position == 16
    assert [record.offset for record in read(data, None, place, 11, 100)[0]] == [11, 12, 13, 14, 15]
    for count in range(5):
        found, position = read(data, None, place, 10, count)
        assert [record.offset for record in found] == list(range(10, 10 + count))
        assert position == 10 + count
    last = batch(14, headers=odd)
    for cut in range(1, len(last)):
        assert read(last[:-cut], None, place, 14, 100) == ([], 14)
    assert read(b"", None, place, 14, 100) == ([], 14)


def test_a_batch_that_was_damaged_is_told_not_read() -> None:
    """As aiokafka does: what the checksum denies is no record."""
    data = bytearray(batch(10, headers=[(name(NAME), b"1")]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        read(bytes(data), None, TopicPartition("t", 0), 10, 100)
