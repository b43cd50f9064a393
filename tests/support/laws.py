"""The laws of a fault run, as pure functions over evidence. Each returns its breaches in words; none means it holds.

They compare ids, never counts: a duplicate can hide a loss. `check` runs those the evidence suffices for and gives a
`Report`, whose text is what a run prints. tests/contract/test_support_laws.py shows that each law fails when it should.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.support.evidence import Disturbance, Lag, Outcome, Place, Published, Sample, outcome_id
from tests.support.fake_journal import JournalEntry, Metered

SHOWN = 5  # breaches of one kind that are spelled out
CLEARANCES = ("public", "internal", "confidential", "restricted")


@dataclass(frozen=True, slots=True)
class Rates:
    """Whole pico-dollars a token. A price of 0.15 USD a million tokens is 150,000 of them."""

    uncached: int
    cache_read: int
    cache_write: int
    output: int

    @classmethod
    def of(
        cls, input_mtok: float, cache_read_mtok: float, output_mtok: float, cache_write_mtok: float | None = None
    ) -> Rates:
        """From USD a million tokens; without a price of its own a cache write costs plain input."""
        write = input_mtok if cache_write_mtok is None else cache_write_mtok
        return cls(*(round(price * 1_000_000) for price in (input_mtok, cache_read_mtok, write, output_mtok)))

    def cost(self, metered: Metered) -> int:
        written = metered.input_cache_write_5m + metered.input_cache_write_1h
        return (
            metered.input_uncached * self.uncached
            + metered.input_cache_read * self.cache_read
            + written * self.cache_write
            + metered.output * self.output
        )


def _some(what: str, found: Iterable[object]) -> list[str]:
    """One line for a kind of breach: how many, and the first few."""
    listed = sorted(map(str, found))
    return [f"{len(listed)} {what}: {', '.join(listed[:SHOWN])}{', ...' * (len(listed) > SHOWN)}"] if listed else []


def lost_jobs(published: Iterable[Published], outcomes: Iterable[Outcome]) -> list[Published]:
    """The acked jobs without an outcome: by its id, or, for what has no readable id, by its place."""
    known = list(outcomes)
    ids = {outcome.job_id for outcome in known if outcome.job_id is not None}
    places = {outcome.origin for outcome in known}
    return [job for job in published if job.job_id not in ids and job.place not in places]


def no_loss(published: Iterable[Published], outcomes: Iterable[Outcome]) -> list[str]:
    """L1. Every acked job has an outcome."""
    return _some("jobs lost", [job.job_id or job.place for job in lost_jobs(published, outcomes)])


def no_invention(
    published: Iterable[Published], outcomes: Iterable[Outcome], unacked: Collection[str] = ()
) -> list[str]:
    """L2. Every outcome has an input. A job sent but never acked may have one too."""
    jobs = list(published)
    ids = {job.job_id for job in jobs} | set(unacked)
    places = {job.place for job in jobs}
    invented = [
        outcome.place
        for outcome in outcomes
        if (outcome.job_id not in ids if outcome.job_id is not None else outcome.origin not in places)
    ]
    return _some("outcomes without an input", invented)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Records beyond the first of a round of a job, and how many of them differ from it in answer or kind."""

    raw: int
    differing: int


