"""Waits outside a worker, end to end: an endpoint that is out blocks no partition, and no job is lost or paid twice.

Delays are what topics/ declares, so these tests last as long as they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import JOBS, RESULTS, REVIEWS, Outgoing, attempts
from tests.support.rig import Rig, billed, job, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import committed, ends

from sluiceway.core.cascade import Role
from sluiceway.core.stream import Limits
from sluiceway.models.headers import MAX_RETRY_AFTER

Fakes = tuple[FakeProcess, FakeProcess]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENT = {"ladder": ["slow", "frontier"], "on_failure": "wait", "deadline": "15m"}


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[FakeProcess]:
    """The endpoint that is out."""
    with FakeProcess(tmp_path / "slow.jsonl", "labels seed=5", name="slow") as fake:
        yield fake


async def opened(rig: Rig, fakes: Fakes, slow: FakeProcess) -> None:
    """Two tasks share one partition: `ticket-triage`, and `patient`, which waits for the slow endpoint."""
    cheap, frontier = (fake.url for fake in fakes)
    catalog = {**models(cheap, frontier), "slow": models(slow.url, frontier)["cheap"]}
    await rig.open(catalog, {"ticket-triage": triage(), "patient": triage(**PATIENT)}, partitions=1)
    await rig.ready(rig.worker())


async def passed(rig: Rig, within: float = 20.0) -> None:
    """Returns once every record of the jobs topic is settled and committed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        done = await committed(rig.bootstrap, rig.map.groups[Role.JOBS], JOBS)
        left = {n: end for n, end in (await ends(rig.bootstrap, JOBS)).items() if n not in done or done[n].offset < end}
        if not left:
            return
        assert loop.time() < deadline, f"the partition stands at {done} of {left}"
        await asyncio.sleep(0.05)  # the pace of a poll: an offset's commit has no other signal


async def ended(rig: Rig, fakes: list[FakeProcess], everybody: set[str], within: float) -> Outgoing:
    """Every job has its one outcome, both groups' lag is 0, and the money adds up; what was written."""
    await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= everybody, within=within)
    seen = await rig.settled()
    assert await rig.stopped(*rig.workers) == [0]
    entries = [entry for fake in fakes for entry in fake.entries()]
    report = await rig.report(entries=entries, lost_allowed=0)
    assert report.holds, report
    results = seen.bodies(RESULTS)
    assert sorted(result["job_id"] for result in results) == sorted(everybody), "one outcome each, and no review"
    assert sum(result["cost_picousd"] for result in results) == billed(entries)
    return seen


def waits(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in outcome["trail"]["steps"] if step["step"] == "waited"]


async def test_what_waits_a_minute_leaves_its_partition(rig: Rig, fakes: Fakes, slow: FakeProcess) -> None:
    """`Retry-After: 90`, which counts as a minute: they go through the retry topic, all others flow past them."""
    slow.say("labels seed=5 | 429 retry-after=90")
    await opened(rig, fakes, slow)
    texts = bank_tickets(205)
    stuck, others = {f"job-stuck-{n}" for n in range(5)}, {f"job-{n}" for n in range(200)}
    items = [job(f"stuck-{n}", text, task="patient") for n, text in enumerate(texts[200:])]
    await rig.publish(JOBS, items + [job(n, text) for n, text in enumerate(texts[:200])])
    topic = rig.map.retries[Role.JOBS][60.0]
    await rig.until(lambda seen: seen.ids(topic) >= stuck and seen.ids(RESULTS) >= others, within=60)
    await passed(rig)
    assert not rig.out.ids(RESULTS) & stuck, "the slow endpoint has answered nothing yet"
    slow.say("labels seed=5")
    seen = await ended(rig, [*fakes, slow], stuck | others, within=180)
    assert seen.ids(*rig.map.delays) == stuck, "nobody else left"
    for result in seen.bodies(RESULTS):
        if result["job_id"] in stuck:
            first, *more = attempts(result)
            assert first["failure"].startswith("overloaded: ")
            assert first["cost_picousd"] == 0
            assert [attempt["verdict"] for attempt in more] == ["accept"]
            (wait,) = waits(result)
            assert wait["ended"] - wait["at"] >= MAX_RETRY_AFTER, "sooner than the endpoint said"


async def test_a_crowd_that_waits_leaves_room(rig: Rig, fakes: Fakes, slow: FakeProcess) -> None:
    """An endpoint that is out for seconds: a fifth of the jobs in flight may sleep, the rest leave for ten seconds."""
    slow.say("labels seed=5 | 503")
    await opened(rig, fakes, slow)
    count = Limits().jobs
    texts = bank_tickets(count + 100)
    stuck, others = {f"job-stuck-{n}" for n in range(count)}, {f"job-{n}" for n in range(100)}
    items = [job(f"stuck-{n}", text, task="patient") for n, text in enumerate(texts[100:])]
    await rig.publish(JOBS, items + [job(n, text) for n, text in enumerate(texts[:100])])
    topic = rig.map.retries[Role.JOBS][10.0]
    # More than all that may run at once wait in front of them.
    await rig.until(lambda seen: len(seen.ids(topic)) > count // 2 and seen.ids(RESULTS) >= others, within=60)
    assert not rig.out.ids(RESULTS) & stuck
    slow.say("labels seed=5")
    seen = await ended(rig, [*fakes, slow], stuck | others, within=180)
    assert seen.ids(*rig.map.delays) <= stuck
