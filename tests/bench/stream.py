"""The stream layer against its peers, and what a whole core costs: `python -m tests.bench.stream [--json]`.

One real Apache Kafka; every peer is idempotent with acks=all, and reads the same jobs. They take turns within each
round; a ratio is the median of those within the rounds, as the peers of one round run under the same load.

    faust         a stock Faust agent whose loop is `await (await results.send(value=v))`
    aiokafka      a raw loop: consume a batch, send it, gather the acks, commit
    bytes         our app around an instant handler: bytes in, bytes out, ledger and commits included
    core          `sluiceway work`: decode, prompt, token count, recorded answer, schema check, gate, encode; its store
    core-nostore  the same without the local store
    core-two      two such workers in one group

Example: python -m tests.bench.stream --rounds 3 --jobs 20000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench._race import Lap, Track, conditions, track

PARTITIONS = 8
PEERS = ("faust", "aiokafka", "bytes", "core", "core-nostore", "core-two")
_SHARE = {"faust": 8, "core": 2, "core-nostore": 2, "core-two": 2}  # of the jobs, so that turns take about as long
WITHIN = 180.0  # seconds


@dataclass(frozen=True, slots=True)
class Target:
    """`of` is taken within each round and its median is held against `least`."""

    name: str
    least: float
    of: Callable[[dict[str, Lap]], float]
    needs: tuple[str, ...]
    aim: float | None = None


TARGETS = (
    Target("bytes / faust, jobs/s", 10.0, lambda laps: laps["bytes"].rate / laps["faust"].rate, ("bytes", "faust")),
    Target(
        "bytes / aiokafka, jobs/s", 0.6, lambda laps: laps["bytes"].rate / laps["aiokafka"].rate, ("bytes", "aiokafka")
    ),
    Target(
        "core / faust, jobs/CPU-s", 3.0, lambda laps: laps["core"].per_cpu / laps["faust"].per_cpu, ("core", "faust"),
        aim=5.0,
    ),
    Target(
        "core with / without its store, jobs/CPU-s",
        0.9,
        lambda laps: laps["core"].per_cpu / laps["core-nostore"].per_cpu,
        ("core", "core-nostore"),
    ),
    Target(
        "two workers / one, jobs/worker CPU-s",
        0.85,
        lambda laps: laps["core-two"].per_cpu / laps["core"].per_cpu,
        ("core-two", "core"),
    ),
)  # fmt: skip


async def turn(peer: str, course: Track, jobs: int) -> Lap:
    share = max(1, jobs // _SHARE.get(peer, 1))
    if peer in ("faust", "aiokafka"):
        return await course.lap("_stream_peers", peer, [course.settings()], share, WITHIN)
    if peer == "bytes":
        return await course.lap("_stream_ours", "bytes", [course.settings()], share, WITHIN)
    one = course.settings()
    stores = [str(course.folder / f"{one['group']}-{number}") for number in range(2 if peer == "core-two" else 1)]
    each = [one] if peer == "core-nostore" else [{**one, "state": store} for store in stores]
    return await course.lap("_stream_ours", "core", each, share, WITHIN)


async def race(peers: list[str], rounds: int, jobs: int, folder: Path) -> list[dict[str, Lap]]:
    laps: list[dict[str, Lap]] = []
    with track(folder) as course:
        await course.make(PARTITIONS)
        await course.fill(jobs)
        for number in range(rounds):
            order = peers if number % 2 == 0 else list(reversed(peers))
            laps.append({})
            for peer in order:
                lap = laps[-1][peer] = await turn(peer, course, jobs)
                said = f"{lap.rate:,.0f} jobs/s, {lap.per_cpu:,.0f} jobs/CPU-s"
                print(f"round {number + 1}: {peer} {said}", file=sys.stderr)
    return laps


def report(laps: list[dict[str, Lap]]) -> dict[str, Any]:
    """The medians of each peer, the ratios of `TARGETS`, and whether each is held."""

    def median(peer: str, of: Callable[[Lap], float]) -> float:
        return statistics.median(of(lap[peer]) for lap in laps)

    peers = {
        peer: {
            "jobs_per_s": median(peer, lambda lap: lap.rate),
            "lowest": min(lap[peer].rate for lap in laps),
            "highest": max(lap[peer].rate for lap in laps),
            "jobs_per_cpu_s": median(peer, lambda lap: lap.per_cpu),
            "cpu_us": median(peer, lambda lap: 1e6 / lap.per_cpu),
            "broker_cpu_us": median(peer, lambda lap: 1e6 * lap.broker_cpu / lap.jobs),
            "jobs": laps[0][peer].jobs,
        }
        for peer in laps[0]
    }
    ratios = []
    for target in TARGETS:
        if set(target.needs) <= set(peers):
            found = statistics.median(target.of(lap) for lap in laps)
            ratios.append({"of": target.name, "is": found, "least": target.least, "held": found >= target.least})
            if target.aim is not None:
                ratios[-1]["aim"] = target.aim
    whole: dict[str, Any] = {"peers": peers, "ratios": ratios, "rounds": len(laps)}
    if {"core", "core-two"} <= set(peers):
        whole["two_workers_total_ratio"] = statistics.median(lap["core-two"].rate / lap["core"].rate for lap in laps)
    return whole


def show(found: dict[str, Any]) -> None:
    before = found["conditions"]
    print(
        f"\nmedians of {found['rounds']} rounds, {before['cores']} cores shared with the broker, load {before['load']}"
    )
    print(
        f"  {'':14}{'jobs/s':>9}{'lowest':>9}{'highest':>9}{'jobs/CPU-s':>12}{'CPU us/job':>12}"
        f"{'broker us/job':>15}{'jobs a turn':>13}"
    )
    for peer, each in found["peers"].items():
        print(
            f"  {peer:14}{each['jobs_per_s']:>9,.0f}{each['lowest']:>9,.0f}{each['highest']:>9,.0f}"
            f"{each['jobs_per_cpu_s']:>12,.0f}{each['cpu_us']:>12.1f}{each['broker_cpu_us']:>15.1f}{each['jobs']:>13,}"
        )
    for ratio in found["ratios"]:
        aim = f", the aim being {ratio['aim']:g}" if "aim" in ratio else ""
        held = "held" if ratio["held"] else "NOT held"
        print(f"  {ratio['of']:44}{ratio['is']:6.2f}   at least {ratio['least']:g}{aim}: {held}")
    if "two_workers_total_ratio" in found:
        print(f"  {'two workers / one, jobs/s in all':44}{found['two_workers_total_ratio']:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=PEERS, action="append", help="these peers only; ratios need both of theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=60_000, help="of the raw loops; slower peers take a share of them")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        peers = [peer for peer in PEERS if given.only is None or peer in given.only]
        laps = asyncio.run(race(peers, given.rounds, given.jobs, Path(folder)))
    found = {**report(laps), "conditions": before}
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if all(ratio["held"] for ratio in found["ratios"]) else 1)


if __name__ == "__main__":
    main()
