"""Laws of the journal: what was paid for is never paid for again, and a call that told nobody anything is listed."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.stores import FAILED, REPLY, a_call, a_commit, a_job, a_record, a_store, contents, held, pays

from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.core.call import Failure, FailureKind, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.catalog import Api, Clearance
from sluiceway.core.held import Commit, Partition

FIXTURES = Path(__file__).parent / "fixtures"


async def test_a_reply_survives_a_restart_whole(tmp_path: Path) -> None:
    """What comes back is equal to what came, logprob bytes included; another draw or prompt finds nothing."""
    store = a_store(tmp_path)
    await pays(store, a_job(), a_call(), REPLY)
    assert held(store, a_job(), a_call()) == REPLY
    store.close()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) == REPLY
    assert held(again, a_job(), a_call(draw=2)) is None
    assert held(again, a_job(), a_call(user="other")) is None
    assert held(again, a_job("j2"), a_call()) is None
    assert held(again, a_job(text="other"), a_call()) is None
    assert again.lost == ()
    again.close()


async def test_a_call_without_a_reply_is_listed_as_lost_once(tmp_path: Path) -> None:
    """The next run of the instance lists it, the one after does not."""
    store = a_store(tmp_path)
    await pays(store, a_job(), a_call(), None)
    await pays(store, a_job("j2"), a_call(), FAILED)
    store.close()
    again = a_store(tmp_path)
    assert [(call.job_id, call.task, call.model, call.started) for call in again.lost] == [("j1", "t", "cheap", 1000.0)]
    again.close()
    third = a_store(tmp_path)
    assert third.lost == ()
    third.close()


@pytest.mark.parametrize(
    ("event", "listed"),
    [
        (FAILED, True),
        (Failure(FailureKind.TRANSIENT, "body_cut"), True),
        (Failure(FailureKind.OVERLOADED, "rate_limit_exceeded", usage=Usage(1)), True),
        (Failure(FailureKind.OVERLOADED, "rate_limit_exceeded"), False),
        (Failure(FailureKind.TRANSIENT, "http_500"), False),
        (Failure(FailureKind.TRANSIENT, "connect"), False),
        (REPLY, False),
    ],
)
@pytest.mark.parametrize("published", [False, True])
async def test_what_may_be_billed_and_stands_in_a_trail_alone_is_lost_with_it(
    tmp_path: Path, event: Reply | Failure, listed: bool, published: bool
) -> None:
    """A try that was cut off, then the process dies: no outcome tells of it. Once one is published, none is listed."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    flight.take(a_record(), alone=False)
    flight.begin(a_record())
    await pays(store, a_job(), a_call(), event)
    if published:
        flight.publish(a_record())
    store.close()
    again = a_store(tmp_path)
    assert [call.job_id for call in again.lost] == ["j1"] * (listed and not published)
    again.close()


async def test_a_reply_that_may_not_be_kept_is_lost_with_its_job(tmp_path: Path) -> None:
    """A restricted job is called for again after a death, and the call before it was billed."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    flight.take(a_record(), alone=False)
    flight.begin(a_record())
    await pays(store, a_job(), a_call(clearance=Clearance.RESTRICTED), REPLY)
    store.close()
    again = a_store(tmp_path)
    assert [call.job_id for call in again.lost] == ["j1"]
    again.close()


async def test_no_reply_above_the_clearance_touches_the_disk(tmp_path: Path) -> None:
    """A restricted job's call is on record, its reply's text is nowhere in the directory."""
    store = a_store(tmp_path)
    secret = Reply("canary-4711", Usage())
    call = a_call(clearance=Clearance.RESTRICTED)
    await pays(store, a_job(), call, secret)
    store.close()
    assert all(b"canary-4711" not in content for content in contents(tmp_path).values())
    again = a_store(tmp_path)
    assert held(again, a_job(), call) is None
    assert again.lost == ()
    again.close()


async def test_the_journal_pays_once_across_a_restart_and_forgets_failures(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    await pays(store, a_job(), a_call(), None)
    assert store.pending == 0  # on record before the call is made
    await pays(store, a_job(), a_call(), REPLY)
    await pays(store, a_job("j2"), a_call(), FAILED)
    assert Journal(store).entry(a_job("j3"), a_call(api=Api.RECORDED)) is None
    store.close()
    again = a_store(tmp_path)
    assert held(again, a_job(), a_call()) == REPLY
    assert held(again, a_job("j2"), a_call()) is None
    again.close()


async def test_replies_go_with_the_commit_that_covers_their_job(tmp_path: Path) -> None:
    """A row that is kept for its replies goes after the last of them; what no commit covers yet is held on to."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")

    async def works(offset: int) -> None:
        flight.begin(a_record(offset))
        await pays(store, a_job(f"j{offset}"), a_call(), REPLY)

    for offset in (1, 2):
        flight.take(a_record(offset), alone=False)
    await asyncio.gather(*[asyncio.create_task(works(offset)) for offset in (1, 2)])
    for offset in (1, 2):
        flight.publish(a_record(offset))
    flight.cover(Commit(Partition("jobs", 0), 1, 2, "", 0))
    store.flush()
    assert held(store, a_job("j1"), a_call()) is None
    assert held(store, a_job("j2"), a_call()) == REPLY
    flight.cover(Commit(Partition("jobs", 0), 1, 3, "", 0))
    store.flush()
    store.close()
    again = a_store(tmp_path)
    assert not again.replies.strays
    assert again.row("SELECT count(*) FROM turns WHERE replies IS NOT NULL", ()) == (0,)
    again.close()


