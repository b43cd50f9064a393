"""What a worker weighs after many jobs: `python -m tests.bench.memory [--json]`.

One `sluiceway work`, whole core and local store, its model answering at once in its own process; Apache Kafka. Its
resident memory is looked at four times a second; at N jobs it is the median of what was seen in the tenth before N.

Example: python -m tests.bench.memory --jobs 200000 --first 20000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench._race import RESULTS, Ends, Peer, conditions, rss_of, track

PARTITIONS = 8
MOST = 1.1  # times the memory at the first mark
_LOOK = 0.25  # seconds
# The broker forgets results soon: a million of them would fill a small disk.
_FORGETS = {"retention.bytes": str(32 << 20), "segment.bytes": str(16 << 20), "file.delete.delay.ms": "1000"}


async def weigh(first: int, jobs: int, folder: Path) -> dict[str, Any]:
    with track(folder) as course:
        await course.make(PARTITIONS, results=_FORGETS)
        await course.fill(jobs)
        peer = Peer("_stream_ours", "core", course.settings(state=str(folder / "state")), course.log())
        try:
            await asyncio.to_thread(peer.held)
            seen: list[tuple[int, int]] = [(0, rss_of(peer.pid))]
            async with Ends(course.kafka.bootstrap) as ends:
                before = await ends.total(RESULTS)
                peer.go()
                until, shown = time.monotonic() + 120 + jobs / 500, 0
                while (done := seen[-1][0]) < jobs:
                    if time.monotonic() > until:
                        raise SystemExit(f"{done:,} of {jobs:,} jobs are done; that takes too long")
                    await asyncio.sleep(_LOOK)  # the pace of looks: memory has no signal
                    seen.append((await ends.total(RESULTS) - before, rss_of(peer.pid)))
                    if seen[-1][0] // 100_000 > shown:
                        shown = seen[-1][0] // 100_000
                        print(f"{seen[-1][0]:,} jobs: {seen[-1][1] / 1e6:.1f} MB", file=sys.stderr)
            told = await asyncio.to_thread(peer.stop)
        finally:
            peer.kill()
    at_first, at_last = _at(seen, first), _at(seen, jobs)
    return {
        "first": first,
        "jobs": jobs,
        "rss_at_start": seen[0][1],
        "rss_at_first": at_first,
        "rss_at_last": at_last,
        "ratio": at_last / at_first,
        "most": MOST,
        "held": at_last <= MOST * at_first,
        "jobs_per_s": told["jobs"] / (told["ended"] - told["began"]),
    }


def _at(seen: list[tuple[int, int]], jobs: int) -> float:
    """Bytes: the median of the looks in the tenth before `jobs`, or the nearest look where there were none."""
    near = [rss for count, rss in seen if 0.9 * jobs <= count <= jobs]
    return statistics.median(near) if near else min(seen, key=lambda look: abs(look[0] - jobs))[1]


def show(found: dict[str, Any]) -> None:
    before = found["conditions"]
    print(f"\none worker, {found['jobs_per_s']:,.0f} jobs/s, {before['cores']} cores, load {before['load']}")
    for name, jobs in (("rss_at_start", 0), ("rss_at_first", found["first"]), ("rss_at_last", found["jobs"])):
        print(f"  RSS at {jobs:>11,} jobs {found[name] / 1e6:10.1f} MB")
    held = "held" if found["held"] else "NOT held"
    print(f"  last / first {found['ratio']:16.3f}   at most {found['most']:g}: {held}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=100_000, help="jobs at the first mark")
    given = parser.parse_args()
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(weigh(given.first, given.jobs, Path(folder)))
    found["conditions"] = before
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
