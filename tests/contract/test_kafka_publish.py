"""The publisher: nothing settles without an ack, and what can't be published is said, never dropped."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import Notes, Works, World, ids, until
from tests.support.topics import Address

from sluiceway.core.errors import Bug, InputError
from sluiceway.core.stream import Limits
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.kafka.partitioner import murmur2, partition_of
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.security import read_connection
from sluiceway.ports import Outgoing, Record


@pytest.fixture
async def world(any_kafka: Address) -> World:
    world = World(str(any_kafka), embedded=any_kafka.kind == "embedded")
    await world.make(**{"max.message.bytes": "200000"})
    return world


@pytest.fixture
async def apache_world(apache_kafka: ApacheKafka) -> World:
    world = World(apache_kafka.bootstrap)
    await world.make(**{"max.message.bytes": "200000"})
    return world


async def test_ten_thousand_records_are_acked_and_lie_in_the_topic(world: World) -> None:
    async with world.publisher() as publisher:
        acks = [publisher.send(Outgoing(world.results, value, value, ())) for value in ids(10_000)]
        assert await asyncio.gather(*acks) == [None] * 10_000
        assert publisher.unacked == 0
        assert publisher.acked == 10_000
    assert sorted(await world.read()) == ids(10_000)


async def test_keys_meet_where_every_kafka_client_puts_them(apache_world: World) -> None:
    """aiokafka's own producer puts a key on the same partition."""
    world = apache_world
    await world.publish(ids(200))
    async with world.publisher() as publisher:
        await asyncio.gather(*(publisher.send(Outgoing(world.results, value, value, ())) for value in ids(200)))

    async def where(topic: str) -> dict[bytes, int]:
        from aiokafka import AIOKafkaConsumer, TopicPartition

        consumer = AIOKafkaConsumer(bootstrap_servers=world.bootstrap)
        await consumer.start()
        consumer.assign([TopicPartition(topic, number) for number in range(4)])
        await consumer.seek_to_beginning()
        found: dict[bytes, int] = {}
        while len(found) < 200:
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found.update({record.key: tp.partition for record in records})
        await consumer.stop()
        return found

    assert await where(world.jobs) == await where(world.results)


def test_murmur2_is_javas() -> None:
    """The values of Apache Kafka's own UtilsTest."""
    java = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for data, value in java.items():
        assert murmur2(data) == value & 0xFFFFFFFF
    assert partition_of(b"foobar", 12) == (-790332482 & 0x7FFFFFFF) % 12


async def test_headers_null_values_and_null_keys_pass_as_they_are(world: World) -> None:
    async with world.publisher() as publisher:
        assert await publisher.send(Outgoing(world.results, None, b"no key", (("h", b"\xff\x00"),))) is None
        assert await publisher.send(Outgoing(world.results, b"key", None, ())) is None
    assert sorted(await world.read(), key=str) == [None, b"no key"]


async def test_a_record_too_large_for_its_topic_comes_back_as_a_value_and_the_next_one_passes(world: World) -> None:
    async with world.publisher() as publisher:
        large = Outgoing(world.results, b"k", b"x" * 200_001, ())
        result = await publisher.send(large)
        assert isinstance(result, TooLarge)
        assert (result.limit, result.topic) == (200_000, world.results)
        assert publisher.too_large(large) == result
        fits = Outgoing(world.results, b"k", b"x" * 199_800, ())
        assert publisher.too_large(fits) is None
        assert await publisher.send(fits) is None


async def test_a_batch_is_no_larger_than_its_topic_takes(apache_world: World) -> None:
    """A topic that takes less than our usual batch: nothing is refused, though all is there at once for one lane."""
    world = apache_world
    large = [name + b"x" * 5_000 for name in ids(500)]
    async with world.publisher() as publisher:
        acks = [publisher.send(Outgoing(world.results, b"k", value, ())) for value in large]
        assert await asyncio.gather(*acks) == [None] * 500
    assert not {"publish_retried", "producer_replaced"} & set(world.notes.events())
    assert sorted(await world.read()) == sorted(large)


async def test_a_job_whose_result_does_not_fit_is_published_as_what_the_worker_says_instead(world: World) -> None:
    await world.publish([b"large", b"small"])

    async def work(record: Record) -> Outgoing | None:
        value = b"x" * 300_000 if record.value == b"large" else b"small"
        return Outgoing(world.results, record.key, value, ())

    def oversize(record: Record, outgoing: Outgoing, fault: TooLarge) -> Outgoing:
        assert fault.size > fault.limit
        assert len(outgoing.value or b"") == 300_000
        return Outgoing(world.jobs + "-dead", record.key, record.value, ())

    dead = World(world.bootstrap, embedded=world.embedded)
    dead.jobs, dead.results = world.jobs + "-dead", world.results + "-dead"
    await dead.make()
    publisher = Publisher(world.connection, [world.results, dead.jobs])
    await publisher.start()
    role = RoleConsumer(world.connection, world.settings(), work, publisher, world.notes, oversize)
    await role.start()
    await until(lambda: role.stats().settled == 2)
    assert await role.stop(5.0)
    assert await publisher.stop(5.0)
    assert await world.read() == [b"small"]
    assert await dead.read(dead.jobs) == [b"large"]