async def test_a_job_that_was_dropped_finds_its_replies_when_it_comes_back(tmp_path: Path) -> None:
    """They go when it is covered at last."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")

    async def works() -> None:
        flight.begin(a_record())
        await pays(store, a_job(), a_call(), REPLY)

    flight.take(a_record(), alone=False)
    await asyncio.create_task(works())
    flight.drop(a_record())
    assert held(store, a_job(), a_call()) == REPLY

    async def works_again() -> None:
        flight.begin(a_record())
        assert held(store, a_job(), a_call()) == REPLY

    flight.take(a_record(), alone=False)
    await asyncio.create_task(works_again())
    flight.publish(a_record())
    flight.cover(Commit(Partition("jobs", 0), 1, 2, "", 0))
    assert held(store, a_job(), a_call()) is None
    store.close()


async def test_what_a_job_in_flight_was_answered_is_found_by_whoever_may_ask_again(tmp_path: Path) -> None:
    """Itself, for the same call; a second record of a job that was handed over; in the reply's own turn and later."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    own = dataclasses.replace(a_job(), published_at=a_record().timestamp)
    for job, records in ((own, [a_record(1)] * 2), (a_job("j2"), [a_record(2), a_record(3)])):
        for record in dict.fromkeys(records):
            flight.take(record, alone=False)
        for flushed in (False, True):
            for number, record in enumerate(records):
                if number == 0 and not flushed:
                    flight.begin(record)
                    await pays(store, job, a_call(), REPLY)
                else:
                    flight.begin(record)
                    assert held(store, job, a_call()) == REPLY
            await store.written()
    assert not store.replies.strays
    for offset in (1, 2, 3):
        flight.publish(a_record(offset))
    flight.cover(a_commit(4))
    for job in (own, a_job("j2")):
        flight.begin(a_record(9))
        assert held(store, job, a_call()) is None
    store.close()


async def test_a_reply_that_comes_after_its_job_was_dropped_is_found(tmp_path: Path) -> None:
    """The job comes back while nothing else is held, and asks for the first time."""
    store = a_store(tmp_path)
    flight, journal = StoreFlight(store, "g"), Journal(store)
    job = dataclasses.replace(a_job(), published_at=a_record().timestamp)
    flight.take(a_record(), alone=False)
    flight.begin(a_record())
    entry = journal.entry(job, a_call())
    assert entry is not None
    await entry.started()
    flight.drop(a_record())
    entry.ended(REPLY)
    flight.take(a_record(), alone=False)
    flight.begin(a_record())
    assert held(store, job, a_call()) == REPLY
    store.close()


async def test_the_replies_of_a_turn_come_back_each_as_it_was(tmp_path: Path) -> None:
    """With and without tokens and alternatives, in one row; one released before it was written is not in it."""
    top = ((b"\x00", -1.5), (b"", -200.0), (b"long" * 100, -0.0))
    replies = {
        "none": Reply("", Usage()),
        "whole": REPLY,
        "local": Reply("a", Usage(1, 2, 3, 4, 5, 6), FinishReason.LENGTH, (), {"a": 0.75, "b": 0.25}),
        "many": Reply("ab", Usage(), logprobs=[TokenLogprob(b"a", -0.1 - 0.2, top), TokenLogprob(b"b", 0, top[:1])]),
        "packed": Reply("{}", Usage(), packed=7, seconds=1.25),
    }
    store = a_store(tmp_path)
    for key, reply in {**replies, "released": REPLY}.items():
        store.replies.keep(key, reply)
    store.replies.release(["released"])
    store.close()
    again = a_store(tmp_path)
    for key, reply in replies.items():
        found = again.replies.held(key)
        assert found is not None
        assert found == dataclasses.replace(reply, logprobs=tuple(reply.logprobs))
    assert again.replies.held("released") is None
    again.close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        assert db.execute("SELECT count(*) FROM turns WHERE replies IS NOT NULL").fetchone() == (1,)


async def test_a_reply_that_cant_be_written_costs_no_other_one(tmp_path: Path) -> None:
    """An endpoint may count beyond 64 bits: that reply is not held, those of its turn are, and the store goes on."""
    store = a_store(tmp_path)
    store.replies.keep("ab", REPLY)
    store.replies.keep("cd", Reply("{}", Usage(input_uncached=1 << 70)))
    await store.written()
    assert store.replies.held("cd") is None
    store.close()
    again = a_store(tmp_path)
    assert again.replies.held("ab") == REPLY
    again.close()


async def test_two_replies_to_one_call_in_a_turn_are_one(tmp_path: Path) -> None:
    """Two copies of a record: the last reply is held, and released as one."""
    store = a_store(tmp_path)
    first, second, third = [Reply(text, Usage()) for text in ("1", "2", "3")]
    store.replies.keep("ab", first)
    store.replies.keep("ab", second)
    assert store.replies.held("ab") == second
    store.flush()
    assert store.replies.held("ab") == second
    store.replies.keep("ab", third)
    store.flush()
    assert store.replies.held("ab") == third
    store.replies.release(["ab", "ab"])
    assert store.replies.held("ab") is None
    store.close()
