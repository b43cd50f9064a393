"""More workers, fewer workers: partitions are shared, and no job is lost on the way. Ids are compared, not counts."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterable

import pytest
from tests.support.evidence import Disturbance
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import JOBS, RESULTS, REVIEWS
from tests.support.processes import Child
from tests.support.rig import Rig, job, metric, models, triage
from tests.support.tickets import bank_tickets

from sluiceway.core.stream import Limits

Fakes = tuple[FakeProcess, FakeProcess]

SEED = 3
IN_FLIGHT = Limits().jobs


def held(worker: Child) -> int:
    """How many partitions of the jobs topic the worker was last given."""
    given = [
        dict(topic.rsplit(":", 1) for topic in event["topics"].split())
        for event in worker.events()
        if event.get("notice") == "assigned" and event["group"] == "sluiceway-jobs"
    ]
    return int(given[-1].get(JOBS, 0)) if given else 0


async def shared(workers: Iterable[Child], partitions: int, within: float = 30.0) -> list[int]:
    """How many partitions each holds, once all of them are held and nobody stands idle."""
    crew = list(workers)
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        holding = [held(worker) for worker in crew]
        if sum(holding) == partitions and all(holding):
            return holding
        assert loop.time() < end, f"after {within} s the workers hold {holding} of {partitions} partitions"
        await asyncio.sleep(0.05)  # the pace of a poll of their logs


async def settled_by(url: str) -> float:
    def ask() -> float:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  our own worker's
            return metric(answer.read().decode(), "sluiceway_settled_total", topic=JOBS)

    return await asyncio.to_thread(ask)


async def test_a_third_worker_joins_while_jobs_run_and_none_is_lost(rig: Rig, fakes: Fakes) -> None:
    """Two share the partitions, a third takes its part of them under load; each of 5,000 jobs has its one outcome."""
    cheap, frontier = fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()}, partitions=6)
    texts = bank_tickets(5_000)
    everybody = {f"job-{n}" for n in range(5_000)}
    crew = [rig.worker(), rig.worker()]
    await rig.ready(*crew)
    assert await shared(crew, 6) == [3, 3]
    await rig.publish(JOBS, [job(n, text) for n, text in enumerate(texts[:4_000])])
    await rig.until(lambda seen: len(seen.ids(RESULTS)) >= 500, within=40)
    crew.append(rig.worker())
    urls = await rig.ready(*crew)
    assert await shared(crew, 6) == [2, 2, 2]
    await rig.publish(JOBS, [job(4_000 + n, text) for n, text in enumerate(texts[4_000:])])
    await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= everybody, within=60)
    seen = await rig.settled()
    shares = [await settled_by(url) for url in urls]
    assert min(shares) > 0, f"somebody stood by: {shares}"
    print(f"records settled by each worker: {shares}")
    assert await rig.stopped(*crew) == [0, 0, 0]

    entries = [entry for fake in fakes for entry in fake.entries()]
    # The two older workers were revoked once in each role.
    disturbance = Disturbance(revokes=4, in_flight=IN_FLIGHT)
    report = await rig.report(
        seed=SEED, entries=entries, disturbance=disturbance, lost_allowed=disturbance.revokes * IN_FLIGHT
    )
    assert report.holds, report
    assert seen.ids(RESULTS) == everybody


@pytest.mark.slow
async def test_a_killed_worker_loses_nothing(rig: Rig, fakes: Fakes) -> None:
    """kill -9 of one of two workers mid-flight, and its restart: every id has its outcome, redone work is bounded."""
    cheap, frontier = fakes
    cheap.say("labels seed=3 doubt=10% delay=0.2")
    # A known pace, so that what one commit interval holds is known too: 16 calls of 0.2 s in each of two workers.
    catalog = models(cheap.url, frontier.url, cheap={"limits": {"max_parallel_requests": 16}})
    await rig.open(catalog, {"ticket-triage": triage()}, partitions=6)
    count = 3_000
    everybody = {f"job-{n}" for n in range(count)}
    crew = [rig.worker(), rig.worker()]
    await rig.ready(*crew)
    await shared(crew, 6)
    await rig.publish(JOBS, [job(n, text) for n, text in enumerate(bank_tickets(count))])
    await rig.until(lambda seen: len(seen.ids(RESULTS)) >= count // 3, within=40)
    crew[0].kill()
    crew[0].start()
    began = asyncio.get_running_loop().time()
    await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= everybody, within=90)
    print(f"all answered {asyncio.get_running_loop().time() - began:.1f} s after the kill")
    await rig.settled()
    assert await rig.stopped(*crew) == [0, 0]

    entries = [entry for fake in fakes for entry in fake.entries()]
    # Killed once; the other worker is revoked when the group notices, and when the killed one comes back.
    disturbance = Disturbance(kills=1, revokes=4, in_flight=IN_FLIGHT, per_commit=100)
    report = await rig.report(
        seed=SEED, entries=entries, disturbance=disturbance, lost_allowed=(1 + disturbance.revokes) * IN_FLIGHT
    )
    assert report.holds, report
    print(f"{len(entries)} calls for {count} jobs")
