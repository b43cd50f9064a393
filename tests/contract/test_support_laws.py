"""The checker of the laws must fail when it should: a clean run is spoiled in one way at a time."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import laws
from tests.support.evidence import (
    Disturbance,
    Lag,
    Outcome,
    Place,
    Published,
    Sample,
    outcome_id,
    read_outcomes,
    settled,
)
from tests.support.fake_journal import JournalEntry, Metered
from tests.support.laws import Rates
from tests.support.topics import Seen

RATES = {"cheap": Rates.of(0.15, 0.003, 0.60), "frontier": Rates.of(5, 0.5, 25, 6.25)}


def call(number: int, model: str, job: str) -> JournalEntry:
    metered = Metered(input_uncached=100 + number, input_cache_read=50 * (number % 2), output_text=7)
    digest = hashlib.sha256(job.encode()).hexdigest()
    return JournalEntry(
        ts=float(number), server=model, seq=number, method="POST", path="/", model=model, digest=digest,
        request_digest="", seen=0, answered="answer", status=200, response_id=f"{model}_{number}", metered=metered,
    )  # fmt: skip


def attempt(entry: JournalEntry) -> dict[str, Any]:
    assert entry.metered is not None
    usage = {name: getattr(entry.metered, name) for name in Metered.__slots__}
    cost = RATES[entry.model].cost(entry.metered)
    return {"step": "attempt", "model": entry.model, "response_id": entry.response_id, "usage": usage,
            "cost_picousd": cost, "failure": None}  # fmt: skip


def result(job: str, number: int, origin: Place, steps: list[dict[str, Any]], answer: str = "billing") -> Seen:
    came_from = f"c/{origin.topic}/{origin.partition}/{origin.offset}"
    body = {
        "schema": "sluiceway.result/1", "outcome_id": outcome_id(job, 0), "job_id": job, "round": 0, "task": "t",
        "status": "answered", "answer": {"label": answer}, "cost_picousd": sum(step["cost_picousd"] for step in steps),
        "trail": {"origin": came_from, "steps": [{"step": "routed"}, *steps]},
    }  # fmt: skip
    return Seen("results", 0, number, job.encode(), json.dumps(body).encode(), (), 0)


def dead_letter(number: int, origin: Place, value: bytes) -> Seen:
    headers = [("__dlq.errors.topic", origin.topic), ("__dlq.errors.partition", str(origin.partition)),
               ("__dlq.errors.offset", str(origin.offset)), ("sluiceway.reason", "undecodable")]  # fmt: skip
    return Seen("dead-letters", 0, number, None, value, tuple((key, text.encode()) for key, text in headers), 0)


@dataclass
class Run:
    """Evidence of a run of 40 jobs on two partitions, each third escalated, and one undecodable record."""

    published: list[Published] = field(default_factory=list)
    records: list[Seen] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(40):
            job, place = f"job-{number}", Place("jobs", number % 2, number // 2)
            self.published.append(Published(job, place, "confidential" if number == 3 else "internal"))
            calls = [call(number, model, job) for model in (("cheap", "frontier") if number % 3 == 0 else ("cheap",))]
            self.entries += calls
            self.records.append(result(job, number, place, [attempt(entry) for entry in calls]))
        broken = Place("jobs", 0, 20)
        self.published.append(Published(None, broken))
        self.records.append(dead_letter(0, broken, b"{cut"))
        self.samples.append(Sample(1.0, {("jobs", 0): 21, ("jobs", 1): 20}, settled(self.records)))

    @property
    def outcomes(self) -> list[Outcome]:
        return read_outcomes(self.records)

    def change(self, number: int, **fields: Any) -> None:
        """Alters fields of one result's body."""
        record = self.records[number]
        body = json.loads(record.value or b"") | fields
        self.records[number] = replace(record, value=json.dumps(body).encode())

    def report(self, **given: Any) -> laws.Report:
        return laws.check(
            self.published, self.outcomes, samples=self.samples, entries=self.entries, rates=RATES, **given
        )


