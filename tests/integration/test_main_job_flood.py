"""A flood of dead letters: its partition is held, whoever reads it and across restarts, until it is resumed."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from tests.support.fake_process import FakeProcess
from tests.support.outgoing import DEAD_LETTERS, JOBS, RESULTS, REVIEWS
from tests.support.processes import run_sluiceway
from tests.support.rig import Item, Rig, job, models, triage
from tests.support.tickets import bank_tickets

from sluiceway.core.stream import Limits

BAD = 900
LIMITS = Limits()


async def unready(url: str) -> str:
    """What /readyz says while it says no. Polls: a probe has no signal."""
    while True:
        try:
            with await asyncio.to_thread(urllib.request.urlopen, f"{url}/readyz", timeout=5):
                await asyncio.sleep(0.05)
        except urllib.error.HTTPError as answer:
            return answer.read().decode()


async def test_a_flood_holds_its_partition_until_an_operator_resumes_it(
    rig: Rig, fakes: tuple[FakeProcess, FakeProcess]
) -> None:
    """Nine hundred cut records in one partition: a few hundred become dead letters, the other partition flows."""
    cheap, frontier = fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()}, partitions=2)
    flood: list[Item] = [(b"flood", b'{"cut', ()) for _ in range(BAD)]
    (where, _), *_ = await rig.publish(JOBS, flood)
    items = [job(n, text) for n, text in enumerate(bank_tickets(60))]
    places = await rig.publish(JOBS, items)
    beside = {f"job-{n}" for n, (partition, _) in enumerate(places) if partition != where}
    assert 0 < len(beside) < 60

    worker = rig.worker()
    began = await asyncio.to_thread(worker.wait_for_event, "worker_started", within=40.0)
    async with asyncio.timeout(40):
        reason = await unready(f"http://127.0.0.1:{began['port']}")
        while "held for its dead letters" not in reason:
            reason = await unready(f"http://127.0.0.1:{began['port']}")
    assert f"{JOBS}[{where}]" in reason
    await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= beside, within=40)
    assert await rig.stopped(worker) == [0]
    seen = await rig.by_now()
    dead = len(seen[DEAD_LETTERS])
    assert LIMITS.flood.run <= dead <= LIMITS.flood.run + LIMITS.jobs < BAD
    assert seen.ids(RESULTS, REVIEWS) == beside

    # Another process, which has seen no flood itself: it knows from the control topic.
    (more, *_) = await rig.publish(JOBS, [job("later", "Where is my card?")])
    other = rig.worker(start=None)
    if more[0] != where:
        await rig.until(lambda seen: "job-later" in seen.ids(RESULTS, REVIEWS), within=40)
    await asyncio.to_thread(other.wait_for_event, "kafka", within=40.0)
    began = await asyncio.to_thread(other.wait_for_event, "worker_started", within=40.0)
    async with asyncio.timeout(40):
        while "held for its dead letters" not in await unready(f"http://127.0.0.1:{began['port']}"):
            pass
    assert len((await rig.by_now())[DEAD_LETTERS]) == dead

    connected = ["-b", rig.bootstrap, *(part for pair in rig.pairs for part in ("-X", pair))]
    everybody = {f"job-{n}" for n in range(60)} | {"job-later"}
    resumed = 0
    # Each time the flood goes on, it is held once more.
    while not everybody <= rig.out.ids(RESULTS, REVIEWS):
        done = await asyncio.to_thread(run_sluiceway, "resume", "--topic", JOBS, *connected)
        resumed += done.returncode == 0
        await rig.by_now()
        assert resumed <= BAD // LIMITS.flood.run
    assert await rig.stopped(other) == [0]
    seen = await rig.settled()
    assert len(seen[DEAD_LETTERS]) == BAD
    assert seen.ids(RESULTS, REVIEWS) == everybody
    print(f"dead before the hold {dead} of {BAD}, resumed {resumed} times")
    assert resumed >= 2
