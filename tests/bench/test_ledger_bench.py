"""The ledger bench, run small: it counts, so what it demands holds whatever machine runs it; and its books' own eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.bench._ledger_books import Books, Tariff, compared
from tests.bench.ledger import lone, measure, mixed
from tests.support.fake_journal import JournalEntry, Metered

WIRE = {"cheap": "mini"}
RATES = Tariff(3, 1, 4, 10)
METERED = Metered(input_uncached=10, output_text=2)
COST = 50


def test_the_ledger_is_what_the_meters_show_and_what_is_beyond_it_is_listed_call_by_call(tmp_path: Path) -> None:
    """Real processes on sockets: retried, coalesced, kept, packed and lost calls, and a worker that is killed once."""
    found = measure(400, 1, 5, tmp_path)
    print(found)
    assert found["breaches"] == []
    assert [law for law, held in found["laws"].items() if not held] == []
    assert found["metered_picousd"] == found["ledger_picousd"] + found["lost_picousd"]
    assert 0 < found["lost_picousd"] < found["ledger_picousd"]


def test_the_mix_has_its_copies_and_every_text_of_the_run_is_of_one_task() -> None:
    """Half of the jobs that share are copies, some right behind the first and some at the end."""
    jobs = [*mixed(1000, 1, 5), *mixed(1000, 2, 5), *lone(100)]
    assert len({job["id"] for job in jobs}) == len(jobs) == 2100
    of: dict[str, set[str]] = {}
    for job in jobs:
        of.setdefault(job["input"], set()).add(job["task"])
    assert all(len(tasks) == 1 for tasks in of.values())
    shared = [job["input"] for job in jobs if job["task"] == "shared"]
    assert (len(shared), len(set(shared))) == (700, 350)
    assert sum(one == other for one, other in pairwise(shared)) > 100


Line = dict[str, Any]


def entry(seq: int, text: str, answered: str = "answer", metered: Metered | None = METERED) -> JournalEntry:
    return JournalEntry(0.0, "fake", seq, "POST", "/v1/chat/completions", "mini", "", "", 0, answered, 200,
                        f"r{seq}" if metered else "", metered, text=text)  # fmt: skip


def attempt(response_id: str, cost: int = COST, *, failure: str | None = None, **more: Any) -> Line:
    usage = asdict(Metered() if failure else METERED)
    return {"model": "cheap", "endpoint": "http://h", "response_id": response_id, "failure": failure, "usage": usage,
            "cost": 0 if failure else cost, **more}  # fmt: skip


def line(job: str, *tried: Line) -> Line:
    return {"id": job, "tried": list(tried)}


TEXTS = {"a": "one", "b": "two", "c": "two", "d": "three"}


def run() -> tuple[list[Line], list[JournalEntry]]:
    """One alone that was cut once, two copies of one call, and one that a dead worker had asked for before."""
    half = {**attempt("r3", 25), "usage": asdict(Metered(input_uncached=5, output_text=1))}
    lines = [
        line("a", attempt("", failure="transient: body_cut"), attempt("r2")),
        line("b", half),
        line("c", half),
        {"lost": "d", "model": "cheap"},
        line("d", attempt("r5")),
    ]
    entries = [entry(1, "one", "half"), entry(2, "one"), entry(3, "two"), entry(4, "three"), entry(5, "three")]
    return lines, entries


def books(lines: list[Line], entries: list[JournalEntry]) -> Books:
    return compared(TEXTS, lines, entries, {"mini": RATES}, WIRE)


def test_books_that_add_up_have_no_breach_and_the_lost_stand_apart() -> None:
    found = books(*run())
    assert found.breaches == []
    assert (found.ledger, found.lost, found.metered) == (150, 100, 250)
    kinds = {kind: (row.calls, row.ledger, row.metered) for (_, kind), row in found.rows.items()}
    assert kinds == {"retried": (1, 50, 50), "lost": (2, 0, 100), "coalesced": (1, 50, 50), "once": (1, 50, 50)}


def dearer(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines[0]["tried"][1]["cost"] += 1


def unlisted(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines[0]["tried"].pop(0)


def unlisted_by_the_dead(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines.pop(3)


def copied_whole(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines[1]["tried"] = [attempt("r3")]


def other_tokens(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines[4]["tried"][0]["usage"]["input_cache_read"] = 1


def stranger(lines: list[Line], _entries: list[JournalEntry]) -> None:
    lines[4]["tried"][0]["response_id"] = "r9"


def uncounted(_lines: list[Line], entries: list[JournalEntry]) -> None:
    entries[1] = replace(entries[1], metered=Metered(input_uncached=10, output_text=3))


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (dearer, "51 in the ledger, 50 metered"),
        (unlisted, "a lost call on nobody's list: r1"),
        (unlisted_by_the_dead, "a lost call on nobody's list: r4"),
        (copied_whole, "75 in the ledger, 50 metered"),
        (other_tokens, "tokens in the trails"),
        (stranger, "replies that no server gave: ['r9']"),
        (uncounted, "50 in the ledger, 60 metered"),
    ],
)
def test_what_does_not_add_up_is_noticed(plant: Callable[[list[Line], list[JournalEntry]], None], says: str) -> None:
    """The bench's own eye, with one thing changed at a time."""
    lines, entries = run()
    plant(lines, entries)
    assert any(says in breach for breach in books(lines, entries).breaches)


def test_a_price_that_rises_with_the_call_is_taken_by_its_whole_input() -> None:
    """From the tier on, whatever part of the input came from a cache."""
    rising = Tariff(1, 1, 1, 1, (10, Tariff(2, 2, 2, 2)))
    assert [rising.cost(Metered(input_uncached=5, input_cache_read=more)) for more in (4, 5)] == [9, 20]
