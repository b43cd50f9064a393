"""Laws of the answers that outlive their process: served to the same call again, and to no other, and not for ever."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.stores import REPLY, a_job, held, pays
from tests.support.stores import a_call as stored_call
from tests.unit.test_models_sharing import BASE, OTHERS, USAGE, HandClock, Held

from sluiceway.archive.answers import StoreAnswers, open_answers
from sluiceway.archive.store import Bounds, Store
from sluiceway.core.call import CACHED, Call, Reply, Usage
from sluiceway.core.catalog import Clearance
from sluiceway.core.sharing import Kept, Sharing
from sluiceway.models.sharing import SharedCalls

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = {"cache": 60}
SERVED = replace(REPLY, usage=Usage(), endpoint=CACHED, seconds=0.0)

FIXTURES = Path(__file__).parent / "fixtures"


class Life:
    """One process of an instance: what it asks its model, and what it keeps."""

    def __init__(
        self, folder: Path, digest: str = "digest", bounds: Bounds | None = None, at: float = 1000.0, **rules: Any
    ) -> None:
        self.clock = HandClock()
        self.clock.time = at
        self.store = Store(folder, bounds=bounds or Bounds(), now=self.clock.now)
        self.rules = Sharing(**(rules or RULES))
        self.answers = open_answers(self.store, self.rules)
        self.inner = Held(REPLY)
        self.inner.open.set()
        self.models = SharedCalls(self.inner, self.rules, digest, self.clock, self.answers)

    async def ask(self, call: Call = BASE) -> Reply:
        found = await self.models.call(call)
        assert isinstance(found, Reply)
        return found

    @property
    def asked(self) -> int:
        """Calls that the model got."""
        return len(self.inner.calls)


@contextmanager
def life(folder: Path, **more: Any) -> Iterator[Life]:
    living = Life(folder, **more)
    try:
        yield living
    finally:
        living.store.close()


def rows(folder: Path, what: str = "count(*)") -> Any:
    with closing(sqlite3.connect(folder / "store.db")) as db:
        return db.execute(f"SELECT {what} FROM answers").fetchone()[0]  # noqa: S608  texts of this file


def holds(folder: Path, text: bytes) -> bool:
    """Whether any file of the store's directory has it."""
    return any(text in file.read_bytes() for file in folder.iterdir())


def spoil(folder: Path, change: str) -> None:
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as db:
        assert db.execute(f"UPDATE answers SET {change}").rowcount == 1  # noqa: S608  texts of this file


async def test_an_answer_that_a_process_kept_serves_its_successor_whole_and_at_no_cost(tmp_path: Path) -> None:
    """Logprob bytes included: the gate scores it as it was scored."""
    with life(tmp_path) as first:
        assert await first.ask() == REPLY
    with life(tmp_path, at=1059.0) as second:
        assert await second.ask() == SERVED
        assert await second.ask() == SERVED
        assert (second.asked, second.models.saved) == (0, 2)


async def test_an_answer_serves_from_the_moment_it_came_however_often_it_is_asked_for(tmp_path: Path) -> None:
    """Neither a hit nor a restart makes it younger; and it may be kept anew."""
    with life(tmp_path) as first:
        await first.ask()
    with life(tmp_path, at=1050.0) as second:
        assert (await second.ask()).endpoint == CACHED
        second.clock.time = 1061.0
        assert await second.ask() == REPLY
        assert second.asked == 1
    with life(tmp_path, at=1120.0) as third:
        assert (await third.ask()).endpoint == CACHED
    assert rows(tmp_path) == 1


async def test_an_answer_of_the_future_does_not_serve(tmp_path: Path) -> None:
    """The clock was wrong when it came: nobody knows how old it is."""
    with life(tmp_path, at=5000.0) as first:
        await first.ask()
    with life(tmp_path) as second:
        assert await second.ask() == REPLY
        assert second.answers is not None
        other = replace(BASE, tenant="other")
        second.answers.keep(second.models._keys.of(other), Kept(SERVED, 1010.0), Clearance.PUBLIC)
        second.store.flush()
        assert await second.ask(other) == REPLY


@pytest.mark.parametrize("what", list(OTHERS))
async def test_a_kept_answer_is_never_another_callers(tmp_path: Path, what: str) -> None:
    """A known complaint: a cache that returns another tenant's answer. Not after a restart either."""
    with life(tmp_path) as first:
        await first.ask()
    with life(tmp_path) as second:
        assert await second.ask(replace(BASE, **OTHERS[what])) == REPLY
        assert second.asked == 1


