"""Laws of the local store: what was paid for is never paid for again, and nothing else is lost with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, Store, open_store
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request, TokenLogprob, Usage
from sluiceway.core.catalog import Api, Clearance, Model
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job, admit

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


def test_what_was_published_is_known_before_and_after_a_restart(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    store.published("jobs c/t/0/1")
    assert store.was_published("jobs c/t/0/1")
    store.close()
    again = a_store(tmp_path)
    assert again.was_published("jobs c/t/0/1")
    assert not again.was_published("jobs c/t/0/2")
    again.close()


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
    store = a_store(tmp_path)
    store.published("x")
    store.close()


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
