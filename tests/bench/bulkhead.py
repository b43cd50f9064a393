"""What a hung model costs its neighbour: `python -m tests.bench.bulkhead [--json] [--rounds 5]`.

A real worker of both roles on Apache Kafka and two tasks, each with a model in a process of its own that takes 50 ms.
Jobs of both come at a steady pace. Each pair is a run in which both models answer and one in which the other task's
hangs (it never answers, sends a byte a second, or headers and then nothing), in turn. A latency is from the job's
arrival in its topic to its result's; p99 is that of the task whose model is well. Before the next run the sick model
answers again, and every job has its outcome. Exits 1 where the median of the ratios is over 1.2.

Example: python -m tests.bench.bulkhead --rounds 1 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.bench._flow import STAMPED, Due, percentile, publish_when_due
from tests.bench._race import conditions
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import JOBS, OUTCOMES, RESULTS, attempts
from tests.support.rig import CHEAP, CHEAP_PRICE, Rig, job, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import Address

PARTITIONS = 4
MOST = 1.2
WELL = "labels delay=0.05"
HANGS = f"{WELL} | any of=hang+slow+stall"
SICK = "sick-triage"
REVIVAL = 150.0  # seconds: the longest a job waits for a model that was out is its deadline


class Bench:
    """A running worker that runs are made on, one after another."""

    def __init__(
        self, rig: Rig, sick: FakeProcess, texts: list[str], seconds: float, rates: tuple[float, float]
    ) -> None:
        self.rig, self.sick, self.texts, self.seconds, self.rates = rig, sick, texts, seconds, rates
        self.hung = 0  # calls so far
        self._published = self._run = 0

    async def p99(self, *, hangs: bool) -> float:
        """Milliseconds, of the jobs whose model is well. Returns when every job has its outcome."""
        self._run += 1
        self.sick.say(HANGS if hangs else WELL)
        before = len(self.sick.entries())
        appended = await publish_when_due(self.rig.bootstrap, JOBS, sorted(self._jobs(), key=lambda due: due.at))
        self._published += len(appended)
        healthy = {name for name in appended if name.startswith("job-well")}
        await self.rig.until(lambda out: healthy <= out.ids(*OUTCOMES), within=60)
        self.hung += sum(not entry.answers for entry in self.sick.entries()[before:])
        await self._revived()
        spans = {
            tree["job_id"]: float(record.timestamp - appended[tree["job_id"]])
            for record, tree in zip(self.rig.out[RESULTS], self.rig.out.bodies(RESULTS), strict=True)
            if tree["job_id"] in healthy
        }
        assert len(spans) == len(healthy), f"{len(spans)} results of {len(healthy)} jobs whose model is well"
        return percentile(list(spans.values()), 0.99)

    def _jobs(self) -> list[Due]:
        jobs = []
        for kind, task, rate in zip(("well", "sick"), ("ticket-triage", SICK), self.rates, strict=True):
            for number in range(round(rate * self.seconds)):
                text = f"{self.texts[number % len(self.texts)]} ({kind} {self._run}.{number})"
                _, value, _ = job(f"{kind}-{self._run}-{number}", text, task)
                assert value is not None
                jobs.append(Due(number / rate, f"job-{kind}-{self._run}-{number}", value))
        return jobs

    async def _revived(self) -> None:
        """Returns when the sick model is called again and every job has its outcome."""
        self.sick.say(WELL)
        while True:
            await self.rig.until(
                lambda out: sum(map(len, map(out.__getitem__, OUTCOMES))) >= self._published, within=REVIVAL
            )
            last = f"job-probe-{self._published}"
            _, value, _ = job(f"probe-{self._published}", f"A probe, the {self._published}th.", SICK)
            assert value is not None
            await publish_when_due(self.rig.bootstrap, JOBS, [Due(0.0, last, value)])
            self._published += 1
            await self.rig.until(lambda out, last=last: last in out.ids(*OUTCOMES), within=REVIVAL)  # type: ignore[misc]
            found = next(tree for tree in self.rig.out.bodies(*OUTCOMES[:2]) if tree["job_id"] == last)
            if [step["model"] for step in attempts(found)] == ["sick"]:
                return


async def compare(rounds: int, seconds: float, rates: tuple[float, float], folder: Path) -> dict[str, Any]:
    pairs: list[tuple[float, float]] = []
    async with AsyncExitStack() as stack:
        kafka = await asyncio.to_thread(ApacheKafka(folder / "kafka", peak=True).start)
        stack.push_async_callback(asyncio.to_thread, kafka.stop)
        rig = Rig(Address(kafka.bootstrap, "apache"), folder)
        stack.push_async_callback(rig.close)
        cheap, sick, frontier = (
            stack.enter_context(FakeProcess(folder / f"{name}.jsonl", WELL, name=name))
            for name in ("cheap", "sick", "frontier")
        )
        served = models(cheap.url, frontier.url)
        own = {"base_url": f"{sick.url}/v1", "model": CHEAP, "price": CHEAP_PRICE, "timeout": "2s"}
        served["sick"] = {**served["cheap"], **own}
        tasks = {"ticket-triage": triage(), SICK: triage(ladder=["sick", "frontier"])}
        stamped = {topic: {"config": STAMPED} for topic in (JOBS, RESULTS)}
        await rig.open(served, tasks, partitions=PARTITIONS, overrides=stamped)
        await rig.ready(rig.worker(environment={"SLUICEWAY_STATE_DIR": str(folder / "state")}))
        bench = Bench(rig, sick, bank_tickets(5000), seconds, rates)
        await bench.p99(hangs=False)  # connections are open, caches filled
        for number in range(rounds):
            found = {
                hangs: await bench.p99(hangs=hangs) for hangs in ((False, True) if number % 2 == 0 else (True, False))
            }
            pairs.append((found[False], found[True]))
            print(f"round {number + 1}: {found[False]:.0f} ms without, {found[True]:.0f} ms with", file=sys.stderr)
        ratios = [hung / max(1.0, without) for without, hung in pairs]
        return {
            "p99_without_ms": statistics.median(without for without, _ in pairs),
            "p99_with_ms": statistics.median(hung for _, hung in pairs),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "most": MOST,
            "held": statistics.median(ratios) <= MOST and bench.hung > 0,
            "hung_calls": bench.hung,
            "rounds": rounds,
            "seconds": seconds,
            "rates": list(rates),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which jobs come in a run")
    parser.add_argument("--rate", type=float, default=100.0, help="jobs a second whose model is well")
    parser.add_argument("--sick-rate", type=float, default=50.0, help="jobs a second whose model hangs")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(compare(given.rounds, given.seconds, (given.rate, given.sick_rate), Path(folder)))
    found["conditions"] = before
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"\n{given.rate:g} jobs a second beside {given.sick_rate:g} of a hung model ({found['hung_calls']} calls of"
            f" it), medians of {given.rounds} pairs; {before['cores']} cores, load {before['load']}\n"
            f"  p99 {found['p99_without_ms']:.0f} ms without, {found['p99_with_ms']:.0f} ms with: ratio"
            f" {found['ratio']:.2f}, at most {MOST:g}: {'held' if found['held'] else 'NOT held'}"
        )
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
