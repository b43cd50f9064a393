"""Row 2: workers come and go, and the group goes on. The small storm and the one of the issue's scale."""

from __future__ import annotations

import asyncio
import os
import random
import time

from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Scene, tickets
from tests.faults.stage import Stage
from tests.support.processes import Child

CHEAP = "labels seed=3 doubt=2% delay=0.05"


async def drained_storm(stage: Stage) -> list[Finding]:
    """Four workers, each stopped by SIGTERM and started, again and again: drains complete, nothing is repeated."""
    count, restarts, over = stage.of((30_000, 12, 300.0), (2_000, 1, 15.0))
    async with stage.scene("2", cheap=CHEAP, partitions=8, parallel=32) as scene:
        crew = [scene.worker() for _ in range(stage.of(4, 3))]
        await scene.ready(*crew)
        feed = asyncio.create_task(scene.feed(tickets(count), over=over))
        codes = await _storm(scene, stage.dice("2"), crew, restarts, over, kills=False)
        await feed
        late = await scene.caught_up(120)
        codes += await scene.stopped()
        cut = [n for n in scene.notices("revoked") if not n["drained"]]
        finding = await scene.finding(
            "2",
            f"{len(crew)} workers x {restarts} restarts by SIGTERM, 8 partitions",
            idle_within=SESSION + 2 * REVOKE + 25,  # two in a row may meet, and a process takes its time to start
            asked={"lag 0": late, "exit codes": None if not any(codes) else f"{codes}"},
        )
        repeated = finding.report.duplicates.raw
        finding.asked["no duplicates, as the drains complete"] = (
            f"{repeated} duplicates, though every revoke was drained" if repeated and not cut else None
        )
        finding.notes.append(f"{len(cut)} of {len(scene.notices('revoked'))} revokes were not drained in their budget")
        return [finding]


async def great_storm(
    stage: Stage, count: int, partitions: int, workers: int, restarts: int, minutes: float
) -> list[Finding]:
    """`workers` static members, each restarted `restarts` times by SIGTERM or SIGKILL, over `minutes`."""
    over = minutes * 60
    began, spent = time.monotonic(), sum(os.times()[:4])
    async with stage.scene("storm", cheap=CHEAP, partitions=partitions, parallel=32, pitch=1.0) as scene:
        crew = [scene.worker("--instance", f"storm-{n}") for n in range(workers)]
        await scene.ready(*crew, within=120)
        started = time.monotonic() - began
        feed = asyncio.create_task(scene.feed(tickets(count), over=over))
        codes = await _storm(scene, stage.dice("storm"), crew, restarts, over, kills=True)
        await feed
        storming = time.monotonic() - began - started
        late = await scene.caught_up(240)
        caught_up = time.monotonic() - began - started - storming
        codes += await scene.stopped()
        took = time.monotonic() - began
        spent = sum(os.times()[:4]) - spent
        return [
            await scene.finding(
                "storm",
                f"{workers} workers x {restarts} restarts, {partitions} partitions, {count} jobs",
                # While a static member is away its partitions are nobody's: for a session, or until it is back.
                idle_within=SESSION + REVOKE + 30,
                notes=[
                    f"longest standstill of the group {scene.standstill():.1f} s; {len(scene.killed_at)} SIGKILL, "
                    f"{workers * restarts - len(scene.killed_at)} SIGTERM",
                    f"started in {started:.0f} s, stormed {storming:.0f} s, caught up {caught_up:.0f} s after it, "
                    f"{took:.0f} s in all, {spent:.0f} s of CPU in ended processes and the test",
                ],
                asked={
                    "lag 0": late,
                    "exit codes": None if not any(codes) else f"{codes}",
                    "partitions": None if len(scene.watch.jobs_ends) == partitions else f"{len(scene.watch.jobs_ends)}",
                    "ends in its time": None if took < 2 * over + 120 else f"{took:.0f} s",
                },
            )
        ]


async def _storm(
    scene: Scene, dice: random.Random, crew: list[Child], restarts: int, over: float, *, kills: bool
) -> list[int]:
    """Restarts every worker `restarts` times, evenly but for the dice; the exit codes of those that were asked."""
    codes: list[int] = []
    began = time.monotonic()
    plans = [
        [((turn + dice.uniform(0.1, 0.9)) * over / restarts, kills and dice.random() < 0.5) for turn in range(restarts)]
        for _ in crew
    ]

    async def one(worker: Child, plan: list[tuple[float, bool]]) -> None:
        for at, kill in plan:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))  # the storm's own pace
            if kill:
                await scene.kill(worker)
            else:
                codes.extend(await scene.stopped(worker))
            worker.start()

    async with asyncio.TaskGroup() as group:
        for worker, plan in zip(crew, plans, strict=True):
            group.create_task(one(worker, plan))
    await scene.ready(*crew, within=120)
    return codes
