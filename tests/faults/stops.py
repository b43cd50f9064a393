"""Row 13: a worker told to stop, with its hands full, a hung call among what it holds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Job, tickets
from tests.faults.stage import Stage
from tests.support.fake_scripts import LATE
from tests.support.rig import job

STOP_BUDGET = 25.0  # seconds


async def drained(stage: Stage) -> list[Finding]:
    """SIGTERM with many calls open, one of them hung: it exits in its budget; the next repeats what is open only."""
    held, rest = stage.of((500, 1_000), (200, 400))
    budget = stage.of(STOP_BUDGET, 8.0)
    plants = [] if budget == STOP_BUDGET else [f"budget={budget}"]
    answers = "labels seed=3 doubt=0% delay=0.05"
    async with stage.scene("13", cheap=f"{answers} | late share=0 delay=3600", parallel=held) as scene:
        # The first answers open the adaptive limit; then nothing is answered until all that may be is asked.
        await scene.publish(tickets(100))
        worker = scene.worker(plants=plants)
        await scene.until(lambda: scene.answered() == 100, within=60, what="the first hundred answered")
        hung: Job = ("job-hung", job("hung", f"This one hangs. {LATE}"))
        await scene.publish([hung])
        await scene.busy(1)
        scene.cheap.hold()
        await scene.publish(tickets(held + rest, first=100))
        in_flight = await scene.busy(held)
        asked_before = {entry.digest for entry in scene.cheap.entries()}
        worker.terminate()
        told = time.monotonic()
        scene.cheap.release()
        code = await asyncio.to_thread(worker.wait, budget + 15)
        out = time.monotonic() - told
        await scene.watch.look()
        done = set(scene.rig.out.ids(*scene.rig.map.written))
        calls = len(scene.cheap.entries())
        scene.lost_calls += 1  # the hung one: its provider bills what nobody has read

        scene.cheap.say(answers)
        successor = scene.worker()
        late = await scene.caught_up(120)
        codes = await scene.stopped(successor)
        again = [entry for entry in scene.cheap.entries()[calls:] if entry.digest in asked_before]
        outcomes = Counter(outcome.job_id for outcome in scene.outcomes())
        twice = [id_ for id_ in done if outcomes[id_] > 1]
        unfinished = [id_ for id_ in ("job-hung",) if id_ in done]
        return [
            await scene.finding(
                "13",
                f"SIGTERM with {in_flight} calls open, one of them hung",
                idle_within=budget + SESSION + REVOKE + 20,
                notes=[
                    f"out after {out:.1f} s of {budget:.0f} s; {len(done)} jobs done by then; calls asked before the "
                    f"signal and made again: {len(again)}"
                ],
                asked={
                    "lag 0": late,
                    "out in its budget": None if out <= budget + 1 else f"{out:.1f} s",
                    "exit codes": None if [code, *codes] == [0, 0] else f"{[code, *codes]}",
                    "the hung job was left open": f"{unfinished} has an outcome" if unfinished else None,
                    "the successor repeats no finished job": f"{len(twice)} repeated" if twice else None,
                    "and pays again for the hung call alone": None if len(again) == 1 else f"{len(again)} calls",
                },
            )
        ]


async def stopped_twice(stage: Stage) -> list[Finding]:
    """Under load: some SIGTERMs, each drained without a repeat; then one followed by a second, which leaves at once."""
    count, stops = stage.of((8_000, 5), (1_200, 1))
    async with stage.scene("13-twice", cheap="labels seed=3 doubt=5% delay=0.3", parallel=64) as scene:
        await scene.publish(tickets(count))
        worker = scene.worker()
        scene.may_end.add(worker)
        codes = []
        for number in range(stops):
            await scene.share((number + 1) / (stops + 2), count)
            codes += await scene.stopped(worker)
            worker.start()
        await scene.share((stops + 1) / (stops + 2), count)
        await scene.watch.look()
        await asyncio.to_thread(worker.wait_for_event, "worker_ready", within=60)
        before = len(scene.outcomes()) - scene.answered()
        scene.cheap.hold()  # so that no drain ends before the second signal comes
        await scene.busy(10)
        worker.terminate()
        await asyncio.to_thread(worker.wait_for_event, "worker_draining", within=10)
        worker.terminate()
        told = time.monotonic()
        code = await asyncio.to_thread(worker.wait, 10)
        out = time.monotonic() - told
        scene.killed_at.append(time.time())  # for the laws a second signal is one
        scene.cheap.release()
        worker.start()
        late = await scene.caught_up(120)
        codes += await scene.stopped(worker)
        return [
            await scene.finding(
                "13-twice",
                f"SIGTERM x {stops} under load, then twice in a row",
                idle_within=SESSION + REVOKE + 15,
                notes=[f"out {out:.2f} s after the second signal, code {code}"],
                asked={
                    "lag 0": late,
                    "a drain repeats nothing": f"{before} duplicates before the second signal" if before else None,
                    "the second signal leaves at once": None if out < 2 and code == 1 else f"{out:.1f} s, code {code}",
                    "exit codes": None if not any(codes) else f"{codes}",
                },
            )
        ]
