"""Laws of the local store: what was paid for is never paid for again, and nothing else is lost with it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.stores import (
    FAILED,
    REPLY,
    Time,
    a_call,
    a_commit,
    a_job,
    a_record,
    a_store,
    contents,
    dead,
    held,
    pays,
)

from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, open_store
from sluiceway.archive.tables import FORMAT, Stage
from sluiceway.core.call import Reply, Usage
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.held import Commit, Partition

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with pytest.raises(InputError, match="another worker"):
        a_store(tmp_path)
    store.close()
    a_store(tmp_path).close()


def test_a_restarted_worker_finds_the_first_free_slot(tmp_path: Path) -> None:
    with open_store(tmp_path, bounds=Bounds(), now=Time()) as first:
        with open_store(tmp_path, bounds=Bounds(), now=Time()) as second:
            assert first.directory.name == "slot-0"
            assert second.directory.name == "slot-1"
        with (
            pytest.raises(InputError, match="instance slot-0"),
            open_store(tmp_path, bounds=Bounds(), now=Time(), instance="slot-0"),
        ):
            pass
    with open_store(tmp_path, bounds=Bounds(), now=Time()) as again:
        assert again.directory.name == "slot-0"


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b""])
async def test_a_broken_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    """The worker starts with an empty store; what could not be read is kept beside it."""
    store = a_store(tmp_path)
    await pays(store, a_job(), a_call(), REPLY)
    store.close()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) == REPLY
    again.close()
    aside = tmp_path / "store.db.aside"
    assert aside.exists() == bool(content)
    assert not content or aside.read_bytes() == content


async def test_a_store_of_the_format_before_is_read(tmp_path: Path) -> None:
    """A rolling upgrade pays for nothing twice: replies and lost calls of format 1 are there, and it opens again.

    The file was written by the code of commit 8ff42b1: j1 with its reply, j2 without one, and j1's input.
    """
    (tmp_path / "store.db").write_bytes((FIXTURES / "store-format-1.db").read_bytes())
    store = a_store(tmp_path)
    assert held(store, a_job(), a_call()) == REPLY
    assert [(call.job_id, call.started) for call in store.lost] == [("j2", 1000.0)]
    await pays(store, a_job("j3"), a_call(), REPLY)
    store.close()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) == held(again, a_job("j3"), a_call()) == REPLY
    assert again.lost == ()
    again.close()
    assert not [name for name in contents(tmp_path) if name.endswith(".aside")]


@pytest.mark.parametrize("format_", [4, 5, 6])
async def test_a_store_of_a_former_format_is_read(tmp_path: Path, format_: int) -> None:
    """Replies, lost calls and jobs in flight are there, under the new keys too, and go as new ones do.

    The files were written by the code of commits 385bb51, 136d291 and a679447: j1 with its reply, j2 without one; of a
    group g the record at offset 1 in flight alone, the one at offset 2 published. From 5 on they have the inputs, too.
    """
    (tmp_path / "store.db").write_bytes((FIXTURES / f"store-format-{format_}.db").read_bytes())
    store = a_store(tmp_path)
    assert held(store, a_job(), a_call()) == REPLY
    assert held(store, a_job("j2"), a_call()) is None
    assert [(call.job_id, call.started) for call in store.lost] == [("j2", 1000.0)]
    flight = StoreFlight(store, "g")
    assert flight.condemned(a_record(1))
    assert [flight.was_published(a_record(offset)) for offset in (1, 2)] == [False, True]
    told: list[str] = []
    if format_ > 4:
        journal = Journal(store, lambda job, *_: told.append(job.id))
        for job in (a_job(), a_job("j2", "other")):
            journal.entry(job, a_call())
    flight.take(a_record(3), alone=False)
    await pays(store, a_job("j3"), a_call(), REPLY)
    assert told == ["j2"] * (format_ > 4)
    store.close()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) == held(again, a_job("j3"), a_call()) == REPLY
    flight = StoreFlight(again, "g")
    flight.publish(a_record(2))
    flight.cover(Commit(Partition("jobs", 0), 1, 4, "", 0))
    assert not flight.was_published(a_record(2))
    again.close()
    assert not [name for name in contents(tmp_path) if name.endswith(".aside")]


@pytest.mark.parametrize(
    ("column", "damage"),
    [
        ("replies", b"\0"),
        ("replies", b"[[[1]],[],[]]"),
        ("replies", b"[]"),
        ("told", b"\0"),
        ("told", b"7"),
        ("told", b'[["t",1]]'),
        ("told", b'[["t","1","g",["jobs",0,1,1.5],0,1000.0]]'),
        ("told", b'[["t",1,"g",["jobs",0,1],0,1000.0]]'),
        ("told", b'[["s",1,"j1"]]'),
        ("told", b'[["T",1000.0,"g","jobs",0,1,0,1]]'),
        ("told", b'[["T",1000.0,"g","jobs",0,"1",0,1,1.5]]'),
        ("told", b'[["j",1000.0,"g",0,1]]'),
        ("told", b'[["j",1000.0,"g",0,1,["jobs",0,1]]]'),
        ("told", b'[["S",1000.0,"t","cheap",1]]'),
        ("told", b'[["d",[]]]'),
        ("told", b'[["i",7,"x"]]'),
        ("told", b'[["i","x"]]'),
        ("told", b'[["r",[]]]'),
    ],
)
async def test_a_row_that_is_damaged_is_a_row_that_is_gone(tmp_path: Path, column: str, damage: bytes) -> None:
    """It costs money, never a start; what lies in the other rows is there."""
    store = a_store(tmp_path / "0")
    rows = {}
    for name in ("j1", "j2"):
        await pays(store, a_job(name), a_call(), REPLY)
        await asyncio.sleep(0)
        (rows[name],) = store.row("SELECT max(id) FROM turns WHERE replies IS NOT NULL", ())
    StoreFlight(store, "g").take(a_record(7), alone=True)
    await asyncio.sleep(0)
    with closing(sqlite3.connect(tmp_path / "0" / "store.db")) as db:
        if column == "replies":
            db.execute("UPDATE turns SET replies = ? WHERE id = ?", (damage, rows["j1"]))
        else:
            db.execute("UPDATE turns SET id = id + 1000 WHERE id > ?", (rows["j1"],))
            db.execute("INSERT INTO turns (id, at, told) VALUES (?, 1000.0, ?)", (rows["j1"] + 1, damage))
        db.commit()
    with dead(store, tmp_path / "1") as again:
        assert held(again, a_job("j2"), a_call()) == REPLY
        assert held(again, a_job("j1"), a_call()) == (None if column == "replies" else REPLY)
        flight = StoreFlight(again, "g")
        assert flight.condemned(a_record(7))
        told: list[str] = []
        journal = Journal(again, lambda job, *_: told.append(job.id))
        await pays(again, a_job("j3"), a_call(), REPLY)
        journal.entry(a_job("j3", "other"), a_call())
        again.flush()
        kept = "SELECT count(*) FROM turns WHERE replies IS NOT NULL"
        assert again.row(kept, ()) == (2 if column == "replies" else 3,)
        journal.entry(a_job("j3", "another"), a_call())
        again.flush()
        assert told == ["j3"]


async def test_a_store_of_a_later_format_is_set_aside(tmp_path: Path) -> None:
    """After a step back the worker starts, and the later file is whole beside the new one."""
    store = a_store(tmp_path)
    await pays(store, a_job(), a_call(), REPLY)
    store.close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    content = (tmp_path / "store.db").read_bytes()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) is None
    again.close()
    assert (tmp_path / "store.db.aside").read_bytes() == content


def test_a_file_that_the_machine_refuses_is_not_set_aside(tmp_path: Path) -> None:
    """What is wrong with the disk says nothing of what is in the file: the operator is told, the file stays."""
    (tmp_path / "store.db").mkdir()
    with pytest.raises(InputError, match="Mend"):
        a_store(tmp_path)
    assert (tmp_path / "store.db").is_dir()
    (tmp_path / "store.db").rmdir()
    a_store(tmp_path).close()  # the lock was given back


async def test_the_store_is_bounded_by_age_and_by_size(tmp_path: Path) -> None:
    """Old calls are forgotten; over the size the oldest go first."""
    time = Time()
    store = a_store(tmp_path, time, Bounds(size=400_000, age=100.0))
    for number in range(2000):
        time.now += 0.01
        await pays(store, a_job(f"j{number}"), a_call(), REPLY)
    store.flush()
    store.prune()
    assert held(store, a_job("j0"), a_call()) is None
    assert held(store, a_job("j1999"), a_call()) == REPLY
    time.now += 200.0
    store.prune()
    assert held(store, a_job("j1999"), a_call()) is None
    store.close()


async def test_the_store_keeps_to_its_size_by_itself(tmp_path: Path) -> None:
    """Replies that no commit ever releases, many times the room: the oldest make room for the newest."""
    time, room = Time(), 2_000_000
    store = a_store(tmp_path, time, Bounds(size=room))
    size = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, "
    largest = 0
    for number in range(1_000):
        time.now += 1.0
        store.replies.keep(f"{number:040x}", Reply("x" * 10_000, Usage()))
        store.flush()
        largest = max(largest, store.row(f"{size} pragma_page_size", ())[0])
    assert room / 2 < largest < 1.1 * room
    assert store.replies.held(f"{999:040x}") is not None
    assert store.replies.held(f"{0:040x}") is None
    store.close()


async def test_a_cancelled_wait_takes_nobody_with_it(tmp_path: Path) -> None:
    """Calls of one turn share a write, never a fate."""
    store = a_store(tmp_path)
    first = asyncio.ensure_future(pays(store, a_job(), a_call(), None))
    second = asyncio.ensure_future(pays(store, a_job("j2"), a_call(), None))
    await asyncio.sleep(0)  # both wait now
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    store.close()


async def test_a_store_that_takes_no_more_says_so_to_all_who_wait_and_from_then_on(tmp_path: Path) -> None:
    """No call is made that is not on record."""
    store = a_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.db")) as other:
        other.execute("DROP TABLE turns")
    waiting = [asyncio.ensure_future(pays(store, a_job(name), a_call(), None)) for name in ("j1", "j2")]
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, Bug)
        assert "Mend" in str(result)
    with pytest.raises(Bug, match="no such table"):
        await pays(store, a_job("j3"), a_call(), None)
    store.close()  # somebody was told: once is enough


async def test_a_turn_that_could_not_be_gathered_is_not_taken_for_written(tmp_path: Path) -> None:
    """Whatever the fault of a turn, and be it ours, no call of it is made."""
    store = a_store(tmp_path)

    def broken() -> None:
        raise LookupError("of ours")

    store.gathers.append(broken)
    with pytest.raises(Bug, match="of ours"):
        await pays(store, a_job("j1"), a_call(), None)
    assert not store.landed()
    store.close()  # somebody was told


async def test_a_write_that_failed_untold_is_told_at_the_end(tmp_path: Path) -> None:
    """A reply that could not be kept is not lost in silence; the directory is given back all the same."""
    store = a_store(tmp_path)
    await pays(store, a_job("j0"), a_call(), None)
    with closing(sqlite3.connect(tmp_path / "store.db")) as other:
        other.execute("DROP TABLE turns")
    store.replies.keep("00", REPLY)
    store.soon()
    await asyncio.sleep(0)  # the turn in which it is written
    with pytest.raises(Bug, match="no such table"):
        store.close()
    (tmp_path / "store.db").unlink()
    a_store(tmp_path).close()


@pytest.mark.parametrize("bound", [(1, 1 << 30), (1 << 30, 1)])
async def test_what_is_live_is_told_anew_and_the_log_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: tuple[int, int]
) -> None:
    """After any number of turns the file says what is in flight and under way, in few rows."""
    monkeypatch.setattr("sluiceway.archive.store._TOLD_ANEW", bound)
    copied = tmp_path.with_name(f"{tmp_path.name}-copy")
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    flight.take(a_record(1), alone=True)
    await pays(store, a_job(), a_call(), None)
    for offset in range(2, 50):
        flight.take(a_record(offset), alone=False)
        await pays(store, a_job(f"j{offset}"), a_call(), FAILED)
        flight.publish(a_record(offset))
        store.flush()
        if offset < 49:
            flight.cover(a_commit(1, *range(2, offset + 1)))
    store.flush()
    shutil.copytree(tmp_path, copied, ignore=shutil.ignore_patterns("lock"))
    store.close()
    with closing(sqlite3.connect(copied / "store.db")) as db:
        assert db.execute("SELECT count(*) FROM turns").fetchone()[0] <= 3
    again = a_store(copied)
    assert [(job.number, job.place, job.stage) for job in again.live.jobs.values()] == [
        (1, ("jobs", 0, 1, 1.5), Stage.ALONE),
        (49, ("jobs", 0, 49, 1.5), Stage.PUBLISHED),
    ]
    assert [call.job_id for call in again.lost] == ["j1"]
    again.close()


async def test_a_row_that_is_kept_for_its_reply_tells_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own job and call have long ended when the process dies, and neither died with it."""
    monkeypatch.setattr("sluiceway.archive.store._TOLD_ANEW", (1, 1 << 30))
    store = a_store(tmp_path / "0")
    flight = StoreFlight(store, "g")
    flight.take(a_record(1), alone=True)
    entry = Journal(store).entry(a_job(), a_call())
    assert entry is not None
    entry.started().close()
    store.replies.keep("ab", REPLY)
    store.flush()  # a row with all three
    flight.drop(a_record(1))
    entry.ended(FAILED)
    for offset in range(2, 9):
        flight.take(a_record(offset), alone=False)
        store.flush()
    with dead(store, tmp_path / "1") as again:
        assert again.replies.held("ab") == REPLY
        assert [job.place[2] for job in again.live.jobs.values()] == [*range(2, 9)]
        assert not again.lost
        again.replies.release(["ab"])
        again.flush()
        again.prune()
        assert again.row("SELECT count(*) FROM turns", ()) == (1,)


async def test_sqlites_own_log_begins_anew_though_the_loop_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes into the file in a thread, and stays about as long as what comes in meanwhile."""
    monkeypatch.setattr("sluiceway.archive.store._FOLDED", 200_000)
    store = a_store(tmp_path)
    longest = 0
    long = Reply("x" * 10_000, Usage())
    for number in range(400):
        store.replies.keep(f"{number:032x}", long)
        await store.written()
        if store._folding is not None and number % 20 == 0:
            await store._folding
        longest = max(longest, len(contents(tmp_path)["store.db-wal"]))
    assert longest < 1_500_000  # of 4 MB
    assert store.replies.held(f"{7:032x}") == long
    store.close()
    again = a_store(tmp_path)
    assert again.replies.held(f"{399:032x}") == long
    again.close()