def test_a_clean_run_holds_and_its_report_names_the_counts() -> None:
    report = Run().report(seed=7)
    assert report.holds, str(report)
    assert "seed 7: 41 jobs acked, 41 outcome records, 0 of them duplicates" in str(report)
    assert set(report.breaches) == {"L1 no loss", "L2 no invention", "L3 one outcome", "L4 no early commit", "L6 money"}


def duplicate(run: Run, answer: str) -> None:
    original = run.records[5]
    body = json.loads(original.value or b"") | {"answer": {"label": answer}}
    run.records.append(replace(original, offset=99, value=json.dumps(body).encode()))


def lose_behind_a_duplicate(run: Run) -> None:
    """As many records as jobs, and one job without any."""
    run.records[4] = replace(run.records[5], offset=99)


def forget_a_sample_entry(run: Run) -> None:
    sample = run.samples[0]
    run.samples[0] = replace(sample, settled=sample.settled - {Place("jobs", 1, 7)})


def call_of_two_jobs(run: Run) -> None:
    one, two = (json.loads(run.records[number].value or b"") for number in (1, 2))
    run.change(2, trail={**two["trail"], "steps": one["trail"]["steps"]}, cost_picousd=one["cost_picousd"])
    del run.entries[next(place for place, entry in enumerate(run.entries) if entry.response_id == "cheap_2")]


def other_tokens(run: Run) -> None:
    body = json.loads(run.records[1].value or b"")
    body["trail"]["steps"][1]["usage"]["output_text"] += 1
    run.change(1, trail=body["trail"])


def dearer(run: Run) -> None:
    body = json.loads(run.records[1].value or b"")
    body["trail"]["steps"][1]["cost_picousd"] += 1
    run.change(1, trail=body["trail"], cost_picousd=body["cost_picousd"] + 1)


