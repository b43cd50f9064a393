"""Laws of what was in flight: a death counts for each job that ran, and for no other; what was published is not redone.

Real processes are killed. tests/property/test_flight_properties.py holds `StoreFlight` to an oracle.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.stores import REPLY, Time, a_call, a_commit, a_job, a_record, a_store, dead

from sluiceway.archive.flight import SUSPECT_DEATHS, StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds
from sluiceway.core.errors import Bug
from sluiceway.ports import Flight, Record

ROOT = Path(__file__).parents[2]


async def test_what_ran_at_a_death_has_died_once_more_and_at_three_is_suspect(tmp_path: Path) -> None:
    """Of two jobs that run at each death and one that was dropped, the two are suspect after three."""
    directory = tmp_path / "0"
    for death in range(SUSPECT_DEATHS):
        store = a_store(directory)
        flight: Flight = StoreFlight(store, "g")
        assert not flight.suspect(a_record(1))
        for offset in (1, 2, 3):
            flight.take(a_record(offset), alone=False)
        flight.drop(a_record(3))
        store.flush()
        directory = tmp_path / str(death + 1)
        with dead(store, directory):
            pass  # opened and closed without a role: nothing is counted, nothing is forgotten
    store = a_store(directory)
    flight = StoreFlight(store, "g")
    assert [flight.suspect(a_record(offset)) for offset in (1, 2, 3)] == [True, True, False]
    assert not flight.condemned(a_record(1))
    store.close()


async def test_who_died_alone_is_condemned_until_its_dead_letter_is_out(tmp_path: Path) -> None:
    """It needs no further death; once published it is not run again, and not published again after the next death."""
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    flight.take(a_record(2), alone=False)
    flight.drop(a_record(2))
    flight.take(a_record(1), alone=True)
    store.flush()
    with dead(store, tmp_path / "1") as after:
        flight = StoreFlight(after, "g")
        assert flight.condemned(a_record(1))
        assert not flight.condemned(a_record(2))
        flight.publish(a_record(1))  # its dead letter; it was not taken
        assert not flight.condemned(a_record(1))
        after.flush()
        with dead(after, tmp_path / "2") as last:
            flight = StoreFlight(last, "g")
            assert flight.was_published(a_record(1))
            assert not flight.condemned(a_record(1))


async def test_nobody_is_condemned_who_died_beside_another(tmp_path: Path) -> None:
    """Of the same process, whatever its role: nobody knows who killed it. It has died once more all the same."""
    store = a_store(tmp_path / "0")
    StoreFlight(store, "jobs").take(a_record(1), alone=True)
    StoreFlight(store, "escalations").take(a_record(1), alone=True)
    store.flush()
    with dead(store, tmp_path / "1") as after:
        jobs, escalations = StoreFlight(after, "jobs"), StoreFlight(after, "escalations")
        assert not jobs.condemned(a_record(1))
        assert not escalations.condemned(a_record(1))
        assert after.row("SELECT count(*), sum(deaths) FROM deaths", ()) == (2, 2)


async def test_what_an_earlier_process_left_for_another_role_condemns_nobody_and_frees_nobody(tmp_path: Path) -> None:
    """A worker of one role alone dies of a job; what the two-role one before it has left did not run beside it."""
    store = a_store(tmp_path / "0")
    StoreFlight(store, "jobs").take(a_record(1), alone=False)
    StoreFlight(store, "escalations").take(a_record(1), alone=True)
    store.flush()
    with dead(store, tmp_path / "1") as second:
        jobs = StoreFlight(second, "jobs")
        jobs.take(a_record(1), alone=True)
        second.flush()
        with dead(second, tmp_path / "2") as third:
            assert StoreFlight(third, "jobs").condemned(a_record(1))
            assert not StoreFlight(third, "escalations").condemned(a_record(1))


async def test_a_clean_stop_is_no_death(tmp_path: Path) -> None:
    """Neither a close nor `landed` before a hard exit counts for what still runs."""
    store = a_store(tmp_path / "0")
    StoreFlight(store, "g").take(a_record(), alone=True)
    store.close()
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    assert not flight.condemned(a_record())
    flight.take(a_record(), alone=True)
    assert store.landed()
    with dead(store, tmp_path / "1") as after:
        assert not StoreFlight(after, "g").condemned(a_record())


async def test_what_was_published_a_moment_before_a_hard_exit_is_not_published_again(tmp_path: Path) -> None:
    """In one turn of the loop a job is acked and the process says that it ends: the ack comes first on record."""
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    for offset in (1, 2):
        flight.take(a_record(offset), alone=False)
    store.flush()
    flight.publish(a_record(1))
    assert store.landed()
    with dead(store, tmp_path / "1") as after:
        flight = StoreFlight(after, "g")
        assert [flight.was_published(a_record(offset)) for offset in (1, 2)] == [True, False]


async def test_a_job_that_is_blamed_has_died_however_clean_the_stop(tmp_path: Path) -> None:
    """A fault of ours that one job brings out would else stop worker after worker."""
    for _ in range(SUSPECT_DEATHS):
        store = a_store(tmp_path)
        flight = StoreFlight(store, "g")
        assert not flight.suspect(a_record(1))
        flight.take(a_record(1), alone=False)
        flight.take(a_record(2), alone=False)
        flight.blame(a_record(1))
        store.close()
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    assert flight.suspect(a_record(1))
    assert not flight.suspect(a_record(2))
    flight.take(a_record(1), alone=True)
    flight.blame(a_record(1))
    store.close()
    store = a_store(tmp_path)
    assert StoreFlight(store, "g").condemned(a_record(1))
    store.close()


async def test_what_was_published_is_known_until_a_commit_covers_it(tmp_path: Path) -> None:
    """By this run, and by the next one: its own settling of it, and a commit that says so, make it forget."""
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    for offset in (1, 2):
        flight.take(a_record(offset), alone=False)
        flight.publish(a_record(offset))
    assert flight.was_published(a_record(1))  # its partition may go before the commit, and come back
    store.flush()
    with dead(store, tmp_path / "1") as second:
        flight = StoreFlight(second, "g")
        assert flight.was_published(a_record(1))
        flight.publish(a_record(1))
        flight.cover(a_commit(1))  # as far as to it, without it
        assert flight.was_published(a_record(1))
        flight.cover(a_commit(2, partition=1))
        assert flight.was_published(a_record(1))
        flight.cover(a_commit(2))
        assert not flight.was_published(a_record(1))
        second.flush()
        with dead(second, tmp_path / "2") as third:
            flight = StoreFlight(third, "g")
            assert not flight.was_published(a_record(1))
            assert flight.was_published(a_record(2))  # nobody settled it in the second run


async def test_a_commit_covers_what_it_says_to_be_done_and_no_more(tmp_path: Path) -> None:
    """The watermark and the map above it; the rest, and what is of another partition, is known to the next run."""
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    records = [a_record(1), a_record(1, partition=1), a_record(2), a_record(3), a_record(4)]
    for record in records:
        flight.take(record, alone=False)
        flight.publish(record)
    flight.cover(a_commit(2, 3))
    store.flush()
    with dead(store, tmp_path / "1") as after:
        flight = StoreFlight(after, "g")
        assert [flight.was_published(record) for record in records] == [False, True, True, False, True]


async def test_a_job_taken_twice_is_dropped_whole(tmp_path: Path) -> None:
    """It left without a word and came back: the last word counts."""
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    flight.take(a_record(), alone=True)
    flight.take(a_record(), alone=False)
    flight.drop(a_record())
    store.flush()
    with dead(store, tmp_path / "1") as after:
        assert not StoreFlight(after, "g").condemned(a_record())


async def test_another_group_or_a_topic_made_anew_is_another_job(tmp_path: Path) -> None:
    """The same topic, partition and offset under another group or with another timestamp has its own fate."""
    store = a_store(tmp_path / "0")
    jobs = StoreFlight(store, "jobs")
    jobs.take(a_record(2), alone=False)
    jobs.publish(a_record(2))
    jobs.take(a_record(1), alone=True)
    store.flush()
    with dead(store, tmp_path / "1") as after:
        jobs, escalations = StoreFlight(after, "jobs"), StoreFlight(after, "escalations")
        assert jobs.condemned(a_record(1))
        assert jobs.was_published(a_record(2))
        assert not escalations.condemned(a_record(1))
        assert not escalations.was_published(a_record(2))
        assert not jobs.condemned(a_record(1, timestamp=1.501))
        assert not jobs.was_published(a_record(2, timestamp=1.501))


async def test_what_nobody_asks_for_is_forgotten_with_age(tmp_path: Path) -> None:
    """Deaths and published records of a partition that another worker has now do not stay for ever."""
    time = Time()
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    flight.take(a_record(1), alone=True)
    flight.take(a_record(2), alone=False)
    flight.publish(a_record(2))
    store.flush()
    with dead(store, tmp_path / "1") as after:
        assert StoreFlight(after, "g").condemned(a_record(1))
    for age, known in ((100.0, True), (200.0, False)):
        time.now = 1000.0 + age
        store = a_store(tmp_path / "1", time, Bounds(age=150.0))
        store.prune()
        flight = StoreFlight(store, "g")
        assert flight.condemned(a_record(1)) is known
        assert flight.was_published(a_record(2)) is known
        store.close()


async def test_what_another_worker_has_for_good_is_forgotten_with_age(tmp_path: Path) -> None:
    """Jobs that ended with their epoch, and published ones whose commit was refused, of this run and an earlier one."""
    time = Time()
    store = a_store(tmp_path / "0", time)
    flight = StoreFlight(store, "g")
    flight.take(a_record(2000), alone=False)
    flight.publish(a_record(2000))
    store.flush()
    with dead(store, tmp_path / "1"):
        pass
    store = a_store(tmp_path / "1", time, Bounds(age=60.0))
    flight, journal = StoreFlight(store, "g"), Journal(store)
    flight.publish(a_record(2000))
    for number in range(10):
        ended, refused = a_record(number), a_record(1000 + number)
        flight.take(ended, alone=False)
        flight.begin(ended)
        entry = journal.entry(a_job(f"j{number}"), a_call())
        assert entry is not None
        entry.ended(REPLY)
        flight.drop(ended)
        flight.take(refused, alone=False)
        flight.publish(refused)
    store.flush()
    assert len(flight._own) == 10
    time.now += 59
    flight.take(a_record(3000), alone=False)
    flight.publish(a_record(3000))
    time.now += 2
    store.prune()
    assert not flight.was_published(a_record(1000))
    assert not flight.was_published(a_record(2000))
    assert flight.was_published(a_record(3000))
    assert [len(flight._own), len(flight._published), sum(map(len, flight._uncovered.values()))] == [1, 0, 1]
    assert not flight._running
    flight.cover(a_commit(3001))
    assert not flight.was_published(a_record(3000))
    store.close()


async def test_the_jobs_of_a_turn_are_one_write(tmp_path: Path) -> None:
    """A hundred takes are on record together, before the first of their tasks has its turn."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    pending = []

    async def works(record: Record) -> None:
        pending.append(store.pending)
        flight.begin(record)

    tasks = []
    for offset in range(100):
        flight.take(a_record(offset), alone=False)
        tasks.append(asyncio.ensure_future(works(a_record(offset))))
    assert store.pending == 100
    await asyncio.gather(*tasks)
    assert pending == [0] * 100
    store.close()