def _rounds(outcomes: Iterable[Outcome]) -> dict[object, list[Outcome]]:
    rounds: dict[object, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rounds[outcome.origin if outcome.job_id is None else (outcome.job_id, outcome.round)].append(outcome)
    return rounds


def count_duplicates(outcomes: Iterable[Outcome]) -> Duplicates:
    raw = differing = 0
    for same in _rounds(outcomes).values():
        raw += len(same) - 1
        differing += sum((other.kind, other.answer) != (same[0].kind, same[0].answer) for other in same[1:])
    return Duplicates(raw, differing)


def one_outcome(
    outcomes: Iterable[Outcome],
    disturbance: Disturbance,
    *,
    jobs: int,
    published_again: int = 0,
    may_differ: int = 0,
) -> list[str]:
    """L3. One outcome id a round of a job, the promised one; duplicates agree, and are few.

    `published_again`: publishes beyond the first of a job id. Duplicates that differ are breaches beyond `may_differ`
    (a run whose models answer differently the second time allows some); they are counted either way.
    """
    known = list(outcomes)
    wrong = [
        outcome.place
        for outcome in known
        if outcome.job_id is not None and outcome.outcome_id != outcome_id(outcome.job_id, outcome.round)
    ]
    duplicates = count_duplicates(known)
    breaches = _some("outcomes whose id is not that of their job and round", wrong)
    if duplicates.differing > may_differ:
        breaches.append(f"{duplicates.differing} duplicates differ from the first record, {may_differ} may")
    redone = duplicates.raw - published_again
    if redone > disturbance.redo:
        breaches.append(f"{redone} duplicate records, {disturbance.redo} allowed by what the run was put through")
    # Below a thousand jobs one kill's allowance is more than 2%, and the share says nothing.
    if jobs >= 1000 and redone >= 0.02 * jobs:
        breaches.append(f"{redone} duplicate records of {jobs} jobs, 2% or more")
    return breaches


def no_early_commit(
    published: Iterable[Published], samples: Iterable[Sample], skipped: Collection[Place] = ()
) -> list[str]:
    """L4. At every sample nothing below the committed offset was unsettled. `skipped`: tombstones."""
    by_partition: dict[tuple[str, int], list[int]] = defaultdict(list)
    for job in published:
        by_partition[job.place.topic, job.place.partition].append(job.place.offset)
    breaches = []
    for sample in samples:
        early = [
            place
            for partition, committed in sample.committed.items()
            for offset in by_partition.get(partition, ())
            if offset < committed
            and (place := Place(*partition, offset)) not in sample.settled
            and place not in skipped
        ]
        breaches += [f"at {sample.at:.3f}: {breach}" for breach in _some("committed but not settled", early)]
    return breaches


def within_clearance(
    entries: Iterable[JournalEntry],
    clearance_of: Callable[[JournalEntry], str | None],
    models: Mapping[str, str],
) -> list[str]:
    """L5. No request reached a model below its job's clearance; `models` gives each wire name's.

    `clearance_of` knows a request's job; None for a request of no known job is itself a breach, so that the law cannot
    hold because nothing was recognised.
    """
    unknown, low = [], []
    for entry in entries:
        wanted = clearance_of(entry)
        if wanted is None or entry.model not in models:
            unknown.append(f"{entry.server}#{entry.seq}")
        elif CLEARANCES.index(wanted) > CLEARANCES.index(models[entry.model]):
            low.append(f"{entry.server}#{entry.seq} ({wanted} to {entry.model})")
    return _some("requests of no known job or model", unknown) + _some("requests below clearance", low)


def money(
    outcomes: Iterable[Outcome],
    entries: Iterable[JournalEntry],
    rates: Mapping[str, Rates],
    *,
    waiting: Iterable[Outcome] = (),
    lost: Collection[str] = (),
    lost_allowed: int = 0,
) -> list[str]:
    """L6. Ledger = metered tokens x price, and each billed call stands in exactly one trail or among the lost.

    `rates` by wire name; `waiting` are trails not yet at their end (escalations, retries); `lost` is the worker's own
    list of response ids that no trail holds. Without such a list unaccounted calls up to `lost_allowed` (what was in
    flight at kills and timeouts) pass. A dead letter tells of its calls in headers: of as many as these may hold, and
    of what all of them cost.
    """
    known = list(outcomes)
    # A call of a model without a price here is another one's business (a local classifier).
    billed = {
        entry.response_id: (rates[entry.model], entry.metered)
        for entry in entries
        if entry.metered is not None and entry.model in rates
    }
    owners: dict[str, set[object]] = defaultdict(set)
    wrong, unseen = [], []
    untold = 0  # pico-dollars of attempts that did not fit a dead letter's header
    for outcome in (*known, *waiting):
        rest = outcome.cost_picousd - sum(attempt.cost_picousd for attempt in outcome.tries)
        if rest and (rest < 0 or outcome.kind != "dead_letter"):
            wrong.append(f"{outcome.place} (its cost is not the sum of its attempts)")
        untold += rest
        for attempt in outcome.tries:
            if not attempt.response_id:
                continue
            # A dead letter does not say whose it is: what was escalated first is told of twice.
            owners[attempt.response_id] |= {(outcome.job_id, outcome.round)} if outcome.kind != "dead_letter" else set()
            if attempt.response_id not in billed:
                unseen.append(attempt.response_id)
                continue
            rate, metered = billed[attempt.response_id]
            if attempt.usage is not None and attempt.usage != metered:
                wrong.append(f"{attempt.response_id} (tokens differ from the meter)")
            elif attempt.cost_picousd != rate.cost(metered):
                wrong.append(f"{attempt.response_id} ({attempt.cost_picousd}, metered {rate.cost(metered)})")
    shared = [response for response, jobs in owners.items() if len(jobs) > 1]
    unaccounted = [response for response in billed if response not in owners and response not in lost]
    if untold and untold == sum(billed[response][0].cost(billed[response][1]) for response in unaccounted):
        unaccounted = []
    breaches = (
        _some("costs that are not metered tokens x price", wrong)
        + _some("attempts that no fake has answered", unseen)
        + _some("calls in the trails of two jobs", shared)
    )
    if len(unaccounted) + len(lost) > lost_allowed:
        breaches += _some("billed calls in no trail" if unaccounted else "calls lost", unaccounted or lost)
        breaches[-1] += f"; {len(lost)} listed as lost, {lost_allowed} allowed"
    return breaches


def amplification(calls: int, planned: int, redo: int = 0) -> list[str]:
    """L7. Calls <= planned + the retry budget of 20% + the redo allowance of L3."""
    allowed = planned + planned // 5 + redo
    return [f"{calls} calls for {planned} planned; {allowed} allowed"] if calls > allowed else []


def progress(lags: Sequence[Lag], idle_within: float) -> list[str]:
    """L8. The last look finds no lag, and no partition with lag stood still longer than `idle_within` seconds."""
    by_partition: dict[tuple[str, int], list[Lag]] = defaultdict(list)
    for lag in lags:
        by_partition[lag.partition].append(lag)
    behind, idle = [], []
    for partition, looks in by_partition.items():
        if looks[-1].committed < looks[-1].end:
            behind.append(f"{partition} at {looks[-1].committed} of {looks[-1].end}")
        moved = looks[0].at
        longest = 0.0
        for before, look in pairwise(looks):
            if look.committed != before.committed or before.committed >= before.end:
                moved = look.at
            longest = max(longest, look.at - moved)
        if longest > idle_within:
            idle.append(f"{partition} for {longest:.1f} s")
    return _some("partitions behind at the end", behind) + _some(f"partitions idle beyond {idle_within} s", idle)


def silence(canaries: Iterable[str], said: Mapping[str, bytes]) -> list[str]:
    """L9. No canary stands in anything that was said (logs, metrics, traces, headers), in no usual disguise."""
    breaches = []
    for canary in canaries:
        raw = canary.encode()
        disguises = {
            raw,
            json.dumps(canary)[1:-1].encode(),
            urllib.parse.quote(canary, safe="").encode(),
            base64.b64encode(raw).rstrip(b"="),
            raw[::-1],
        }
        found = [name for name, text in said.items() if any(disguise in text for disguise in disguises)]
        breaches += _some(f"places that say {canary[:6]}...", found)
    return breaches


@dataclass(slots=True)
class Report:
    """What a run came to: the breaches of each law checked, and the counts every run prints."""

    seed: int
    jobs: int
    outcomes: int
    duplicates: Duplicates
    disturbance: Disturbance
    calls: int
    worst_recovery: float | None = None
    breaches: dict[str, list[str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not any(self.breaches.values())

    def __str__(self) -> str:
        d = self.disturbance
        lines = [
            f"seed {self.seed}: {self.jobs} jobs acked, {self.outcomes} outcome records, {self.duplicates.raw} of them "
            f"duplicates ({self.duplicates.differing} differ), {d.kills} kills, {d.revokes} revokes",
            f"calls a job {self.calls / max(1, self.jobs):.3f}"
            + ("" if self.worst_recovery is None else f", worst recovery {self.worst_recovery:.1f} s"),
        ]
        for law, breaches in self.breaches.items():
            lines += [f"{law}: {'; '.join(breaches) if breaches else 'holds'}"]
        return "\n".join(lines)


def check(
    published: Sequence[Published],
    outcomes: Sequence[Outcome],
    *,
    seed: int = 0,
    disturbance: Disturbance | None = None,
    samples: Sequence[Sample] = (),
    entries: Sequence[JournalEntry] = (),
    rates: Mapping[str, Rates] | None = None,
    waiting: Sequence[Outcome] = (),
    lost: Collection[str] = (),
    lost_allowed: int | None = None,
    may_differ: int = 0,
    worst_recovery: float | None = None,
) -> Report:
    """L1 to L4, and L6 where rates are given. `print` the report, then assert that it `holds`."""
    put_through = disturbance or Disturbance()
    ids = Counter(job.job_id for job in published if job.job_id is not None)
    report = Report(
        seed, len(published), len(outcomes), count_duplicates(outcomes), put_through, len(entries), worst_recovery
    )
    report.breaches["L1 no loss"] = no_loss(published, outcomes)
    report.breaches["L2 no invention"] = no_invention(published, outcomes, put_through.unacked)
    report.breaches["L3 one outcome"] = one_outcome(
        outcomes,
        put_through,
        jobs=len(ids),
        published_again=sum(ids.values()) - len(ids),
        may_differ=may_differ,
    )
    if samples:
        report.breaches["L4 no early commit"] = no_early_commit(published, samples)
    if rates is not None:
        allowed = (
            put_through.kills * put_through.in_flight + put_through.timeouts if lost_allowed is None else lost_allowed
        )
        report.breaches["L6 money"] = money(outcomes, entries, rates, waiting=waiting, lost=lost, lost_allowed=allowed)
    return report
