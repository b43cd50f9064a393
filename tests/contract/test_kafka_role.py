"""One role between Kafka and its work, on the embedded broker and on Apache Kafka: the same promises on both."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from aiokafka import errors as kafka_errors
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from tests.support.roles import Works, World, caught_up, ids, repeats, until
from tests.support.topics import Address

from sluiceway.core.errors import InputError
from sluiceway.core.stream import Limits, Order
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.start import parse_start
from sluiceway.ports import Outgoing, Record


@pytest.fixture
async def world(any_kafka: Address) -> World:
    world = World(str(any_kafka), embedded=any_kafka.kind == "embedded")
    await world.make()
    return world


async def test_every_job_comes_out_once_and_the_group_ends_at_the_end(world: World) -> None:
    jobs = ids(5000)
    await world.publish(jobs)
    works = Works(world.results)
    async with world.publisher() as publisher, world.role(works, publisher) as role:
        await until(lambda: role.stats().settled == 5000)
        assert await role.stop(10.0)
    assert sorted(await world.read()) == jobs
    assert sum(role.stats().lag.values()) == 0
    assert world.notes.settled_count == world.notes.taken_count == 5000
    async with world.publisher() as publisher, world.role(again := Works(world.results), publisher) as heir:
        await until(lambda: heir.ready()[0])
        await world.publish([b"last"])
        await until(lambda: heir.stats().settled == 1)
    assert again.journal == [b"last"]


async def test_the_number_of_jobs_in_flight_is_bounded_and_all_of_it_is_used(world: World) -> None:
    await world.publish(ids(300))
    works = Works(world.results, held=lambda _: True)
    limits = Limits(jobs=40, queue=20, commit_interval=0.2)
    async with world.publisher() as publisher, world.role(works, publisher, limits=limits) as role:
        await until(lambda: works.running == 40)
        assert role.stats().queued <= 20
        works.release()
        await until(lambda: role.stats().settled == 300)
    assert works.most == 40


async def test_what_waits_in_a_retry_topic_holds_up_no_new_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka asks a broker for nothing until what it brought is read; how long it waits is for ever here."""
    monkeypatch.setattr(FetchResult, "calculate_backoff", lambda result: result._backoff and 3600.0)
    retries = f"{world.name}.retries"
    await world.make(retries)
    await world.publish(ids(400), topic=retries)
    settings: dict[str, object] = {"topics": (world.jobs, retries), "delays": {retries: 3600.0}}
    async with world.publisher() as publisher, world.role(Works(world.results), publisher, **settings) as role:
        for number in range(10):
            await world.publish(ids(10, first=10 * number))
            await world.publish(ids(10, first=10 * number), topic=retries)
            await until(lambda number=number: role.stats().settled == 10 * number + 10)
    assert sorted(await world.read()) == ids(100)


async def test_a_second_member_takes_over_partitions_and_nothing_is_lost(world: World) -> None:
    jobs = ids(3000)
    await world.publish(jobs)
    first, second = Works(world.results, seconds=0.05), Works(world.results, seconds=0.05)
    async with world.publisher() as publisher, world.role(first, publisher, limits=Limits(jobs=50)) as role:
        await until(lambda: role.stats().settled > 200)
        async with world.role(second, publisher, limits=Limits(jobs=50)) as other:
            await until(lambda: other.stats().settled > 100, what="the second member works")
            await until(lambda: role.stats().settled + other.stats().settled >= 3000)
    found = await world.read()
    assert set(found) == set(jobs)
    # 50 ms jobs drain well within the revoke budget of 3 s: nothing is unfinished, so nothing is repeated.
    assert repeats(found) == 0


async def test_a_join_is_one_rebalance(world: World) -> None:
    """Apache Kafka counts generations from 1, the embedded broker from 0."""
    first = 0 if world.embedded else 1
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: len(role.stats().partitions) == 4)
        assert role._parts is not None
        assert role._parts.group.generation == first
        async with world.role(Works(world.results), publisher) as guest:
            await until(lambda: len(guest.stats().partitions) == len(role.stats().partitions) == 2)
            assert role._parts.group.generation == first + 1


@pytest.mark.slow_on_embedded
async def test_a_member_that_joins_takes_no_more_than_its_share_and_the_rest_stays_where_it_was(world: World) -> None:
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as first:
        await until(lambda: len(first.stats().partitions) == 4)
        async with world.role(Works(world.results), publisher) as second:
            await until(lambda: len(first.stats().partitions) == len(second.stats().partitions) == 2)
            kept = {row.partition for row in first.stats().partitions}
            async with world.role(Works(world.results), publisher) as third:
                await until(lambda: third.stats().partitions and first.stats().partitions and second.stats().partitions)
                assert {row.partition for row in first.stats().partitions} <= kept