SPOILED: dict[str, tuple[Callable[[Run], Any], str, str]] = {
    "one result removed": (lambda run: run.records.pop(4), "L1", "1 jobs lost: job-4"),
    "a loss hidden by a duplicate": (lose_behind_a_duplicate, "L1", "1 jobs lost: job-4"),
    "the dead letter removed": (lambda run: run.records.pop(), "L1", "1 jobs lost: Place"),
    "a result of no job": (lambda run: run.published.pop(4), "L2", "1 outcomes without an input"),
    "a dead letter of no record": (lambda run: run.published.pop(), "L2", "1 outcomes without an input"),
    "an answer altered in a duplicate": (lambda run: duplicate(run, "login"), "L3", "1 duplicates differ"),
    "a duplicate nobody allowed": (lambda run: duplicate(run, "billing"), "L3", "1 duplicate records, 0 allowed"),
    "an outcome id of its own": (lambda run: run.change(3, outcome_id="0" * 32), "L3", "1 outcomes whose id"),
    "one early commit": (forget_a_sample_entry, "L4", "1 committed but not settled"),
    "one call missing from the ledger": (lambda run: run.change(1, trail={"origin": "c/jobs/1/0", "steps": []},
                                                                cost_picousd=0), "L6", "1 billed calls in no trail"),
    "one call missing from the journal": (lambda run: run.entries.pop(1), "L6", "1 attempts that no fake has answered"),
    "one call in two trails": (call_of_two_jobs, "L6", "1 calls in the trails of two jobs"),
    "a pico-dollar too much": (dearer, "L6", "1 costs that are not"),
    "a sum that is none": (lambda run: run.change(1, cost_picousd=1), "L6", "not the sum of its attempts"),
    "a token miscounted": (other_tokens, "L6", "tokens differ from the meter"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_run_spoiled_in_one_way_fails_by_that_law(name: str) -> None:
    spoil, law, words = SPOILED[name]
    run = Run()
    spoil(run)
    report = run.report()
    assert not report.holds
    breaches = next(found for key, found in report.breaches.items() if key.startswith(law))
    assert any(words in breach for breach in breaches), str(report)


@given(st.integers(0, 2**32))
def test_any_job_removed_is_named(seed: int) -> None:
    run, dice = Run(), random.Random(seed)
    gone = dice.sample(range(40), dice.randrange(1, 5))
    run.records = [record for number, record in enumerate(run.records) if number not in gone]
    (breach,) = laws.no_loss(run.published, run.outcomes)
    assert breach.startswith(f"{len(gone)} jobs lost: ")
    assert all(f"job-{number}" in breach for number in gone)


def test_kills_allow_as_many_duplicates_as_were_in_flight_and_not_one_more() -> None:
    run = Run()
    for _ in range(3):
        duplicate(run, "billing")
    allowed = Disturbance(kills=1, in_flight=2, per_commit=1)
    assert run.report(disturbance=allowed, lost_allowed=0).holds
    assert not run.report(disturbance=replace(allowed, per_commit=0), lost_allowed=0).holds


def test_two_percent_of_duplicates_is_too_many_whatever_was_allowed() -> None:
    outcomes = [
        Outcome("result", Place("r", 0, n), None, f"j{n % 1000}", 0, outcome_id(f"j{n % 1000}", 0)) for n in range(1020)
    ]
    put_through = Disturbance(kills=9, in_flight=100)
    assert laws.one_outcome(outcomes[:1019], put_through, jobs=1000) == []
    assert laws.one_outcome(outcomes, put_through, jobs=1000) == ["20 duplicate records of 1000 jobs, 2% or more"]


def test_a_job_published_twice_may_have_two_records_that_agree() -> None:
    run = Run()
    run.published.append(Published("job-5", Place("jobs", 1, 30)))
    duplicate(run, "billing")
    assert run.report().holds, str(run.report())


def test_lost_calls_pass_up_to_what_was_in_flight() -> None:
    run = Run()
    run.entries += [call(900, "cheap", "job-1"), call(901, "cheap", "job-2")]
    assert run.report(lost_allowed=2).holds
    assert not run.report(lost_allowed=1).holds
    assert run.report(lost={"cheap_900", "cheap_901"}, lost_allowed=2).holds
    assert not run.report(lost={"cheap_900"}, lost_allowed=1).holds


def test_calls_of_jobs_that_wait_in_escalations_are_accounted() -> None:
    run = Run()
    waiting = [run.outcomes[0]]
    del run.records[0]
    report = laws.money(run.outcomes, run.entries, RATES, waiting=waiting)
    assert report == []
    assert laws.money(run.outcomes, run.entries, RATES) != []


def paid_dead_letter(number: int, entries: list[JournalEntry], told: int, total: int | None = None) -> Seen:
    """A dead letter whose header holds the first `told` of the calls, and their whole cost beside it."""
    kept = [[step["model"], "escalate", step["cost_picousd"], step["response_id"]] for step in map(attempt, entries)]
    cost = sum(step[2] for step in kept) if total is None else total
    letter = dead_letter(number, Place("jobs", 1, number), b"too large")
    facts = (("sluiceway.trail", json.dumps(kept[:told]).encode()), ("sluiceway.cost_picousd", str(cost).encode()))
    return replace(letter, headers=(*letter.headers, *facts))


def test_a_dead_letters_calls_are_accounted_one_by_one_or_by_their_sum() -> None:
    run, entries = Run(), [call(900, "cheap", "job-1"), call(901, "frontier", "job-1")]
    run.entries += entries
    for told in (2, 1, 0):
        letter = read_outcomes([paid_dead_letter(900, entries, told)])
        assert laws.money([*run.outcomes, *letter], run.entries, RATES) == []


def test_a_dead_letter_that_hides_a_cost_or_invents_one_is_named() -> None:
    run, entries = Run(), [call(900, "cheap", "job-1"), call(901, "frontier", "job-1")]
    run.entries += entries
    cost = attempt(entries[0])["cost_picousd"]
    (hidden,) = laws.money(
        [*run.outcomes, *read_outcomes([paid_dead_letter(900, entries, 1, cost)])], run.entries, RATES
    )
    assert "1 billed calls in no trail: frontier_901" in hidden
    wrong = laws.money([*run.outcomes, *read_outcomes([paid_dead_letter(900, entries, 2, cost)])], run.entries, RATES)
    assert "its cost is not the sum of its attempts" in wrong[0]
    invented = [*entries, call(902, "cheap", "job-1")]
    (unseen,) = laws.money([*run.outcomes, *read_outcomes([paid_dead_letter(900, invented, 3)])], run.entries, RATES)
    assert unseen == "1 attempts that no fake has answered: cheap_902"


def test_an_internal_records_dead_letter_keeps_its_trail_and_nobody_elses_is_believed() -> None:
    run, entry = Run(), call(900, "cheap", "job-1")
    run.entries.append(entry)
    body = json.dumps({"trail": {"steps": [attempt(entry)]}}).encode()
    for topic, holds in (("sluiceway.retries-jobs-60000", True), ("sluiceway.escalations", True), ("jobs", False)):
        letter = read_outcomes([dead_letter(900, Place(topic, 0, 1), body)])
        assert (laws.money([*run.outcomes, *letter], run.entries, RATES) == []) is holds


def test_a_request_below_its_jobs_clearance_is_named_and_an_unknown_one_too() -> None:
    run = Run()
    clearance = {hashlib.sha256((job.job_id or "").encode()).hexdigest(): job.clearance for job in run.published}
    cleared = {"cheap": "internal", "frontier": "restricted"}

    def of(entry: JournalEntry) -> str | None:
        return clearance.get(entry.digest)

    assert laws.within_clearance(run.entries, of, {"cheap": "confidential", "frontier": "restricted"}) == []
    (breach,) = laws.within_clearance(run.entries, of, cleared)
    assert breach == "1 requests below clearance: cheap#3 (confidential to cheap)"
    (breach,) = laws.within_clearance([call(1, "cheap", "nobody's")], of, cleared)
    assert breach.startswith("1 requests of no known job")


def test_amplification_counts_from_the_planned_calls() -> None:
    assert laws.amplification(120, 100) == []
    assert laws.amplification(121, 100) != []
    assert laws.amplification(130, 100, redo=10) == []


def test_a_partition_behind_or_idle_is_named() -> None:
    def looks(*offsets: int) -> list[Lag]:
        return [Lag(float(at), ("jobs", 0), offset, 10) for at, offset in enumerate(offsets)]

    assert laws.progress(looks(0, 5, 10, 10, 10, 10, 10), idle_within=2) == []
    assert "behind" in laws.progress(looks(0, 5, 9), idle_within=2)[0]
    assert "idle" in laws.progress(looks(0, 5, 5, 5, 5, 10), idle_within=2)[0]


@pytest.mark.parametrize("disguise", [b"sk-canary/1", b"sk-canary%2F1", b"c2stY2FuYXJ5LzE"])
def test_a_canary_is_found_in_its_usual_disguises(disguise: bytes) -> None:
    assert laws.silence(["sk-canary/1"], {"log": b"all quiet", "metrics": b""}) == []
    (breach,) = laws.silence(["sk-canary/1"], {"log": b"key=" + disguise + b";", "metrics": b""})
    assert "log" in breach
    assert "sk-canary/1" not in breach


def test_rates_are_whole_pico_dollars_a_token() -> None:
    assert RATES["cheap"] == Rates(150_000, 3_000, 150_000, 600_000)
    assert RATES["cheap"].cost(Metered(10, 20, 0, 0, 3, 1)) == 1_500_000 + 60_000 + 4 * 600_000


def test_a_record_that_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no outcome"):
        read_outcomes([Seen("results", 0, 0, None, b'{"schema": "sluiceway.job/1"}', (), 0)])