async def test_a_kept_answer_is_never_another_policys(tmp_path: Path) -> None:
    with life(tmp_path) as first:
        await first.ask()
    with life(tmp_path, digest="another policy") as second:
        assert await second.ask() == REPLY


@pytest.mark.parametrize(
    "change",
    [
        "reply = CAST(x'00' || substr(reply, 2) AS BLOB)",
        "reply = CAST(replace(CAST(reply AS TEXT), 'label', 'lebal') AS BLOB)",
        "reply = 'text, and no bytes'",
        "reply = x''",
        "reply = CAST('[]' AS BLOB), crc = 0",
        "crc = 'none'",
        "at = at + 1",
        "at = 'soon'",
        "key = zeroblob(32)",
    ],
)
async def test_a_corrupt_row_is_a_miss(tmp_path: Path, change: str) -> None:
    """Whatever of it is not what was written, be it readable; the next answer takes its place."""
    with life(tmp_path) as first:
        await first.ask()
    with life(tmp_path) as second:
        spoil(tmp_path, change)
        call = BASE if "key" not in change else replace(BASE, tenant="other")
        if "key" in change:  # the row lies under another call's key
            spoil(tmp_path, f"key = x'{second.models._keys.of(call).hex()}'")
        assert await second.ask(call) == REPLY
        assert second.asked == 1
    with life(tmp_path) as third:
        assert (await third.ask(call)).endpoint == CACHED


async def test_a_table_that_is_gone_is_a_miss(tmp_path: Path) -> None:
    """Reading never ends a worker; what can't be written is told as by any other write."""
    with life(tmp_path) as first:
        await first.ask()
    with life(tmp_path) as second:
        with closing(sqlite3.connect(tmp_path / "store.db")) as other:
            other.execute("ALTER TABLE answers RENAME TO elsewhere")
        assert second.answers is not None
        assert second.answers.find(b"key") is None
        with closing(sqlite3.connect(tmp_path / "store.db")) as other:
            other.execute("ALTER TABLE elsewhere RENAME TO answers")


DYING = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.test_answers import Life

async def main():
    living = Life(Path(sys.argv[1]))
    await living.ask()
    for _ in range(3):
        await asyncio.sleep(0)  # the turn in which it is written
    os._exit(9)