@pytest.mark.slow_on_embedded
async def test_rebalances_under_full_load_never_leave_a_partition_held_and_idle(world: World) -> None:
    """The hang of faust-traps 19: a hand-over that a rebalance had cancelled left partitions held, nothing consumed."""
    limits = Limits(jobs=100, queue=100, commit_interval=0.2)
    works = Works(world.results, seconds=0.01)
    jobs: list[bytes] = []
    async with world.publisher() as publisher, world.role(works, publisher, limits=limits) as role:
        for _ in range(3):
            load = ids(6000, first=len(jobs))
            jobs += load
            await world.publish(load)
            before = role.stats().settled
            await until(lambda before=before: role.stats().settled > before + 200, what="progress before a rebalance")
            async with world.role(Works(world.results, seconds=0.01), publisher, limits=limits) as guest:
                await until(lambda guest=guest: guest.stats().partitions, what="the guest has partitions")
        await until(lambda: len(role.stats().partitions) == 4, what="all partitions are back")
        await until(lambda: caught_up(role), what="lag 0")
    assert set(await world.read()) == set(jobs)


@pytest.mark.slow_on_embedded
async def test_a_job_that_outlives_its_revoke_is_not_published_but_joined_when_it_comes_back(world: World) -> None:
    await world.publish(ids(40))
    held = [value for value in ids(40) if value.endswith(b"7")]
    works = Works(world.results, held=held.__contains__)
    async with world.publisher() as publisher, world.role(works, publisher, revoke_budget=1.0) as role:
        await until(lambda: role.stats().settled == 36)
        async with world.role(other := Works(world.results), publisher, revoke_budget=1.0) as guest:
            await until(lambda: guest.stats().partitions and role.stats().partitions, what="both have partitions")
            await until(lambda: role.stats().running + len([v for v in other.done if v in held]) >= len(held))
            # What came back to us joined its running call: the work was asked for it once.
            assert [works.journal.count(value) for value in held] == [1] * len(held)
        await until(lambda: len(role.stats().partitions) == 4)
        works.release()
        await until(lambda: caught_up(role))
    found = await world.read()
    assert set(found) == set(ids(40))
    # The guest has done what moved to it; ours of the same is dropped. (The embedded broker drops the commit's map.)
    assert world.embedded or repeats(found) == 0


async def test_work_that_raises_stops_the_role_with_its_job_unsettled(world: World) -> None:
    await world.publish([b"good", b"bad"], key=lambda _: b"one partition")

    async def work(record: Record) -> Outgoing | None:
        if record.value == b"bad":
            raise ZeroDivisionError
        return Outgoing(world.results, record.key, record.value, record.headers)

    async with world.publisher() as publisher, world.role(work, publisher) as role:  # type: ignore[arg-type]  # any Work
        async with asyncio.timeout(30):
            assert isinstance(await role.failed(), ZeroDivisionError)
        assert not role.ready()[0]
        await role.stop(5.0)
    async with world.publisher() as publisher, world.role(works := Works(world.results), publisher) as heir:
        await until(lambda: heir.stats().settled >= 1)
        await heir.stop(5.0)
    assert works.journal[-1] == b"bad"


