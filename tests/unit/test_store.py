"""Laws of the local store: what was paid for is never paid for again, and nothing else is lost with it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, Store, open_store
from sluiceway.archive.tables import FORMAT
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request, TokenLogprob, Usage
from sluiceway.core.catalog import Api, Clearance, Model
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.job import Job, admit

FIXTURES = Path(__file__).parent / "fixtures"
REPLY = Reply(
    '{"label":"ä"}',
    Usage(10, 5, 0, 0, 3, 1),
    FinishReason.STOP,
    (
        TokenLogprob(b'{"label":"', -0.1, ()),
        TokenLogprob(b"\xc3", -0.2, ((b"\xc4", -1.5),)),
        TokenLogprob(b'\xa4"}', 0.0, ()),
    ),
    None,
    "served-1",
    "r-1",
    "https://host",
    0.25,
)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_job(job_id: str = "j1", text: str = "hello") -> Job:
    return admit({"id": job_id, "task": "t", "input": text}, origin="c/t/0/1", default_id="x")


def a_call(*, draw: int = 1, user: str = "u", clearance: Clearance = Clearance.INTERNAL, api: Api = Api.OPENAI) -> Call:
    model = Model(name="cheap", model="m", api=api)
    return Call(model, Request("s", user, None, "n", 1, "t"), 0, 1e12, "j1", draw=draw, clearance=clearance)


def a_store(directory: Path, time: Time | None = None, bounds: Bounds | None = None) -> Store:
    return Store(directory, bounds=bounds or Bounds(), now=time or Time())


def test_a_reply_survives_a_restart_whole(tmp_path: Path) -> None:
    """What comes back is equal to what came, logprob bytes included; another draw or prompt finds nothing."""
    store = a_store(tmp_path)
    store.started(a_job(), a_call())
    store.ended(a_job(), a_call(), REPLY)
    assert store.reply(a_job(), a_call()) == REPLY
    store.close()
    again = a_store(tmp_path)
    assert again.reply(a_job(), a_call()) == REPLY
    assert again.reply(a_job(), a_call(draw=2)) is None
    assert again.reply(a_job(), a_call(user="other")) is None
    assert again.reply(a_job("j2"), a_call()) is None
    assert again.reply(a_job(text="other"), a_call()) is None
    assert again.lost == ()
    again.close()


def test_a_call_without_a_reply_is_listed_as_lost_once(tmp_path: Path) -> None:
    """The next run of the instance lists it, the one after does not."""
    store = a_store(tmp_path)
    store.started(a_job(), a_call())
    store.started(a_job("j2"), a_call())
    store.ended(a_job("j2"), a_call(), None)
    store.close()
    again = a_store(tmp_path)
    assert [(call.job_id, call.task, call.model, call.started) for call in again.lost] == [("j1", "t", "cheap", 1000.0)]
    again.close()
    third = a_store(tmp_path)
    assert third.lost == ()
    third.close()


def test_one_id_with_another_input_is_noticed(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    assert store.same_input(a_job())
    store.flush()
    assert store.same_input(a_job())
    assert not store.same_input(a_job(text="something else"))
    store.close()


def test_no_reply_above_the_clearance_touches_the_disk(tmp_path: Path) -> None:
    """A restricted job's call is on record, its reply's text is nowhere in the directory."""
    store = a_store(tmp_path)
    secret = Reply("canary-4711", Usage())
    call = a_call(clearance=Clearance.RESTRICTED)
    store.started(a_job(), call)
    store.ended(a_job(), call, secret)
    store.close()
    assert all(b"canary-4711" not in file.read_bytes() for file in tmp_path.iterdir())
    again = a_store(tmp_path)
    assert again.reply(a_job(), call) is None
    assert again.lost == ()
    again.close()


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
def test_a_broken_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    """The worker starts with an empty store; what could not be read is kept beside it."""
    store = a_store(tmp_path)
    store.started(a_job(), a_call())
    store.ended(a_job(), a_call(), REPLY)
    store.close()
    again = a_store(tmp_path)
    assert again.reply(a_job(), a_call()) == REPLY
    again.close()
    aside = tmp_path / "store.db.aside"
    assert aside.exists() == bool(content)
    assert not content or aside.read_bytes() == content


def test_a_store_of_the_format_before_is_read(tmp_path: Path) -> None:
    """A rolling upgrade pays for nothing twice: replies and lost calls of format 1 are there, and it opens again.

    The file was written by the code of commit 8ff42b1: j1 with its reply, j2 without one, and j1's input.
    """
    (tmp_path / "store.db").write_bytes((FIXTURES / "store-format-1.db").read_bytes())
    store = a_store(tmp_path)
    assert store.reply(a_job(), a_call()) == REPLY
    assert [(call.job_id, call.started) for call in store.lost] == [("j2", 1000.0)]
    assert not store.same_input(a_job(text="something else"))
    store.started(a_job("j3"), a_call())
    store.ended(a_job("j3"), a_call(), REPLY)
    store.close()
    again = a_store(tmp_path)
    assert again.reply(a_job(), a_call()) == again.reply(a_job("j3"), a_call()) == REPLY
    assert again.lost == ()
    again.close()
    assert [file.name for file in tmp_path.glob("*.aside")] == []


def test_a_store_of_a_later_format_is_set_aside(tmp_path: Path) -> None:
    """After a step back the worker starts, and the later file is whole beside the new one."""
    store = a_store(tmp_path)
    store.started(a_job(), a_call())
    store.ended(a_job(), a_call(), REPLY)
    store.close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    content = (tmp_path / "store.db").read_bytes()
    again = a_store(tmp_path)
    assert again.reply(a_job(), a_call()) is None
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


def test_the_store_is_bounded_by_age_and_by_size(tmp_path: Path) -> None:
    """Old calls are forgotten; over the size the oldest go first."""
    time = Time()
    store = a_store(tmp_path, time, Bounds(size=400_000, age=100.0))
    for number in range(2000):
        time.now += 0.01
        store.started(a_job(f"j{number}"), a_call())
        store.ended(a_job(f"j{number}"), a_call(), REPLY)
    store.flush()
    store.prune()
    assert store.reply(a_job("j0"), a_call()) is None
    assert store.reply(a_job("j1999"), a_call()) == REPLY
    time.now += 200.0
    store.prune()
    assert store.reply(a_job("j1999"), a_call()) is None
    store.close()


async def test_the_journal_pays_once_across_a_restart_and_forgets_failures(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    journal = Journal(store)
    await journal.started(a_job(), a_call())
    assert store.pending == 0  # on record before the call is made
    journal.ended(a_job(), a_call(), REPLY)
    await journal.started(a_job("j2"), a_call())
    journal.ended(a_job("j2"), a_call(), Failure(FailureKind.TRANSIENT, "timeout"))
    await journal.started(a_job("j3"), a_call(api=Api.RECORDED))
    store.close()
    again = a_store(tmp_path)
    held = Journal(again)
    assert held.held(a_job(), a_call()) == REPLY
    assert held.held(a_job("j2"), a_call()) is None
    assert again.lost == ()
    again.close()


async def test_a_cancelled_wait_takes_nobody_with_it(tmp_path: Path) -> None:
    """Calls of one turn share a write, never a fate."""
    store = a_store(tmp_path)
    journal = Journal(store)
    first = asyncio.ensure_future(journal.started(a_job(), a_call()))
    second = asyncio.ensure_future(journal.started(a_job("j2"), a_call()))
    await asyncio.sleep(0)  # both wait now
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    store.close()


async def test_a_store_that_takes_no_more_says_so_to_all_who_wait_and_from_then_on(tmp_path: Path) -> None:
    """No call is made that is not on record."""
    store = a_store(tmp_path)
    journal = Journal(store)
    with closing(sqlite3.connect(tmp_path / "store.db")) as other:
        other.execute("DROP TABLE calls")
    waiting = [asyncio.ensure_future(journal.started(a_job(name), a_call())) for name in ("j1", "j2")]
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, Bug)
        assert "Mend" in str(result)
    with pytest.raises(Bug, match="no such table"):
        await journal.started(a_job("j3"), a_call())
    store.close()  # somebody was told: once is enough


async def test_a_write_that_failed_untold_is_told_at_the_end(tmp_path: Path) -> None:
    """A reply that could not be kept is not lost in silence; the directory is given back all the same."""
    store = a_store(tmp_path)
    journal = Journal(store)
    await journal.started(a_job(), a_call())
    with closing(sqlite3.connect(tmp_path / "store.db")) as other:
        other.execute("DROP TABLE calls")
    journal.ended(a_job(), a_call(), REPLY)
    await asyncio.sleep(0)  # the turn in which it is written
    with pytest.raises(Bug, match="no such table"):
        store.close()
    (tmp_path / "store.db").unlink()
    a_store(tmp_path).close()
