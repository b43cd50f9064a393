"""The main job: tickets in from Kafka, answers out, the uncertain escalated, every cent accounted for.

Workers and fakes are processes, the broker is a real Apache Kafka, and the tickets come from kcat or a bare producer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from tests.support.fake_models import FakeRequest, JournalEntry
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import ESCALATIONS, JOBS, RESULTS, REVIEWS, Outgoing, attempts
from tests.support.rig import LABELS, Rig, billed, job, models, triage
from tests.support.tickets import bank_tickets, it_tickets

SEED = 3  # of the cheap fake's doubt
SOURCE = "support.tickets.v2"

Fakes = tuple[FakeProcess, FakeProcess]


def doubted(texts: dict[str, str], share: float = 0.10) -> set[str]:
    """The ids whose text the cheap fake will doubt: its own hash, computed by the test."""
    asked = {name: FakeRequest(0, "openai", "", "", "", text) for name, text in texts.items()}
    return {name for name, request in asked.items() if request.share("doubt", SEED) < share}


async def run(
    rig: Rig,
    fakes: Fakes,
    topic: str,
    texts: dict[str, str],
    values: Sequence[bytes],
    within: float,
    id_of: Callable[[Any], Any] = lambda tree: tree["id"],
) -> None:
    """Publishes, runs both roles one after the other, and holds every outcome against the fakes' journals."""
    _, frontier = fakes
    doubts = doubted(texts)
    everybody = set(texts)
    print(f"seed {SEED}: {len(texts)} tickets, {len(doubts)} to be doubted")
    by = await rig.publish_lines(topic, values)

    began = time.monotonic()
    first = rig.worker("--role", "jobs")
    seen = await rig.until(lambda seen: seen.ids(RESULTS, ESCALATIONS, REVIEWS) >= everybody, within=within)
    jobs_seconds = time.monotonic() - began

    # Nobody escalates without a worker of that role: the doubted wait in their topic, and cost nothing there.
    assert seen.ids(ESCALATIONS) == doubts
    assert seen.ids(RESULTS) == everybody - doubts
    assert frontier.entries() == []
    assert {record["reason"] for record in seen.bodies(ESCALATIONS)} == {"uncertain"}

    began = time.monotonic()
    second = rig.worker("--role", "escalations", start=None)
    seen = await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= everybody, within=within)
    seconds = time.monotonic() - began
    seen = await rig.settled()
    assert await rig.stopped(first, second) == [0, 0]
    print(
        f"published by {by}; {len(texts) / jobs_seconds:.0f} jobs/s to results or escalations, "
        f"{len(doubts) / seconds:.0f} escalations/s, start of the worker included"
    )
    cheap, dear = (fake.entries() for fake in fakes)
    report = await rig.report(seed=SEED, entries=[*cheap, *dear], id_of=id_of)
    assert report.holds, report
    # Nobody was killed, so there is no duplicate to allow for.
    assert report.duplicates.raw == 0
    assert seen.ids(RESULTS) == everybody
    assert len({outcome["outcome_id"] for outcome in seen.bodies(RESULTS)}) == len(everybody)
    for outcome in seen.bodies(RESULTS):
        assert outcome["answer"]["label"] in LABELS
        tried = [attempt["model"] for attempt in attempts(outcome)]
        if outcome["job_id"] in doubts:
            assert (outcome["escalated"], tried) == ("uncertain", ["cheap", "frontier"])
        else:
            assert (outcome["escalated"], tried) == (None, ["cheap"])
    assert (len(cheap), len(dear)) == (len(everybody), len(doubts))
    money(seen, cheap, dear)


def money(seen: Outgoing, cheap: list[JournalEntry], frontier: list[JournalEntry]) -> None:
    """The ledger is the metered tokens times the price, to the pico-dollar: in all, and for each model."""
    assert any(entry.metered and entry.metered.input_cache_read for entry in cheap)
    assert any(entry.metered and entry.metered.input_cache_write_5m for entry in frontier)
    spent: Counter[str] = Counter()
    for outcome in seen.bodies(RESULTS):
        for attempt in attempts(outcome):
            spent[attempt["model"]] += attempt["cost_picousd"]
    assert spent == {"cheap": billed(cheap), "frontier": billed(frontier)}
    total = sum(outcome["cost_picousd"] for outcome in seen.bodies(RESULTS))
    assert total == billed(cheap) + billed(frontier)
    print(f"ledger: {total} pico-dollars, cheap {spent['cheap']}, frontier {spent['frontier']}")


def _ours(texts: Sequence[str]) -> tuple[dict[str, str], list[bytes]]:
    return {f"job-{n}": text for n, text in enumerate(texts)}, [job(n, text)[1] or b"" for n, text in enumerate(texts)]


def _foreign(texts: Sequence[str]) -> tuple[dict[str, str], list[bytes]]:
    """A ticket system's own records: nested, numbered by integers, with fields that nobody asked for."""
    values = [
        orjson.dumps({"ticket": {"number": n, "queue": "web"}, "org": "acme", "body": text, "tags": ["x", None]})
        for n, text in enumerate(texts)
    ]
    return {str(n): text for n, text in enumerate(texts)}, values


FOREIGN: dict[str, Any] = {"topic": SOURCE, "id": "/ticket/number", "tenant": "/org", "input": {"text": "/body"}}


@pytest.mark.slow
async def test_ten_thousand_tickets_come_out_once_and_the_ledger_is_the_meters_sum(rig: Rig, fakes: Fakes) -> None:
    """10,000 tickets, 10,000 outcomes; the doubted tenth waits for its worker; the ledger is tokens times price."""
    cheap, frontier = fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()})
    texts, values = _ours(bank_tickets(10_000))
    await run(rig, fakes, JOBS, texts, values, within=90)


@pytest.mark.slow
async def test_ten_thousand_real_it_tickets_do_the_same(rig: Rig, fakes: Fakes) -> None:
    """The same with the IT backlog, whose tickets are long and stripped of stop words."""
    found = it_tickets(10_000)
    if found is None:
        pytest.skip("the IT backlog (shared/data/it-tickets) is not beside this checkout")
    cheap, frontier = fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()})
    texts, values = _ours(found)
    await run(rig, fakes, JOBS, texts, values, within=120)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_tickets_in_a_foreign_shape_do_the_same_where_they_lie(rig: Rig, fakes: Fakes, count: int) -> None:
    """A ticket system's own topic and JSON, read by `source:`; nobody republishes anything."""
    cheap, frontier = fakes
    task = triage(source=FOREIGN)
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": task})
    texts, values = _foreign(bank_tickets(count))
    await run(rig, fakes, SOURCE, texts, values, within=90, id_of=lambda tree: tree["ticket"]["number"])
    assert {outcome["tenant"] for outcome in rig.out.bodies(RESULTS)} == {"acme"}