async def test_no_job_runs_that_is_not_on_record(tmp_path: Path) -> None:
    """A store that takes no more fails the begin; `landed` then says that it could not help, and does not raise."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    store.batch("INSERT INTO turns VALUES (NULL, NULL, NULL)").append(())
    flight.take(a_record(), alone=False)
    await asyncio.sleep(0)  # the turn in which it is written
    with pytest.raises(Bug, match="Mend"):
        flight.begin(a_record())
    store.batch("INSERT INTO turns VALUES (NULL, NULL, NULL)").append(())
    assert not store.landed()
    store.close()  # the fault was told: once is enough


_PROCESS = """
import asyncio, sys
from pathlib import Path
from sluiceway.archive.flight import StoreFlight
from tests.support.stores import a_record, a_store

async def main():
    flight = StoreFlight(a_store(Path(sys.argv[1])), "g")
    print(flight.suspect(a_record(1)), flight.condemned(a_record(1)), flush=True)
    flight.take(a_record(1), alone=flight.suspect(a_record(1)))
    flight.take(a_record(2), alone=False)
    flight.publish(a_record(2))
    flight.take(a_record(3), alone=False)
    flight.drop(a_record(3))
    if not flight.suspect(a_record(1)):
        flight.take(a_record(4), alone=False)
    await asyncio.sleep(0)
    print("taken", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_processes_that_are_killed_are_deaths_of_the_jobs_that_ran(tmp_path: Path) -> None:
    """kill -9, four times over one store: suspect after three, condemned after the fourth, which it ran alone."""
    said = []
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            try:
                said.append(process.stdout.readline().strip())
                assert process.stdout.readline() == "taken\n"
            finally:
                process.kill()
    assert said == ["False False", "False False", "False False", "True False"]
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    assert flight.condemned(a_record(1))
    assert [flight.suspect(a_record(offset)) for offset in (1, 2, 3, 4)] == [True, False, False, True]
    assert flight.was_published(a_record(2))
    assert not flight.condemned(a_record(4))
    store.close()
