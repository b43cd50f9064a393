"""Laws of the inputs of recent jobs: one id with different bytes is told of, once for each, and nothing else is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.stores import Time, a_call, a_store, dead

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, Store
from sluiceway.core.job import Job, admit


def a_job(text: str, job_id: str = "j1", task: str = "t", tenant: str | None = None, round_: int = 0) -> Job:
    tree = {"id": job_id, "task": task, "input": text, "round": round_}
    return admit(tree if tenant is None else {**tree, "tenant": tenant}, origin="c/t/0/1", default_id="x")


class Told(list[tuple[str, str, str]]):
    """What was told of, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._journal = Journal(store, lambda job, before, now: self.append((job.id, before, now)))

    def see(self, *jobs: Job) -> Told:
        for job in jobs:
            self._journal.entry(job, a_call())
        self._store.flush()  # as a turn of the loop ends
        return self


def digests(*texts: str) -> tuple[str, ...]:
    return tuple(a_job(text).digest[:12] for text in texts)


async def test_two_inputs_under_one_id_are_told_of_once_each(tmp_path: Path) -> None:
    """Each against the first, however often they come."""
    store = a_store(tmp_path)
    a, b, c = digests("a", "b", "c")
    told = Told(store).see(*[a_job(text) for text in "aababcbca"])
    assert told == [("j1", a, b), ("j1", a, c)]
    store.close()


async def test_the_same_input_twice_is_told_of_never(tmp_path: Path) -> None:
    """Nor is the same id in another task, of another tenant, or in the round that a redrive opens."""
    store = a_store(tmp_path)
    others = [a_job("b", task="other"), a_job("b", tenant="x"), a_job("b", round_=1), a_job("b", job_id="j2")]
    assert Told(store).see(a_job("a"), a_job("a"), *others, *others, a_job("a")) == []
    store.close()


async def test_an_input_is_known_after_a_restart_and_what_was_told_is_not_told_again(tmp_path: Path) -> None:
    a, b, c = digests("a", "b", "c")
    first = a_store(tmp_path)
    assert Told(first).see(a_job("a"), a_job("b"), a_job("odd\n", "odd\n\0id")) == [("j1", a, b)]
    first.close()
    second = a_store(tmp_path)
    told = Told(second).see(a_job("a"), a_job("b"), a_job("c"), a_job("odd\n", "odd\n\0id"))
    assert told == [("j1", a, c)]
    second.close()
    third = a_store(tmp_path)
    assert Told(third).see(a_job("c"), a_job("a")) == []
    third.close()


async def test_a_process_that_dies_has_told_the_file_of_all_whose_calls_were_made(tmp_path: Path) -> None:
    """It is on record with the call, at the end of the turn."""
    store = a_store(tmp_path / "0")
    told = Told(store).see(a_job("a"))
    await asyncio.sleep(0)
    assert store.pending == 0
    assert told.see(a_job("b", "j2")) == []
    await asyncio.sleep(0)
    a, b, c = digests("a", "b", "c")
    with dead(store, tmp_path / "1") as again:
        assert Told(again).see(a_job("c"), a_job("c", "j2")) == [("j1", a, c), ("j2", b, c)]


async def test_inputs_are_bounded_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By size, the oldest first, and by age; also those that the log told of before it began anew."""
    monkeypatch.setattr("sluiceway.archive.store._TOLD_ANEW", (100, 1 << 30))
    time = Time()
    bounds = Bounds(size=64_000, age=100.0)
    store = a_store(tmp_path, time, bounds)
    told = Told(store)
    for number in range(2000):
        told.see(a_job("a", f"j{number}"))
        await asyncio.sleep(0)
    (size,) = store.row("SELECT sum(length(told)) FROM inputs", ())
    assert 4_000 < size <= 8_000  # an eighth of the store
    assert store.row("SELECT count(*) FROM turns", ()) <= (101,)
    store.close()
    again = a_store(tmp_path, time, bounds)
    assert Told(again).see(a_job("b", "j0")) == []
    assert len(Told(again).see(a_job("b", "j1850"), a_job("b", "j1999"))) == 2
    again.close()
    time.now += 200.0
    aged = a_store(tmp_path, time, bounds)
    assert Told(aged).see(a_job("c", "j1850"), a_job("c", "j1999")) == []
    aged.close()


async def test_memory_is_of_fixed_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later job takes an earlier one's place; an id that was forgotten is new."""
    monkeypatch.setattr("sluiceway.archive.inputs._SLOTS", 1)
    monkeypatch.setattr("sluiceway.archive.inputs._MOST", 1)
    store = a_store(tmp_path)
    told = Told(store).see(a_job("a"), a_job("b", "j2"), a_job("c"), a_job("d"), a_job("e"), a_job("d"))
    assert [now for _, _, now in told] == [*digests("d", "e", "d")]
    store.close()