asyncio.run(main())
"""


def test_an_answer_kept_by_a_process_that_was_killed_serves_its_successor(tmp_path: Path) -> None:
    """Nothing is written as it dies: what it had kept lies there since the turn in which it came."""
    command = [sys.executable, "-c", DYING, str(tmp_path)]
    died = subprocess.run(command, cwd=ROOT, env=os.environ, check=False, capture_output=True, timeout=60)
    assert died.returncode == 9, died.stderr.decode()
    with life(tmp_path) as successor:
        assert asyncio.run(successor.ask()) == SERVED
        assert successor.asked == 0


async def test_what_is_kept_goes_with_the_stores_own_writes(tmp_path: Path) -> None:
    """No transaction of its own: the turn's one write has it, and until then the memory serves."""
    with life(tmp_path) as living:
        written: list[str] = []
        living.store._db.set_trace_callback(written.append)
        await living.ask()
        assert [text.split()[0] for text in written] == ["SELECT"]
        assert (await living.ask()).endpoint == CACHED
        await pays(living.store, a_job(), stored_call(), None)
        assert [text for text in written if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN", "COMMIT"]
        assert rows(tmp_path) == 1


@pytest.mark.parametrize("coalesce", [False, True])
async def test_a_call_that_keeps_nothing_reads_nothing(tmp_path: Path, coalesce: bool) -> None:
    """Confidential data under a policy that does not keep them, shared in flight or not."""
    with life(tmp_path, cache=60, coalesce=coalesce) as living:
        written: list[str] = []
        living.store._db.set_trace_callback(written.append)
        await living.ask(replace(BASE, clearance=Clearance.CONFIDENTIAL))
        assert written == []
        assert len(living.models._front) == 0
        assert bool(living.models._keys._known) == coalesce  # else not even a key is made


async def test_before_a_store_little_memory_is_taken_and_what_left_it_is_found(tmp_path: Path) -> None:
    """Eight megabytes of memory whatever the policy lets the store have; without a store all of it."""
    with life(tmp_path) as living:
        living.inner.answer = Reply("x" * 1_000_000, USAGE)
        for number in range(10):
            await living.ask(replace(BASE, tenant=str(number)))
        await living.store.written()
        assert len(living.models._front) == 1
        found = [await living.ask(replace(BASE, tenant=str(number))) for number in range(10)]
        assert [reply.endpoint for reply in found] == [CACHED] * 10
        alone = SharedCalls(living.inner, living.rules, "digest", living.clock)
        for number in range(10):
            await alone.call(replace(BASE, tenant=str(number)))
        assert len(alone._front) == 10


@pytest.mark.parametrize("clearance", list(Clearance))
@pytest.mark.parametrize("confidential", [False, True])
async def test_no_answer_lies_in_the_store_above_its_clearance_or_the_policys(
    tmp_path: Path, clearance: Clearance, confidential: bool
) -> None:
    """The store takes up to confidential, the policy up to internal unless it says more; the rest stays in memory."""
    canary = Reply("canary-4711", USAGE)
    with life(tmp_path, cache=60, confidential=confidential) as living:
        living.inner.answer = canary
        await living.ask(replace(BASE, clearance=clearance))
        again = await living.ask(replace(BASE, clearance=clearance))
    kept_in_memory = confidential or clearance <= Clearance.INTERNAL
    assert (again.endpoint == CACHED) == kept_in_memory
    assert holds(tmp_path, b"canary-4711") == (kept_in_memory and clearance < Clearance.RESTRICTED)


async def test_what_the_policy_no_longer_lets_be_kept_is_gone_when_it_opens(tmp_path: Path) -> None:
    """Not only unused: a shorter age, a lower clearance, no cache at all."""
    with life(tmp_path, cache=600, confidential=True) as first:
        for number, clearance in enumerate(Clearance):
            await first.ask(replace(BASE, tenant=str(number), clearance=clearance))
        first.clock.time += 500
        await first.ask(replace(BASE, tenant="late"))
    assert rows(tmp_path) == 4
    assert rows(tmp_path, "max(clearance)") == Clearance.CONFIDENTIAL
    answers = Store(tmp_path, bounds=Bounds(), now=lambda: 1550.0)
    open_answers(answers, Sharing(cache=600))
    answers.close()
    assert (rows(tmp_path), rows(tmp_path, "max(clearance)")) == (3, Clearance.INTERNAL)
    answers = Store(tmp_path, bounds=Bounds(), now=lambda: 1550.0)
    open_answers(answers, Sharing(cache=60))
    answers.close()
    assert rows(tmp_path) == 1
    with life(tmp_path, coalesce=True) as off:
        assert off.answers is None
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            rows(tmp_path)


@pytest.mark.parametrize("room", [20_000, 200_000])
async def test_kept_answers_stay_within_their_size_the_oldest_leave_first(tmp_path: Path, room: int) -> None:
    """At every moment, whatever their sizes; one that is larger than the room is not kept."""
    with life(tmp_path, cache=9e8, cache_size=room) as living:
        answers = living.answers
        assert isinstance(answers, StoreAnswers)
        for number in range(1500):
            answers.keep(b"%d" % number, Kept(Reply("x" * (number * 7919 % 3000), USAGE), 1000.0), Clearance.PUBLIC)
            if number % 10 == 9:
                living.store.flush()
                bytes_kept = living.store.row("SELECT sum(length(reply) + 128) FROM answers", ())[0]
                assert bytes_kept <= room + room // 256 + 10 * 3500
                assert number < 300 or bytes_kept >= 0.7 * room
        answers.keep(b"large", Kept(Reply("x" * room, USAGE), 1000.0), Clearance.PUBLIC)
        living.store.flush()
        assert answers.find(b"large") is None
        assert answers.find(b"1499") is not None
        assert answers.find(b"0") is None


async def test_answers_that_are_too_old_leave_as_new_ones_come(tmp_path: Path) -> None:
    """Long before the room is full."""
    with life(tmp_path, cache=60, cache_size=1_000_000) as living:
        assert living.answers is not None
        for number in range(1000):
            living.clock.time += 1
            living.answers.keep(b"%d" % number, Kept(SERVED, living.clock.time), Clearance.PUBLIC)
            living.store.flush()
        assert 60 <= rows(tmp_path) < 90


def test_the_answers_never_take_more_than_a_quarter_of_the_store(tmp_path: Path) -> None:
    """Or the calls, which keep jobs from being paid for twice, would be forgotten for them."""
    with life(tmp_path, bounds=Bounds(size=400_000), cache=60) as living:
        assert living.answers is not None
        assert living.answers._room == 100_000


async def test_a_store_of_a_former_format_keeps_answers_too(tmp_path: Path) -> None:
    """And what it held before is there."""
    (tmp_path / "store.db").write_bytes((FIXTURES / "store-format-1.db").read_bytes())
    with life(tmp_path) as living:
        await living.ask()
    with life(tmp_path) as again:
        assert (await again.ask()).endpoint == CACHED
        assert held(again.store, a_job(), stored_call()) == REPLY  # it was read, and not set aside
