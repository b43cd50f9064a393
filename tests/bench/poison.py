"""One poison job in 1,000, and what its neighbours notice: `python -m tests.bench.poison [--json] [--only KIND]`.

A real worker of both roles on Apache Kafka, models in processes of their own that take 50 ms; jobs come at a steady
pace. Each pair is a run without poison and one with it, in turn. A latency is from the job's arrival in its topic to
its outcome's; p99 is that of the others, the poison's own left out.

    undecodable   bytes that are no JSON
    malformed     every model's every answer to it is broken
    silent        no model ever answers it
    large         900 kB

Example: python -m tests.bench.poison --only large --rounds 1 --jobs 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson

from tests.bench._flow import STAMPED, Due, percentile, publish_when_due
from tests.bench._race import conditions
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.fake_scripts import FakeRequest
from tests.support.outgoing import DEAD_LETTERS, JOBS, RESULTS, REVIEWS
from tests.support.rig import Rig, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import Address

PARTITIONS = 4
MOST = 1.2
EVERY = 1000
SHARE = 0.0005  # of texts that the fakes' scripts strike: ours are chosen by it, and no other
SCRIPT = f"labels delay=0.05 | malformed share={SHARE} | hang share={SHARE}"
LARGE = 899_000  # bytes of the record


def _struck(purpose: str, text: str) -> bool:
    """Whether the script strikes this text: the fakes decide by a hash of it."""
    return FakeRequest(0, "openai", "", "", "", text).share(purpose) < SHARE


def _chosen(purpose: str, number: int) -> str:
    """A text that the script strikes."""
    found = (f"{purpose} {number}.{attempt}" for attempt in range(1_000_000))
    return next(text for text in found if _struck(purpose, text))


HANGS, BREAKS = "fault hang 200", "malformed"
KINDS: dict[str, Callable[[int], bytes]] = {
    "undecodable": lambda number: b'{"id": "poison-%d", "task": "ticket-tri\xff' % number,
    "malformed": lambda number: _job(f"poison-{number}", _chosen(BREAKS, number)),
    "silent": lambda number: _job(f"poison-{number}", _chosen(HANGS, number)),
    "large": lambda number: _job(f"poison-{number}", ("large text, not twice the same: " * LARGE)[: LARGE - 80]),
}


def _job(name: str, text: str) -> bytes:
    return orjson.dumps({"id": name, "task": "ticket-triage", "input": text})


class Bench:
    """A running worker that runs are made on, one after another."""

    def __init__(self, rig: Rig, texts: list[str], jobs: int, rate: float) -> None:
        self.rig, self.texts, self.jobs, self.rate = rig, texts, jobs, rate
        self._published = self._run = 0

    async def p99(self, kind: str | None) -> float:
        """Milliseconds; of a run with poison of `kind`, or without any. Returns when every job has its outcome."""
        self._run += 1
        due = []
        for number in range(self.jobs):
            poison = kind is not None and number % EVERY == EVERY // 2
            name = f"{'poison' if poison else 'job'}-{self._run}-{number}"
            text = self.texts[number % len(self.texts)]
            value = KINDS[kind](self._run * self.jobs + number) if kind and poison else _job(name, text)
            due.append(Due(number / self.rate, name, value))
        appended = await publish_when_due(self.rig.bootstrap, JOBS, due)
        self._published += len(due)
        await self.rig.until(
            lambda out: sum(len(out[topic]) for topic in (RESULTS, REVIEWS, DEAD_LETTERS)) >= self._published,
            within=120 + self.jobs / 10,
        )
        spans = []
        for record, tree in zip(self.rig.out[RESULTS], self.rig.out.bodies(RESULTS), strict=True):
            name = tree["job_id"]
            if name in appended and not name.startswith("poison"):
                spans.append(float(record.timestamp - appended[name]))
        expected = sum(name.startswith("job") for name in appended)
        counts = {topic: len(self.rig.out[topic]) for topic in (RESULTS, REVIEWS, DEAD_LETTERS)}
        assert len(spans) >= expected, f"{len(spans)} results of {expected} healthy jobs; all outcomes so far: {counts}"
        return percentile(spans, 0.99)


async def compare(kinds: list[str], rounds: int, jobs: int, rate: float, folder: Path) -> dict[str, Any]:
    pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    async with AsyncExitStack() as stack:
        kafka = await asyncio.to_thread(ApacheKafka(folder / "kafka", peak=True).start)
        stack.push_async_callback(asyncio.to_thread, kafka.stop)
        rig = Rig(Address(kafka.bootstrap, "apache"), folder)
        stack.push_async_callback(rig.close)
        cheap = stack.enter_context(FakeProcess(folder / "cheap.jsonl", SCRIPT, name="cheap"))
        frontier = stack.enter_context(FakeProcess(folder / "frontier.jsonl", SCRIPT, name="frontier"))
        stamped = {topic: {"config": STAMPED} for topic in (JOBS, RESULTS)}
        served = models(cheap.url, frontier.url, cheap={"timeout": "2s"}, frontier={"timeout": "2s"})
        await rig.open(served, {"ticket-triage": triage(deadline="8s")}, partitions=PARTITIONS, overrides=stamped)
        await rig.ready(rig.worker(environment={"SLUICEWAY_STATE_DIR": str(folder / "state")}))
        texts = [text for text in bank_tickets(5000) if not _struck(HANGS, text) and not _struck(BREAKS, text)]
        bench = Bench(rig, texts, jobs, rate)
        await bench.p99(None)  # connections are open, caches filled
        for number in range(rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                without = await bench.p99(None) if number % 2 == 0 else None
                poisoned = await bench.p99(kind)
                without = await bench.p99(None) if without is None else without
                pairs[kind].append((without, poisoned))
                print(f"round {number + 1}: {kind} {without:.0f} ms without, {poisoned:.0f} ms with", file=sys.stderr)
    rows = {
        kind: {
            "p99_without_ms": statistics.median(without for without, _ in each),
            "p99_with_ms": statistics.median(poisoned for _, poisoned in each),
            "ratio": (ratio := statistics.median(poisoned / max(1.0, without) for without, poisoned in each)),
            "held": ratio <= MOST,
        }
        for kind, each in pairs.items()
    }
    return {"kinds": rows, "most": MOST, "rounds": rounds, "jobs": jobs, "rate": rate}


def show(found: dict[str, Any]) -> None:
    before = found["conditions"]
    print(
        f"\none poison in {EVERY:,}, {found['jobs']:,} jobs a run at {found['rate']:g}/s, medians of {found['rounds']}"
        f" pairs; {before['cores']} cores, load {before['load']}"
    )
    print(f"  {'':13}{'p99 without':>13}{'p99 with':>11}{'ratio':>8}   at most {found['most']:g}")
    for kind, each in found["kinds"].items():
        held = "held" if each["held"] else "NOT held"
        print(
            f"  {kind:13}{each['p99_without_ms']:>10.0f} ms{each['p99_with_ms']:>8.0f} ms{each['ratio']:>8.2f}   {held}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=list(KINDS), action="append")
    parser.add_argument("--rounds", type=int, default=5, help="pairs for each kind")
    parser.add_argument("--jobs", type=int, default=3000, help="of a run")
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        kinds = given.only or list(KINDS)
        found = asyncio.run(compare(kinds, given.rounds, given.jobs, given.rate, Path(folder)))
    found["conditions"] = before
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if all(each["held"] for each in found["kinds"].values()) else 1)


if __name__ == "__main__":
    main()