async def test_without_a_way_out_for_a_large_record_the_role_stops_and_settles_nothing(world: World) -> None:
    await world.publish([b"large"])

    async def work(record: Record) -> Outgoing | None:
        return Outgoing(world.results, record.key, b"x" * 300_000, ())

    async with world.publisher() as publisher, world.role(work, publisher) as role:  # type: ignore[arg-type]  # any Work
        async with asyncio.timeout(30):
            assert isinstance(await role.failed(), Bug)
        assert role.stats().settled == 0


async def test_a_missing_topic_is_told_at_the_start_and_is_not_made_by_asking(world: World) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"nowhere.*topics apply"):
            await Publisher(world.connection, [world.results, f"{world.name}.nowhere"]).start()


async def test_a_cluster_that_is_not_there_is_told_with_its_address() -> None:
    with pytest.raises(InputError, match=r"127.0.0.1:1 .*Mend"):
        await Publisher(read_connection("127.0.0.1:1"), ["t"]).start()


async def test_after_the_broker_has_refused_a_size_the_publisher_goes_on_with_a_new_producer(
    apache_world: World,
) -> None:
    """Stock aiokafka can't send to that partition ever again (test_faust_aiokafka); nothing else may be lost by it."""
    world = apache_world
    async with world.publisher() as publisher:
        assert publisher.idempotent
        assert await publisher.send(Outgoing(world.results, b"k", b"before", ())) is None
        admin = AIOKafkaAdminClient(bootstrap_servers=world.bootstrap)
        await admin.start()
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, world.results, {"max.message.bytes": "1000"})]
        )
        await admin.close()

        async def refused() -> bool:
            return isinstance(await publisher.send(Outgoing(world.results, b"k", b"x" * 50_000, ())), TooLarge)

        await until(refused, what="the broker refuses")
        acks = [publisher.send(Outgoing(world.results, value, value, ())) for value in ids(500)]
        assert await asyncio.gather(*acks) == [None] * 500
    assert "producer_replaced" in world.notes.events()
    assert set(ids(500)) < set(await world.read())


async def test_a_topic_that_we_may_not_write_to_stops_the_publisher_with_its_name(secured_kafka: ApacheKafka) -> None:
    world = World(secured_kafka.bootstrap)
    await world.make()
    await asyncio.to_thread(
        secured_kafka.tool, "org.apache.kafka.tools.AclCommand", "--bootstrap-server", secured_kafka.bootstrap, "--add",
        "--allow-principal", f"User:{secured_kafka.user}", "--operation", "Read", "--operation", "Describe",
        "--operation", "DescribeConfigs", "--topic", world.results,
    )  # fmt: skip
    login = [f"sasl.username={secured_kafka.user}", f"sasl.password={secured_kafka.password}"]
    connection = read_connection(secured_kafka.addresses["SASL"], ["security.protocol=SASL_PLAINTEXT", *login])
    publisher = Publisher(connection, [world.results], meter=Notes())
    await publisher.start()
    try:
        ack = publisher.send(Outgoing(world.results, b"k", b"v", ()))
        async with asyncio.timeout(30):
            error = await publisher.failed()
        assert isinstance(error, InputError)
        assert world.results in error.detail
        assert "Write" in error.detail
        assert not ack.done()
        assert not publisher.ready()[0]
    finally:
        await publisher.stop(2.0)


async def test_while_the_broker_is_away_intake_pauses_and_nothing_is_settled(
    apache_kafka: ApacheKafka,
) -> None:
    """What is in flight stays in flight; no more is taken than the limits allow: as many as may run wait for acks."""
    world = World(apache_kafka.bootstrap)
    await world.make()
    limits = Limits(jobs=500, queue=500)
    await world.publish(ids(3000))
    works = Works(world.results, held=lambda _: True)
    async with world.publisher() as publisher, world.role(works, publisher, limits=limits) as role:
        await until(lambda: works.running == 500)
        apache_kafka.freeze()
        try:
            works.release()
            await until(lambda: publisher.unacked == 2 * limits.jobs)
            assert role.stats().settled == 0
            assert role.stats().taken <= 2 * limits.jobs + limits.queue
        finally:
            apache_kafka.thaw()
        await until(lambda: role.stats().settled == 3000)
    assert set(await world.read()) == set(ids(3000))
