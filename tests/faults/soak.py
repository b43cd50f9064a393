"""Row 18: everything at once. Bad records and copies among the jobs, three workers, and a fault every 15 seconds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.faults.clocks import negative_durations
from tests.faults.finding import Finding
from tests.faults.inputs import POISON, copies
from tests.faults.scene import REVOKE, SESSION, Job, tickets
from tests.faults.stage import Stage

CHEAP = "labels seed=3 doubt=5% delay=0.05 | late share=1% delay=2 | 503 share=2% times=1"
FREEZE = 8.0  # seconds


async def soaked(stage: Stage) -> list[Finding]:
    count, faults, every = stage.of((20_000, 16, 15.0), (3_000, 3, 6.0))
    dice = stage.dice("18")
    async with stage.scene("18", cheap=CHEAP, parallel=32) as scene:
        kafka = await stage.broker()
        clock = scene.rig.folder / "clock"
        clock.write_text("0")
        poison = [(None, (b"bad-%d" % n, dice.choice(list(POISON.values())[:-1]), ())) for n in range(count // 25)]
        jobs: list[Job] = [*copies(tickets(count), dice), *poison]
        dice.shuffle(jobs)
        await scene.publish(jobs)
        crew = [scene.worker(plants=[f"clock={clock}"]) for _ in range(3)]
        await scene.ready(*crew)
        codes: list[int] = []

        async def killed() -> None:
            worker = dice.choice(crew)
            await scene.kill(worker)
            worker.start()
            await scene.ready(worker)  # one that starts while the broker is down ends, and says so

        async def stopped() -> None:
            worker = dice.choice(crew)
            codes.extend(await scene.stopped(worker))
            worker.start()
            await scene.ready(worker)

        async def restarted() -> None:
            await asyncio.to_thread(kafka.restart, clean=dice.random() < 0.5)

        async def frozen() -> None:
            kafka.freeze()
            await asyncio.sleep(FREEZE)  # the fault's own length
            kafka.thaw()

        async def hung() -> None:
            scene.cheap.freeze()
            await asyncio.sleep(FREEZE)
            scene.cheap.thaw()

        async def jumped() -> None:
            clock.write_text(str(dice.choice((-7200.0, 0.0, 7200.0))))

        kinds: list[Callable[[], Awaitable[None]]] = [killed, stopped, restarted, frozen, hung, jumped]
        happened: Counter[str] = Counter()
        order = [kinds[n % len(kinds)] for n in range(faults)]
        dice.shuffle(order)
        began = time.monotonic()
        for number, fault in enumerate(order):
            await asyncio.sleep(max(0.0, began + number * every + dice.uniform(0, every / 3) - time.monotonic()))
            await fault()
            happened[fault.__name__] += 1
        healed = time.monotonic()
        late = await scene.caught_up(300)
        recovered = time.monotonic() - healed
        codes += await scene.stopped(*crew)
        negative = negative_durations(scene)
        return [
            await scene.finding(
                "18",
                f"mixed soak: {faults} faults, one every {every:.0f} s",
                idle_within=20 + SESSION + REVOKE + 30,
                recovery=recovered,
                notes=[", ".join(f"{name} {number}" for name, number in sorted(happened.items()))],
                asked={
                    "lag 0": late,
                    "no negative durations": f"{negative[:3]}" if negative else None,
                    "exit codes": None if not any(codes) else f"{codes}",
                },
            )
        ]
