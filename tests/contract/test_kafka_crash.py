"""What kill -9, a frozen broker and expired offsets do to one role, on Apache Kafka: the embedded one keeps no map."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import Works, World, caught_up, ids, repeats, until

from sluiceway.core.errors import InputError
from sluiceway.core.offsets import decode_finished
from sluiceway.core.stream import Limits


@pytest.fixture
async def world(apache_kafka: ApacheKafka) -> World:
    world = World(apache_kafka.bootstrap)
    await world.make()
    return world


async def process(world: World, journal: Path, hold: int = 0, seconds: float = 0.0) -> asyncio.subprocess.Process:
    arguments = [world.bootstrap, world.name, str(journal), str(hold), str(seconds)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.role_process", *arguments, cwd=Path(__file__).parents[2]
    )


async def finished_but(world: World, missing: int, total: int) -> bool:
    """The group's commits say that all but `missing` of the jobs are done."""
    done = 0
    for offset, metadata in (await world.committed()).values():
        finished = decode_finished(offset, metadata)
        assert finished is not None
        done += offset + sum(last - first for first, last in finished)
    return done == total - missing


async def test_after_kill_9_only_what_was_unfinished_is_done_again(world: World, tmp_path: Path) -> None:
    """Forty jobs of 2,000 never end; the rest is settled far above them, and known by the commit's map alone."""
    jobs = ids(2000)
    await world.publish(jobs)
    first, second = tmp_path / "first", tmp_path / "second"
    child = await process(world, first, hold=50)
    try:
        await until(lambda: finished_but(world, 40, 2000))
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    assert sorted(first.read_bytes().split()) == jobs
    heir = await process(world, second)
    try:
        await until(lambda: finished_but(world, 0, 2000))
    finally:
        heir.terminate()
        assert await heir.wait() == 0
    assert sorted(second.read_bytes().split()) == jobs[::50]
    found = await world.read()
    assert set(found) == set(jobs)
    assert repeats(found) == 0


@pytest.mark.slow
async def test_kills_at_random_moments_lose_nothing(world: World, tmp_path: Path) -> None:
    jobs = ids(10_000)
    await world.publish(jobs)
    kills = 4
    for number in range(kills):
        journal = tmp_path / str(number)
        child = await process(world, journal, seconds=0.2)
        try:
            await until(lambda journal=journal: journal.exists() and journal.stat().st_size > 11 * 1200)
        finally:
            child.send_signal(signal.SIGKILL)
            await child.wait()
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: caught_up(role))
    found = await world.read()
    assert set(found) == set(jobs)
    print(f"kills={kills} lost=0 raw duplicates={repeats(found)}")


async def test_an_offset_that_retention_has_passed_stops_the_role_loudly(world: World) -> None:
    await world.publish(ids(40))
    async with world.publisher() as publisher:
        async with world.role(Works(world.results), publisher, limits=Limits(limit=10)) as role:
            async with asyncio.timeout(30):
                await role.finished()
        admin = AIOKafkaAdminClient(bootstrap_servers=world.bootstrap)
        await admin.start()
        whole = {TopicPartition(world.jobs, number): RecordsToDelete(before_offset=-1) for number in range(4)}
        await admin.delete_records(whole)
        await admin.close()
        async with world.role(works := Works(world.results), publisher) as role:
            async with asyncio.timeout(30):
                error = await role.failed()
        assert isinstance(error, InputError)
        assert error.reason == "offset_expired"
        assert works.journal == []


async def test_a_transactions_markers_leave_no_lag_and_its_aborted_jobs_are_not_done(world: World) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.bootstrap, transactional_id=world.name)
    await producer.start()
    for number, keep in enumerate([True, False, True, False]):
        await producer.begin_transaction()
        await producer.send_and_wait(world.jobs, b"kept-%d" % number if keep else b"aborted", partition=0)
        await (producer.commit_transaction() if keep else producer.abort_transaction())
    await producer.stop()
    async with world.publisher() as publisher, world.role(works := Works(world.results), publisher) as role:
        await until(lambda: role.stats().settled == 2)
        await until(lambda: sum(row.committed or 0 for row in role.stats().partitions) == 8)
        assert sum(role.stats().lag.values()) == 0
    assert works.journal == [b"kept-0", b"kept-2"]


@pytest.mark.slow
async def test_a_frozen_broker_turns_readiness_off_and_a_stop_keeps_its_budget(tmp_path: Path) -> None:
    """A broker of its own: nobody else's tests are to freeze with it."""
    kafka = await asyncio.to_thread(ApacheKafka(tmp_path).start)
    try:
        world = World(kafka.bootstrap)
        await world.make()
        await world.publish(ids(200))
        loop = asyncio.get_running_loop()
        async with world.publisher() as publisher:
            works = Works(world.results, held=lambda _: True)
            async with world.role(works, publisher) as role:
                await until(lambda: works.running == 200)
                kafka.freeze()
                works.release()
                await until(lambda: publisher.ready(patience=1.0)[0] is False)
                begin = loop.time()
                assert await role.stop(4.0) is False
                assert loop.time() - begin < 6.0
                begin = loop.time()
                assert await publisher.stop(2.0) is False
                assert loop.time() - begin < 5.0
        kafka.thaw()
        async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
            await until(lambda: caught_up(role))
        assert set(await world.read()) == set(ids(200))
    finally:
        kafka.thaw()
        await asyncio.to_thread(kafka.stop)


@pytest.mark.slow
async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    kafka = await asyncio.to_thread(ApacheKafka(tmp_path, lapse=6.0).start)
    try:
        world = World(kafka.bootstrap)
        await world.make()
        jobs = ids(3000)
        await world.publish(jobs)
        works = Works(world.results, seconds=0.02)
        async with world.publisher() as publisher, world.role(works, publisher, limits=Limits(jobs=30)) as role:
            await until(lambda: role.stats().settled > 300)
            await asyncio.to_thread(kafka.restart, clean=False)
            await until(lambda: caught_up(role) and role.stats().settled >= 2900, within=90.0)
            await until(lambda: role.ready()[0], within=30.0)
        assert set(await world.read()) == set(jobs)
    finally:
        await asyncio.to_thread(kafka.stop)


async def test_a_second_live_owner_of_an_instance_name_stops_with_a_message_and_the_first_goes_on(world: World) -> None:
    await world.publish(ids(500))
    async with world.publisher() as publisher:
        works = Works(world.results)
        async with world.role(works, publisher, instance="worker-0") as first:
            await until(lambda: first.stats().settled == 500)
            # The elder's first minute is over as far as it knows.
            first._first_joined -= 100.0
            async with world.role(Works(world.results), publisher, instance="worker-0") as twin:
                async with asyncio.timeout(40):
                    error = await twin.failed()
                assert isinstance(error, InputError)
                assert error.reason == "instance"
                assert "worker-0" in error.detail
            await world.publish(ids(100, first=500))

            async def all_done() -> bool:
                return set(await world.read()) == set(ids(600))

            await until(all_done, what="the first goes on")
            assert not first._failed.done()