async def test_a_fetch_that_has_died_inside_aiokafka_stops_the_role(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task ends, nobody is told, heartbeats go on: the partitions would stay held with nothing consumed."""

    def dies(*_: object) -> None:
        raise ZeroDivisionError

    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: role.ready()[0] and role.stats().partitions)
        monkeypatch.setattr(Fetcher, "_get_actions_per_node", dies)
        async with asyncio.timeout(20):
            error = await role.failed()
        monkeypatch.undo()
        assert isinstance(error, InputError)
        assert error.reason == "group"


async def test_a_member_that_the_broker_has_fenced_names_its_instance(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka knows no FENCED_INSTANCE_ID (82): it ends its coordination with an error that says nothing."""
    assert kafka_errors.for_code(82) is kafka_errors.UnknownError
    fenced = kafka_errors.KafkaError(repr(kafka_errors.for_code(82)()))
    async with world.publisher() as publisher, world.role(Works(world.results), publisher, instance="w-0") as role:
        await until(lambda: role.ready()[0] and role.stats().partitions)
        assert role._parts is not None
        monkeypatch.setattr(role._parts.group, "broken", lambda: fenced)
        async with asyncio.timeout(20):
            error = await role.failed()
        monkeypatch.undo()
        assert isinstance(error, InputError)
        assert error.reason == "instance"
        assert "w-0" in error.detail


async def test_a_job_with_nothing_to_write_is_settled(world: World) -> None:
    await world.publish(ids(10))

    async def work(_: Record) -> Outgoing | None:
        return None

    async with world.publisher() as publisher, world.role(work, publisher) as role:  # type: ignore[arg-type]  # any Work
        await until(lambda: role.stats().settled == 10)
    assert await world.read() == []


async def test_a_limit_ends_the_role_after_so_many_jobs_and_the_next_one_goes_on_there(world: World) -> None:
    await world.publish(ids(100))
    async with world.publisher() as publisher:
        first, rest = Works(world.results), Works(world.results)
        async with world.role(first, publisher, limits=Limits(limit=30)) as role:
            async with asyncio.timeout(30):
                await role.finished()
            assert await role.stop(10.0)
        assert len(first.journal) == 30
        async with world.role(rest, publisher) as role:
            await until(lambda: role.stats().settled == 70)
    assert sorted(first.journal + rest.journal) == ids(100)


async def test_a_group_that_has_never_been_there_starts_only_where_it_is_told(world: World) -> None:
    await world.publish(ids(5))
    async with world.publisher() as publisher:
        async with world.role(Works(world.results), publisher, start=None) as role:
            async with asyncio.timeout(30):
                error = await role.failed()
            assert isinstance(error, InputError)
            assert error.reason == "start"
            assert "--from" in error.detail
        if world.embedded:
            return  # it tells a wrong end of a partition
        async with world.role(works := Works(world.results), publisher, start=parse_start("latest")) as role:
            await until(lambda: role.ready()[0] and role.stats().partitions)
            await world.publish([b"new"])
            await until(lambda: role.stats().settled == 1)
        assert works.journal == [b"new"]


async def test_an_empty_topic_needs_no_start_and_what_comes_while_nobody_is_there_is_not_lost(world: World) -> None:
    async with world.publisher() as publisher:
        async with world.role(Works(world.results), publisher, start=None) as role:
            await until(lambda: role.ready()[0] and role.stats().partitions)
            await until(lambda: all(row.committed is not None for row in role.stats().partitions))
        await world.publish(ids(20))
        async with world.role(works := Works(world.results), publisher, start=None) as role:
            await until(lambda: role.stats().settled == 20)
    assert sorted(works.journal) == ids(20)


async def test_jobs_of_one_key_never_overlap_under_order_key(world: World) -> None:
    busy: set[bytes] = set()
    overlaps: list[bytes] = []

    async def work(record: Record) -> Outgoing | None:
        assert record.key is not None
        if record.key in busy:
            overlaps.append(record.key)
        busy.add(record.key)
        await asyncio.sleep(0.002)
        busy.discard(record.key)
        return Outgoing(world.results, record.key, record.value, record.headers)

    await world.publish(ids(600), key=lambda value: value[-1:])
    limits = Limits(order=Order.KEY, commit_interval=0.2)
    async with world.publisher() as publisher, world.role(work, publisher, limits=limits) as role:  # type: ignore[arg-type]  # any Work
        await until(lambda: role.stats().settled == 600)
    assert overlaps == []
    assert sorted(await world.read()) == ids(600)


async def test_a_missing_topic_is_told_at_the_start(world: World) -> None:
    async with world.publisher() as publisher:
        settings = replace(world.settings(), topics=(f"{world.name}.nowhere",))
        from sluiceway.kafka.consumer import RoleConsumer

        role = RoleConsumer(world.connection, settings, Works(world.results), publisher)
        with pytest.raises(InputError, match="topics apply"):
            await role.start()


async def test_starting_and_stopping_ten_times_leaves_no_task_behind(world: World) -> None:
    await world.publish(ids(10))
    async with world.publisher() as publisher:
        before = asyncio.all_tasks()
        for _ in range(10):
            async with world.role(Works(world.results), publisher) as role:
                assert await role.stop(5.0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before


async def test_two_roles_in_one_process_each_keep_their_own_group_and_pace(world: World) -> None:
    """jobs -> escalations -> results: as `--role all` does it, two Faust apps in one loop."""
    await world.publish(ids(500))
    second = World(world.bootstrap, embedded=world.embedded)
    await second.make()
    publisher = Publisher(world.connection, [second.jobs, second.results])
    await publisher.start()
    async with (
        world.role(Works(second.jobs), publisher) as first,
        second.role(Works(second.results), publisher) as other,
    ):
        await until(lambda: other.stats().settled == 500)
        assert await first.stop(8.0)
        await publisher.send(Outgoing(second.jobs, b"k", b"after the first has stopped", ()))
        await until(lambda: other.stats().settled == 501)
        assert other.ready() == (True, [])
    assert await publisher.stop(5.0)


async def test_nothing_is_written_into_the_working_directory(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock Faust makes `<id>-data` there."""
    monkeypatch.chdir(tmp_path)
    await world.publish(ids(5))
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: role.stats().settled == 5)
    assert os.listdir(tmp_path) == []


def test_the_role_runs_on_uvloop_as_the_worker_does(any_kafka: Address) -> None:
    async def scenario() -> list[bytes]:
        world = World(str(any_kafka), embedded=any_kafka.kind == "embedded")
        await world.make()
        await world.publish(ids(1000))
        async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
            await until(lambda: role.stats().settled == 1000)
            assert await role.stop(8.0)
        return await world.read()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert sorted(runner.run(scenario())) == ids(1000)
