"""Thousands of jobs in flight on a slow model: `python -m tests.bench.in_flight [--json] [--in-flight N]`.

`sluiceway work --in-flight N` from a topic of a real Apache Kafka to another, on a model server that answers a second
after it was asked. By Little's law N calls of a second each are N a second; bare aiohttp posts the same bodies to the
same server before and after, as the limit that this machine sets. All of it shares the cores of one machine. What is
counted is results that lie on their topic; each end of the time is taken over a second, as calls that began together
end together.

Example: python -m tests.bench.in_flight --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.bench._race import RESULTS, ROOT, Ends, Track, conditions, cpu_of, rss_of, track
from tests.bench._stream_ours import POLICY
from tests.bench.endpoints import Line
from tests.support.processes import Child, sluiceway

PARTITIONS = 8
DELAY = 1.0  # seconds of a call
LEAST_SHARE = 0.95  # of the lower of Little's law and bare aiohttp
MOST_RSS = 400_000_000  # bytes
_WITHIN = 120.0  # seconds until the worker is at its pace


class Bare:
    """Bare aiohttp, posting the bodies that the worker's calls have."""

    def __init__(self, folder: Path, url: str, in_flight: int) -> None:
        bodies = folder / "bodies.jsonl"
        subprocess.run([sys.executable, "-m", "tests.bench._ours", "--bodies", bodies], check=True, cwd=ROOT)
        self._line = Line(sys.executable, "tests/bench/_peers.py", "aiohttp", bodies)
        self._asked = {"url": url, "in_flight": in_flight}

    def turn(self, seconds: float) -> float:
        """Calls a second."""
        found = self._line.ask({**self._asked, "seconds": seconds})
        return found["calls"] / found["seconds"]

    def close(self) -> None:
        self._line.__exit__()


class Worker:
    """`sluiceway work` on the course, and what the system says of its process."""

    def __init__(self, course: Track, in_flight: int) -> None:
        self.child = sluiceway(
            "work", "--policy", str(course.policy), "-b", course.kafka.bootstrap, "--from", "earliest",
            "--role", "jobs", "--in-flight", str(in_flight), "--metrics-port", "0",
            "--state", str(course.folder / "state"),
            log=course.folder / "worker.log", name="the worker",
        )  # fmt: skip

    def start(self) -> None:
        self.child.start()
        self.child.wait_for_event("worker_started", within=40)

    def peak_rss(self) -> int:
        """The most bytes that were ever resident (Linux)."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


def open_files(pid: int) -> int:
    """How many a process holds (Linux): of the server's nearly all are connections."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def over_a_second(ends: Ends) -> tuple[float, float]:
    """The mean of the looks at a second's length of the topic: when, and how many results lay there."""
    looks = []
    until = time.monotonic() + DELAY
    while (now := time.monotonic()) < until:
        total = await ends.total(RESULTS)
        looks.append(((now + time.monotonic()) / 2, total))
        await asyncio.sleep(0.02)  # the pace of a poll: a topic's end has no signal
    return statistics.mean(at for at, _ in looks), statistics.mean(total for _, total in looks)


async def ours(course: Track, server: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """The worker's turn: jobs a second over `seconds`, once all its jobs are under way and have come round twice."""
    worker = Worker(course, in_flight)
    watched = {"worker": 0, "server": server, "broker": course.broker}
    try:
        await asyncio.to_thread(worker.start)
        watched["worker"] = worker.child.pid
        async with Ends(course.kafka.bootstrap) as ends:
            await _under_way(ends, worker.child, 3 * in_flight)
            before = {name: cpu_of(pid) for name, pid in watched.items()}
            began, first = await over_a_second(ends)
            await asyncio.sleep(max(0.0, seconds / 2))  # the measured time itself
            connections = open_files(server)
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            ended, last = await over_a_second(ends)
        took = ended - began
        after = {name: cpu_of(pid) for name, pid in watched.items()}
        return {
            "jobs_per_s": (last - first) / took,
            "seconds": took,
            "connections": connections,
            "peak_rss": worker.peak_rss(),
            "rss": rss_of(worker.child.pid),
            # A second longer than the jobs are counted for.
            "cpu": {name: (after[name] - before[name]) / (took + DELAY) for name in watched},
        }
    finally:
        await asyncio.to_thread(worker.child.stop)


async def _under_way(ends: Ends, child: Child, jobs: int) -> None:
    end = time.monotonic() + _WITHIN
    while (total := await ends.total(RESULTS)) < jobs:
        if time.monotonic() > end or not child.running:
            raise SystemExit(f"{total:,} of {jobs:,} results; the worker's log ends:\n{child.tail()}")
        await asyncio.sleep(0.1)  # the pace of a poll


async def measure(in_flight: int, seconds: float, folder: Path) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Line(sys.executable, "-m", "tests.bench._server", str(DELAY)))
        url = f"http://127.0.0.1:{int(server.read())}"
        course = stack.enter_context(track(folder))
        course.policy.write_text(POLICY.replace("http://127.0.0.1:1", url))
        await course.make(PARTITIONS)
        await course.fill(round(in_flight / DELAY * (seconds + 15)) + 5 * in_flight)
        bare = await asyncio.to_thread(Bare, folder, url, in_flight)
        stack.callback(bare.close)
        rates = [await asyncio.to_thread(bare.turn, seconds)]
        found = await ours(course, server.pid, in_flight, seconds)
        rates.append(await asyncio.to_thread(bare.turn, seconds))
    return judged(found, rates, in_flight)


def judged(found: dict[str, Any], bare: list[float], in_flight: int) -> dict[str, Any]:
    """The worker's share of what is possible here."""
    possible = min(in_flight / DELAY, statistics.mean(bare))
    share = found["jobs_per_s"] / possible
    laws = {
        f"at least {LEAST_SHARE:.0%} of the lower of Little's law and bare aiohttp": share >= LEAST_SHARE,
        f"peak memory under {MOST_RSS / 1e6:.0f} MB": found["peak_rss"] < MOST_RSS,
    }
    return {
        **found,
        "in_flight": in_flight,
        "aiohttp_per_s": bare,
        "little_per_s": in_flight / DELAY,
        "share": share,
        "laws": laws,
        "held": all(laws.values()),
    }


def show(found: dict[str, Any]) -> None:
    before = found["conditions"]
    print(f"\n{found['in_flight']:,} jobs in flight, {DELAY:g} s a call; {before['cores']} cores shared by all, "
          f"load {before['load']}")  # fmt: skip
    print(f"  Little's law   {found['little_per_s']:>8,.0f} a second")
    print(f"  bare aiohttp   {statistics.mean(found['aiohttp_per_s']):>8,.0f}   "
          f"before and after: {', '.join(f'{rate:,.0f}' for rate in found['aiohttp_per_s'])}")  # fmt: skip
    print(f"  sluiceway      {found['jobs_per_s']:>8,.0f}   over {found['seconds']:.1f} s, topic to topic; "
          f"{found['connections']:,} connections at a look; {found['share']:.1%}")  # fmt: skip
    print(f"  memory         {found['peak_rss'] / 1e6:>8,.0f} MB at its peak")
    print("  cores          " + ", ".join(f"{name} {cores:.2f}" for name, cores in found["cpu"].items()))
    for law, held in found["laws"].items():
        print(f"  {law}: {'held' if held else 'NOT held'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--in-flight", type=int, default=2000, metavar="N")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(given.in_flight, given.seconds, Path(folder)))
    found["conditions"] = before
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
