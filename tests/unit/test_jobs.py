"""Laws of the jobs that run: whose epoch has ended, who joins whom, and what is told of those that go on no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.running import RunningRole, turns
from tests.support.stores import REPLY, Time, a_call, a_commit, a_job, a_record, a_store, dead

from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds
from sluiceway.core.stream import Order
from sluiceway.ports import Outgoing, Record


async def test_a_job_that_comes_back_while_it_runs_is_not_run_twice() -> None:
    """It joins its own call, whose one record settles it."""
    role = RunningRole()
    await role.run(a_record(0))
    role.revoke()
    assert role.jobs.detached == 1
    role.assign()
    await role.run(a_record(0))
    role.gate.set()
    await turns()
    role.publisher.ack()
    assert len(role.ran) == 1
    assert role.jobs.detached == 0
    assert role.stream.stats(0.0)[0].watermark == 1


async def test_a_record_of_a_topic_made_anew_joins_nobody_elses_run() -> None:
    """The deleted topic's record at that offset still runs detached; the new one's is another job."""
    role = RunningRole()
    await role.run(a_record(1, timestamp=100.0))
    role.revoke()
    role.assign()
    await role.run(a_record(1, timestamp=200.0))
    assert [record.timestamp for record in role.ran] == [100.0, 200.0]
    role.gate.set()
    await turns()
    (_, _, ticket) = role.publisher.sent[0]
    assert [len(role.publisher.sent), ticket.record.timestamp, role.jobs.detached] == [1, 200.0, 0]
    role.publisher.ack()
    assert role.stream.stats(0.0)[0].watermark == 2


async def test_a_job_that_ends_while_the_last_commit_is_made_counts_as_unfinished() -> None:
    """Nothing of it is published: whoever reads how many jobs a revoke left hears of it too."""
    role = RunningRole()
    await role.run(a_record(0))
    await role.jobs.shut(0.0)
    role.gate.set()
    await turns()
    role.gate.clear()
    await role.run(a_record(1))
    role.stream.revoke([role.partition])
    assert (role.jobs.part(), role.jobs.part()) == (2, 1)
    assert not role.publisher.sent
    role.jobs.cancel()


async def test_a_drain_that_a_rebalance_has_emptied_ends_at_once() -> None:
    """A stop waits for what runs; a rebalance beside it takes the partition, and there is nothing to wait for."""
    role = RunningRole()
    await role.run(a_record(0))
    stop = asyncio.ensure_future(role.jobs.drained([role.partition], asyncio.get_running_loop().time() + 3600.0))
    await turns(1)
    assert not stop.done()
    role.revoke()
    await turns()
    assert stop.done()
    role.jobs.cancel()


async def test_a_job_that_is_cancelled_for_orders_sake_is_in_flight_no_more(tmp_path: Path) -> None:
    """A death long after it is none of its own."""
    store = a_store(tmp_path / "0")
    role = RunningRole(StoreFlight(store, "g"), order=Order.KEY)
    await role.run(a_record(1))
    role.revoke()
    await turns()
    store.flush()
    assert not store.live.jobs
    with dead(store, tmp_path / "1") as after:
        StoreFlight(after, "g")
        assert after.row("SELECT count(*) FROM deaths", ()) == (0,)


async def test_replies_of_a_job_that_is_cancelled_and_comes_back_go_when_it_is_covered(tmp_path: Path) -> None:
    """Its second run is fed the reply that the first one paid for, and then nobody needs it."""
    store = a_store(tmp_path)
    flight, journal = StoreFlight(store, "g"), Journal(store)
    role = RunningRole(flight, order=Order.KEY)
    paid = []

    async def work(record: Record) -> Outgoing:
        entry = journal.entry(a_job(), a_call())
        assert entry is not None
        if entry.reply is None:
            await entry.started()
            entry.ended(REPLY)
            paid.append(record.offset)
        await role.gate.wait()
        return Outgoing("out", b"k", b"v", ())

    role.jobs._work = work
    await role.run(a_record(0))
    role.revoke()
    await turns()
    role.assign()
    role.gate.set()
    await role.run(a_record(0))
    role.publisher.ack()
    flight.cover(a_commit(1))
    store.flush()
    assert paid == [0]
    store.prune()
    assert store.row("SELECT count(*) FROM turns WHERE replies IS NOT NULL", ()) == (0,)
    assert not store.live.jobs
    store.close()


async def test_a_fault_of_a_job_that_is_older_than_the_store_keeps_ends_the_role(tmp_path: Path) -> None:
    """The store knows of it no more, and it is blamed all the same."""
    time = Time()
    store = a_store(tmp_path, time, Bounds(age=60.0))
    role = RunningRole(StoreFlight(store, "g"))
    fault = RuntimeError("a fault of ours")

    async def broken(_: Record) -> Outgoing:
        await role.gate.wait()
        raise fault

    role.jobs._work = broken
    await role.run(a_record(1))
    store.flush()
    time.now += 61
    store.prune()
    role.gate.set()
    await turns()
    assert role.failed == [fault]
    store.flush()
    assert store.row("SELECT deaths, alone FROM deaths", ()) == (1, 0)
    store.close()


async def test_a_job_that_was_published_is_settled_and_not_run_though_a_commit_covers_it_meanwhile(
    tmp_path: Path,
) -> None:
    """A commit of its former epoch is acked between its start and its task's first turn."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    flight.take(a_record(0), alone=False)
    flight.publish(a_record(0))
    role = RunningRole(flight)
    starts = asyncio.ensure_future(role.run(a_record(0)))
    await turns(1)
    flight.cover(a_commit(1))
    await starts
    assert [role.ran, role.publisher.sent] == [[], []]
    assert role.stream.stats(0.0)[0].watermark == 1
    store.close()
