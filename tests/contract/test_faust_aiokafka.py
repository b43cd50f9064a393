"""What aiokafka 0.14.0 does under us, on real brokers: defects that we work around, and private parts that we use."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import World

from sluiceway.core.offsets import METADATA_LIMIT
from sluiceway.kafka.embedded import EmbeddedBroker


@pytest.fixture
async def world(apache_kafka: ApacheKafka) -> World:
    world = World(apache_kafka.bootstrap)
    await world.make(**{"max.message.bytes": "1000"})
    return world


async def joined(world: World) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(
        world.jobs, bootstrap_servers=world.bootstrap, group_id=world.group, enable_auto_commit=False
    )
    await consumer.start()
    while not consumer.assignment():
        await consumer.getmany(timeout_ms=50)
    return consumer


async def test_aiokafka_joins_once_for_each_assignor_and_each_join_is_a_rebalance(world: World) -> None:
    """Two members with two assignors each send each other from one rebalance into the next: ours name one."""
    consumer = AIOKafkaConsumer(
        world.jobs,
        bootstrap_servers=world.bootstrap,
        group_id=world.group,
        enable_auto_commit=False,
        partition_assignment_strategy=[StickyPartitionAssignor, RoundRobinPartitionAssignor],
    )
    await consumer.start()
    while not consumer.assignment():
        await consumer.getmany(timeout_ms=50)
    assert consumer._coordinator.generation == 2
    await consumer.stop()


async def test_an_idempotent_producer_that_was_refused_a_size_can_never_send_to_that_partition_again(
    world: World,
) -> None:
    """Trap 22: the sequence number of the refused batch is used up, and the broker waits for it for ever."""
    producer = AIOKafkaProducer(bootstrap_servers=world.bootstrap, enable_idempotence=True, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(world.jobs, b"fits", partition=0)
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            await producer.send_and_wait(world.jobs, b"x" * 5000, partition=0)
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await producer.send_and_wait(world.jobs, b"fits again", partition=0)
    finally:
        await producer.stop()


async def test_an_idempotent_producer_does_not_start_on_the_embedded_broker(embedded_kafka: EmbeddedBroker) -> None:
    """Trap 22."""
    producer = AIOKafkaProducer(bootstrap_servers=embedded_kafka.bootstrap, enable_idempotence=True, acks="all")
    with pytest.raises(kafka_errors.UnknownError):
        await producer.start()
    await producer.stop()


async def test_commit_metadata_of_our_size_is_kept_and_more_than_4096_is_refused(world: World) -> None:
    consumer = await joined(world)
    try:
        tp = TopicPartition(world.jobs, 0)
        await consumer.commit({tp: OffsetAndMetadata(0, "x" * METADATA_LIMIT)})
        found = await consumer._coordinator.fetch_committed_offsets([tp])
        assert found[tp].metadata == "x" * METADATA_LIMIT
        with pytest.raises(kafka_errors.OffsetMetadataTooLargeError):
            await consumer.commit({tp: OffsetAndMetadata(0, "x" * 4097)})
    finally:
        await consumer.stop()


async def test_the_public_way_to_read_a_commit_drops_its_metadata(world: World) -> None:
    """That is why we ask the coordinator."""
    consumer = await joined(world)
    try:
        tp = TopicPartition(world.jobs, 0)
        await consumer.commit({tp: OffsetAndMetadata(0, "map")})
        assert await consumer.committed(tp) == 0
    finally:
        await consumer.stop()


async def test_a_first_generation_of_zero_never_leaves_its_group(embedded_kafka: EmbeddedBroker) -> None:
    """The embedded broker counts generations from 0, and aiokafka leaves only above 0: its session must lapse."""
    world = World(embedded_kafka.bootstrap, embedded=True)
    await world.make()
    consumer = await joined(world)
    assert consumer._coordinator.generation == 0
    assert "self.generation > 0" in inspect.getsource(GroupCoordinator._maybe_leave_group)
    await consumer.stop()


async def test_a_listener_that_returns_no_coroutine_is_not_awaited(world: World) -> None:
    """Revoking is a plain function that acts at once and returns a coroutine; a future would be dropped silently."""
    source = inspect.getsource(GroupCoordinator._on_join_prepare)
    assert "on_partitions_revoked(revoked)" in source
    assert "if asyncio.iscoroutine(res):" in source
    assert world.name


def test_commits_retry_without_a_limit_and_under_any_generation() -> None:
    """A commit of ours is therefore one attempt of `_do_commit_offsets`, made while the generation is its own."""
    assert "while True" in inspect.getsource(GroupCoordinator.commit_offsets)
    assert "self.generation" in inspect.getsource(GroupCoordinator._do_commit_offsets)
    assert list(inspect.signature(GroupCoordinator._do_commit_offsets).parameters) == ["self", "assignment", "offsets"]


def test_a_broker_is_asked_for_nothing_while_what_it_brought_for_any_partition_is_unread() -> None:
    """For as long as `_backoff` says, from when it came: of a retry topic we say that it is no time at all."""
    assert "if node_id in backoff_by_nodes" in inspect.getsource(Fetcher._get_actions_per_node)
    unread = FetchResult(TopicPartition("t", 0), assignment=None, partition_records=None, backoff=3600.0)
    assert unread.calculate_backoff() > 0
    unread._backoff = 0.0
    assert unread.calculate_backoff() == 0


def test_the_private_parts_that_we_use_are_there() -> None:
    assert {"_records", "_wait_consume_future"} <= set(re.findall(r"self\.(\w+) =", inspect.getsource(Fetcher)))
    assert list(inspect.signature(Fetcher._notify).parameters) == ["self", "future"]
    assert not inspect.iscoroutinefunction(Fetcher._create_fetch_waiter)
    assert inspect.iscoroutinefunction(GroupCoordinator._do_fetch_commit_offsets)
    assert inspect.iscoroutinefunction(GroupCoordinator._send_req)
    assert not inspect.iscoroutinefunction(GroupCoordinator.coordinator_dead)
    assert inspect.iscoroutinefunction(GroupCoordinator.ensure_coordinator_known)
    assert isinstance(inspect.getattr_static(TopicPartitionState, "has_valid_position"), property)


def test_an_assignor_keeps_its_state_in_its_class_and_nobody_tells_it_the_generation() -> None:
    """Two roles in one process would claim each other's partitions: each member has a class of its own."""
    assert isinstance(inspect.getattr_static(AbstractPartitionAssignor, "on_assignment"), classmethod)
    import aiokafka.consumer.group_coordinator as coordinator

    assert "on_generation_assignment" not in inspect.getsource(coordinator)


async def test_a_fetch_with_no_patience_never_waits_outside_of_a_rebalance(world: World) -> None:
    """Our loop reads the epoch, fetches, and tags: nothing else may run in between."""
    consumer = await joined(world)
    try:
        tp = TopicPartition(world.jobs, 0)
        other = asyncio.ensure_future(asyncio.sleep(0))
        await consumer.getmany(tp, timeout_ms=0)
        assert not other.done()
        await other
    finally:
        await consumer.stop()
