"""Two tenants at 100:1 load in one topic: `python -m tests.bench.tenants [--json]`.

One `sluiceway work` on Apache Kafka, its model taking 200 ms in its own process, 100 jobs at once: 500 jobs/s at
most. The large tenant publishes 400 jobs in a burst at each second's beginning, the small one 4 in the course of it;
then the small one alone. A latency is from the job's arrival in its topic to its outcome's.

Example: python -m tests.bench.tenants --rounds 1 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from tests.bench._flow import STAMPED, Due, percentile, publish_when_due
from tests.bench._race import JOBS, RESULTS, Peer, Track, conditions, track
from tests.support.topics import Reader

PARTITIONS = 4
SMALL = 4  # jobs a second
LOAD = 100  # times as many of the large tenant
DELAY, IN_FLIGHT = 0.2, 100
MOST = 2.0


def due(course: Track, name: str, seconds: int, *, large: bool) -> list[Due]:
    """The load of both tenants, or of the small one alone; ids begin with `name`."""

    def job(tenant: str, number: int, at: float) -> Due:
        text = course.texts[number % len(course.texts)]
        tree = {"id": f"{name}-{tenant}-{number}", "task": "ticket-triage", "input": text, "tenant": tenant}
        return Due(at, str(tree["id"]), orjson.dumps(tree))

    jobs = [job("small", number, number / SMALL) for number in range(seconds * SMALL)]
    if large:
        each = SMALL * LOAD
        jobs += [job("large", number, float(number // each)) for number in range(seconds * each)]
    return sorted(jobs, key=lambda job: job.at)


async def phase(course: Track, reader: Reader, name: str, seconds: int, *, large: bool) -> dict[str, list[float]]:
    """Milliseconds each job took, by tenant."""
    jobs = due(course, name, seconds, large=large)
    appended = await publish_when_due(course.kafka.bootstrap, JOBS, jobs)
    finished: dict[str, int] = {}

    def all_in(seen: list[Any]) -> bool:
        for record in seen:
            finished.setdefault(orjson.loads(record.value)["job_id"], record.timestamp)
        seen.clear()  # each is looked at once
        return appended.keys() <= finished.keys()

    await reader.until(all_in, within=60 + 2 * seconds)
    spans: dict[str, list[float]] = {"small": [], "large": []}
    for job, at in appended.items():
        spans[job.split("-")[1]].append(finished[job] - at)
    return spans


async def compare(rounds: int, seconds: int, folder: Path) -> dict[str, Any]:
    with track(folder) as course:
        await course.make(PARTITIONS, results=STAMPED, jobs=STAMPED)
        settings = course.settings(state=str(folder / "state"), delay=DELAY, in_flight=IN_FLIGHT)
        await course.fill(1)
        peer = Peer("_stream_ours", "core", settings, course.log())
        pairs = []
        try:
            await asyncio.to_thread(peer.held)
            peer.go()
            async with Reader(course.kafka.bootstrap, RESULTS) as reader:
                for number in range(rounds):
                    found = {}
                    for large in (False, True) if number % 2 == 0 else (True, False):
                        name = f"r{number}{'both' if large else 'alone'}"
                        found[large] = await phase(course, reader, name, seconds, large=large)
                    pairs.append((found[False]["small"], found[True]["small"], found[True]["large"]))
                    print(f"round {number + 1} of {rounds}", file=sys.stderr)
            await asyncio.to_thread(peer.stop)
        finally:
            peer.kill()
    rows = {
        name: {
            f"p{int(100 * share)}_ms": statistics.median(percentile(pair[place], share) for pair in pairs)
            for share in (0.5, 0.99)
        }
        for place, name in enumerate(("small alone", "small", "large"))
    }
    ratio = statistics.median(percentile(both, 0.99) / max(1.0, percentile(alone, 0.99)) for alone, both, _ in pairs)
    return {"tenants": rows, "ratio": ratio, "most": MOST, "held": ratio <= MOST, "rounds": rounds, "seconds": seconds}


def show(found: dict[str, Any]) -> None:
    before = found["conditions"]
    print(
        f"\n{LOAD}:1 in one topic, medians of {found['rounds']} rounds of {found['seconds']} s;"
        f" {before['cores']} cores, load {before['load']}"
    )
    for name, each in found["tenants"].items():
        print(f"  {name:12} p50 {each['p50_ms']:8.0f} ms   p99 {each['p99_ms']:8.0f} ms")
    held = "held" if found["held"] else "NOT held"
    print(
        f"  the small one's p99, with the large one / alone: {found['ratio']:.2f}   at most {found['most']:g}: {held}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=30, help="of load, with and without the large tenant")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(compare(given.rounds, given.seconds, Path(folder)))
    found["conditions"] = before
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
