"""Many worlds, over the machine's cores, with or without a planted defect, and what they came to together."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tests.sim.faults import FAULTS
from tests.sim.plants import PLANTS
from tests.sim.told import Told
from tests.sim.world import run_world

_CHUNK = 5
FULL = 5000  # worlds of a full run
LEAST = 100  # how often each fault and transition happens in it


@dataclass(slots=True)
class Tally:
    """`failed` are the worlds whose laws broke; `seconds` is wall time, `cpu` that of all processes."""

    worlds: int = 0
    jobs: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[Told] = field(default_factory=list)
    digests: list[tuple[int, str]] = field(default_factory=list)

    def add(self, told: Told) -> None:
        self.worlds += 1
        self.jobs += told.jobs
        self.cpu += told.cpu
        self.counts.update(told.counts)
        self.digests.append((told.seed, told.digest))
        if not told.holds:
            self.failed.append(told)

    def rare(self) -> dict[str, int]:
        """What should happen in a full run and did so fewer than `LEAST` times."""
        return {kind: self.counts[kind] for kind in EXPECTED if self.counts[kind] < LEAST}

    @property
    def digest(self) -> str:
        """Equal for two runs of the same code and seeds, however many processes ran them."""
        lines = "\n".join(f"{seed} {digest}" for seed, digest in sorted(self.digests))
        return hashlib.blake2b(lines.encode(), digest_size=12).hexdigest()

    def facts(self) -> dict[str, Any]:
        """The same as the table, for programs."""
        return {
            "worlds": self.worlds,
            "jobs": self.jobs,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu, 1),
            "digest": self.digest,
            "counts": {kind: self.counts[kind] for kind in sorted({*EXPECTED, *self.counts})},
            "failed": {str(told.seed): told.breaches for told in self.failed},
            "not_simulated": list(UNSIMULATED),
        }

    def table(self) -> str:
        kinds = sorted({*EXPECTED, *self.counts})
        width = max(map(len, kinds))
        rows = [f"  {kind:<{width}} {self.counts[kind]:>9,}" for kind in kinds]
        rate = self.worlds / max(self.seconds, 1e-9) * 60
        rows.append(
            f"{self.worlds:,} worlds, {self.jobs:,} jobs in {self.seconds:.0f} s: {rate:,.0f} worlds a minute,"
            f" {self.cpu / max(1, self.worlds):.2f} CPU seconds each; {len(self.failed)} broke a law;"
            f" digest {self.digest}"
        )
        return "\n".join(rows)


EXPECTED = (
    *(f"fault_{name}" for name in FAULTS),
    *("kill", "thawed", "left", "rebalance", "thrown_out", "started", "stopped_clean", "stopped_unclean"),
    *("commit_ok", "commit_error", "commit_answer_lost", "commit_unknown_member", "commit_metadata_too_large"),
    *("produce_error", "produce_ack_lost", "produce_timeout", "produce_out_of_step"),
    *("fetch_error", "offsets_error", "offsets_loading", "fetched_again", "gap", "marker", "published_twice"),
    *("model_answered", "model_uncertain", "model_malformed", "model_declined", "model_fail", "model_overloaded"),
    *("model_hang", "model_slow", "model_invalid"),
    *("job_poison", "job_silence", "job_big", "job_undecodable", "job_unknown_task", "job_too_large", "job_tombstone"),
    *("dead_letter", "notice_revoked", "notice_assigned", "notice_commit_retried", "notice_commit_metadata_refused"),
    *("notice_publish_retried", "notice_producer_replaced", "notice_fetch_retried", "notice_offsets_unread"),
    *("pause_jobs", "pause_bytes", "pause_span", "pause_map", "pause_drain", "pause_held"),
    *("notice_flood", "hold_inherited", "hold_resumed", "call_lost", "job_left", "job_returned"),
    *("job_crash", "crash", "dead_crashes"),
)
"""Faults and transitions that a full run must have seen."""


UNSIMULATED = (
    "aiokafka and Faust themselves: their parts are replaced by ours below Group, FetchLoop, Committer and Publisher;"
    " contract and integration tests run the real ones",
    "a machine's death: files lose nothing that was written (SQLite's own recovery is trusted)",
    "votes, local classifiers and language rules: every world has the gate label_logprob; unit and property tests",
    "several endpoints of one model, sharing of equal calls, limits by headers: unit tests of permits and pool",
    "money and day budgets that run out: property tests of the cascade",
    "the control topic under holds (a group's memory of them is one dict here), shared day budgets, the watchdog and a"
    " loop that hangs: contract and integration tests",
    "more than one cluster, topic or policy in a world; a policy's reload",
    "transactions of foreign producers beyond their markers; compaction beyond holes in the offsets",
    "a clock that stays wrong: healed worlds have the right time again. One that is behind for good makes a retry topic"
    " slow (each record then waits its whole delay from when it was taken, ten at a time)",
    "threads: texts of more than 50,000 characters are read in one",
    "records whose header names aiokafka can't read: contract tests",
    "retention that passes a group (offset_expired) and topics that vanish: integration tests",
    "SIGTERM twice, --limit and --max-cost, static members and their twins: integration tests",
)
"""What no world shows, and what does."""


def run(seeds: Iterable[int], *, plant: str | None = None, processes: int | None = None) -> Tally:
    """Runs a world for each seed."""
    begin = time.perf_counter()
    tally = Tally()
    for told in _each(list(seeds), plant, processes):
        tally.add(told)
    tally.seconds = time.perf_counter() - begin
    return tally


def caught(plants: Sequence[str], seeds: Sequence[int], processes: int | None = None) -> dict[str, Told | None]:
    """For each defect the first world of the seeds in which it breaks a law."""
    tasks = [(plant, tuple(seeds)) for plant in plants]
    with _pool(processes) as pool:
        return dict(pool.imap_unordered(_first, tasks, chunksize=1))


def _first(task: tuple[str, tuple[int, ...]]) -> tuple[str, Told | None]:
    plant, seeds = task
    with PLANTS[plant]():
        found = next((told for seed in seeds if not (told := run_world(seed)).holds), None)
    gc.collect()
    return plant, found


def _pool(processes: int | None) -> Any:
    # Spawned, not forked: pytest and its plugins may have threads.
    return multiprocessing.get_context("spawn").Pool(processes or os.cpu_count() or 1, gc.freeze)


def _one(task: tuple[int, str | None]) -> Told:
    seed, plant = task
    with PLANTS[plant]() if plant else nullcontext():
        told = run_world(seed)
    if seed % 10 == 0:
        gc.collect()
    return told


def _each(seeds: list[int], plant: str | None, processes: int | None) -> Iterator[Told]:
    tasks = [(seed, plant) for seed in seeds]
    if processes == 1 or len(tasks) <= _CHUNK:
        yield from map(_one, tasks)
        return
    with _pool(processes) as pool:
        yield from pool.imap_unordered(_one, tasks, chunksize=_CHUNK)
