"""Rows 3 and 4: the broker goes down and comes back, freezes, or is cut off."""

from __future__ import annotations

import asyncio
import time

from tests.faults.finding import Finding
from tests.faults.proxy import ProxiedKafka, Way
from tests.faults.scene import REVOKE, SESSION, tickets
from tests.faults.stage import Stage
from tests.support.apache_kafka import ApacheKafka
from tests.support.processes import wait_until

CHEAP = "labels seed=3 doubt=5% delay=0.05"
STOP_BUDGET = 25.0  # seconds


async def restarted(stage: Stage) -> list[Finding]:
    """The broker is restarted under load, by a clean shutdown and by SIGKILL; two workers stay up throughout."""
    return [await _restarted(stage, clean=clean) for clean in stage.of((True, False), (False,))]


async def _restarted(stage: Stage, *, clean: bool) -> Finding:
    count, times = stage.of((15_000, 5), (1_500, 1))
    row = "3-clean" if clean else "3-kill"
    async with stage.scene(row, cheap=CHEAP, parallel=stage.of(16, 8)) as scene:
        kafka = await stage.broker()
        await scene.publish(tickets(count))
        crew = [scene.worker(), scene.worker()]
        for number in range(times):
            await scene.share((number + 1) / (times + 2), count, within=180)
            await asyncio.to_thread(kafka.restart, clean=clean)
        back = time.monotonic()
        late = await scene.caught_up(300)
        recovered = time.monotonic() - back
        answered = "lag 0 within 60 s of the last restart"
        codes = await scene.stopped(*crew)
        return await scene.finding(
            row,
            f"broker {'restarted' if clean else 'SIGKILLed'} x {times} under load",
            # Down and up again takes up to 20 s here, and then the group forms anew.
            idle_within=20 + SESSION + REVOKE + 20,
            recovery=recovered,
            notes=[f"lag 0 {recovered:.1f} s after the last restart; longest standstill {scene.standstill():.1f} s"],
            asked={
                "lag 0": late,
                answered: None if recovered <= 60 else f"{recovered:.0f} s",
                "exit codes": None if codes == [0, 0] else f"{codes}",
            },
        )


async def frozen(stage: Stage) -> list[Finding]:
    """The broker freezes with calls in flight, their answers come, and a worker is told to stop meanwhile."""
    count, parallel = stage.of((30_000, 500), (4_000, 100))  # or few would be left when it is seen how far it is
    budget = stage.of(STOP_BUDGET, 8.0)
    freeze = stage.of(20.0, 10.0)
    plants = [] if budget == STOP_BUDGET else [f"budget={budget}"]
    async with stage.scene("4-freeze", cheap=CHEAP, parallel=parallel) as scene:
        kafka = await stage.broker()
        await scene.publish(tickets(count))
        worker = scene.worker(plants=plants)
        await scene.share(0.2, count)
        scene.cheap.hold()
        wanted = parallel if stage.full else parallel // 2
        await scene.busy(wanted)
        kafka.freeze()
        thawing = asyncio.create_task(_thaw_after(kafka, freeze))
        scene.cheap.release()
        # Their answers are in the store when the fake has none open any more; nothing of them can be published.
        await asyncio.to_thread(
            wait_until, lambda: scene.cheap.counters()["in_flight"] == 0 or None, within=20, what="all calls answered"
        )
        asked = scene.cheap.entries()
        calls, answered = len(asked), {entry.digest for entry in asked}
        worker.terminate()
        told = time.monotonic()
        code = await asyncio.to_thread(worker.wait, budget + 15)
        out = time.monotonic() - told
        await thawing
        clean = any(event["clean"] for event in worker.events() if event.get("event") == "worker_stopped")
        if not clean:  # what was sent into the frozen broker lies there unacked: it left like a killed one
            scene.killed_at.append(time.time())
        successor = scene.worker()
        late = await scene.caught_up(180)
        codes = await scene.stopped(successor)
        again = [entry for entry in scene.cheap.entries()[calls:] if entry.digest in answered]
        return [
            await scene.finding(
                "4-freeze",
                f"broker frozen {freeze:.0f} s, worker told to stop while it is",
                idle_within=freeze + budget + SESSION + REVOKE + 30,
                notes=[
                    f"out after {out:.1f} of {budget:.0f} s, code {code}, clean: {clean}; {len(again)} calls made again"
                ],
                asked={
                    "lag 0": late,
                    "out in its budget": None if out <= budget + 1 else f"{out:.1f} s",
                    "exit codes": None if [code, *codes] == [0, 0] else f"{[code, *codes]}",
                    "pays for no answer that it holds": f"{len(again)} calls made again" if again else None,
                },
            )
        ]


async def _thaw_after(kafka: ApacheKafka, seconds: float) -> None:
    await asyncio.sleep(seconds)  # the fault's own length
    kafka.thaw()


async def cut_off(stage: Stage) -> list[Finding]:
    """A proxy before the broker cuts, stalls and slices, in turn; two workers behind it."""
    count = stage.of(8_000, 1_500)
    length = stage.of(10.0, 3.0)
    dice = stage.dice("4-proxy")
    async with stage.scene("4-proxy", cheap=CHEAP, parallel=8) as scene:
        kafka = await stage.broker()
        assert isinstance(kafka, ProxiedKafka)
        async with kafka.proxy() as proxy:
            await scene.publish(tickets(count))
            crew = [scene.worker(bootstrap=proxy.bootstrap) for _ in range(2)]
            await scene.ready(*crew)
            ways = [Way.CUT, Way.STALL, Way.SLICE] * stage.of(3, 1)
            dice.shuffle(ways)
            for way in ways:
                proxy.way = way
                await asyncio.sleep(length)  # the fault's own length
                proxy.way = Way.THROUGH
                await asyncio.sleep(length / 3)
            back = time.monotonic()
            late = await scene.caught_up(120)
            recovered = time.monotonic() - back
            codes = await scene.stopped(*crew)
            return [
                await scene.finding(
                    "4-proxy",
                    f"cut, stalled, sliced x {len(ways)} by a proxy",
                    idle_within=2 * length + SESSION + REVOKE + 30,
                    recovery=recovered,
                    notes=[f"{proxy.cuts} connections cut, in the order {' '.join(way.value for way in ways)}"],
                    asked={"lag 0": late, "exit codes": None if codes == [0, 0] else f"{codes}"},
                )
            ]
