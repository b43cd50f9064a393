"""How fast tickets go through: `python -m tests.bench.main_job [--tickets N] [--workers N] [--broker apache|embedded]`.

Real workers, a real broker and fake models that answer at once, all on this machine, so it says what a job costs here
and not what a cluster can do. One worker runs both roles; a tenth of the tickets is escalated. The clock runs from the
moment that every worker is in its group until the last outcome is read. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sluiceway.kafka.embedded import EmbeddedBroker
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import JOBS, RESULTS, REVIEWS
from tests.support.rig import Rig, job, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import Address


@asynccontextmanager
async def cluster(kind: str, folder: Path) -> AsyncIterator[Address]:
    if kind == "embedded":
        async with EmbeddedBroker() as broker:
            yield Address(broker.bootstrap, kind)
    else:
        kafka = await asyncio.to_thread(ApacheKafka(folder / "kafka").start)
        try:
            yield Address(kafka.bootstrap, kind)
        finally:
            await asyncio.to_thread(kafka.stop)


async def measure(tickets: int, workers: int, broker: str, folder: Path) -> dict[str, object]:
    async with AsyncExitStack() as stack:
        rig = Rig(await stack.enter_async_context(cluster(broker, folder)), folder)
        stack.push_async_callback(rig.close)
        cheap = stack.enter_context(FakeProcess(folder / "cheap.jsonl", "labels seed=3 doubt=10%", name="cheap"))
        frontier = stack.enter_context(FakeProcess(folder / "frontier.jsonl", "labels seed=4", name="frontier"))
        await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()}, partitions=12)
        crew = [rig.worker() for _ in range(workers)]
        await rig.ready(*crew)
        items = [job(n, text) for n, text in enumerate(bank_tickets(tickets))]
        began = time.perf_counter()
        await rig.publish(JOBS, items)
        published = time.perf_counter() - began
        everybody = {f"job-{n}" for n in range(tickets)}
        seen = await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= everybody, within=60 + tickets / 20)
        seconds = time.perf_counter() - began
        outcomes = len(seen[RESULTS]) + len(seen[REVIEWS])
        return {
            "broker": broker,
            "workers": workers,
            "tickets": tickets,
            "jobs_per_second": round(tickets / seconds, 1),
            "seconds": round(seconds, 2),
            "publish_seconds": round(published, 2),
            "duplicates": outcomes - len(everybody),
            "calls": len(cheap.entries()) + len(frontier.entries()),
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[1], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tickets", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--broker", choices=("apache", "embedded"), default="apache")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(given.tickets, given.workers, given.broker, Path(folder)))))


if __name__ == "__main__":
    main()
