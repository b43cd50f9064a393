"""Row 1: kill -9, mid-flight, at random and at each point of a job's way; and the stock agent under the same kills."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.faults import stock
from tests.faults.finding import Finding
from tests.faults.planted import POINTS
from tests.faults.scene import REVOKE, SESSION, tickets
from tests.faults.stage import Stage
from tests.support.evidence import Disturbance, Outcome, Place, Published, outcome_id
from tests.support.fake_process import ROOT, FakeProcess
from tests.support.laws import check, lost_jobs
from tests.support.processes import Child, ChildError
from tests.support.topics import Reader, Seen, create_topics, publish

CHEAP = "labels seed=3 doubt=5%"
QUIET = 12.0  # seconds without a result after which the stock agent is taken to be done


def kill_test(stage: Stage) -> tuple[int, int, str]:
    """Jobs, kills and the model's script: 1% of the calls take 40 times longer, and longer than any commit interval."""
    count, kills = stage.of((20_000, 4), (3_000, 1))
    delay, slow = stage.of((0.25, 10.0), (0.15, 6.0))
    return count, kills, f"{CHEAP} delay={delay} | late share=1% delay={slow}"


async def killed(stage: Stage) -> list[Finding]:
    """The kill test: one worker with 100 and more calls open, killed at even parts of the way and started again."""
    count, kills, script = kill_test(stage)
    async with stage.scene("1", cheap=script, parallel=stage.of(128, 64)) as scene:
        await scene.publish(tickets(count))
        worker = scene.worker()
        open_at_kills = []
        for number in range(kills):
            await scene.share((number + 1) / (kills + 1), count)
            open_at_kills.append(await scene.busy(stage.of(100, 40)))
            await scene.kill(worker)
            worker.start()
        late = await scene.caught_up(240)
        codes = await scene.stopped()
        return [
            await scene.finding(
                "1",
                f"kill -9 x {kills}, {count} jobs",
                # A dead member is noticed after a session; a late call holds the watermark before a kill and after.
                idle_within=SESSION + REVOKE + 30,
                notes=[f"calls open at the kills: {open_at_kills}"],
                asked={
                    "lag 0": late,
                    "exit codes": None if codes == [0] else f"{codes}",
                },
            )
        ]


async def killed_at_random(stage: Stage) -> list[Finding]:
    """Two workers, one of them killed every 3 to 7 seconds."""
    count, kills = stage.of((15_000, 8), (2_000, 2))
    dice = stage.dice("1-random")
    async with stage.scene("1-random", cheap=f"{CHEAP} delay=0.3", parallel=64) as scene:
        await scene.publish(tickets(count))
        crew = [scene.worker(), scene.worker()]
        await scene.ready(*crew)
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(3, 7))  # the fault's own pace
            victim = dice.choice(crew)
            await scene.kill(victim)
            victim.start()
        late = await scene.caught_up(240)
        codes = await scene.stopped()
        return [
            await scene.finding(
                "1-random",
                f"kill -9 every 3-7 s x {kills}, 2 workers",
                idle_within=kills * SESSION + 30,
                asked={"lag 0": late, "exit codes": None if codes == [0, 0] else f"{codes}"},
            )
        ]


async def killed_at_points(stage: Stage) -> list[Finding]:
    """One worker after another dies at each point of a job's way; the last one finishes what they left."""
    # What is open at a kill may be repeated: few calls beside many jobs, or seven kills pass 2% of them.
    count, parallel = stage.of((12_000, 24), (3_000, 8))
    dice = stage.dice("1-points")
    async with stage.scene("1-points", cheap=f"{CHEAP} delay=0.02", parallel=parallel) as scene:
        await scene.publish(tickets(count))
        alive = []
        for point in POINTS:
            # Of what a worker sees in its share of the jobs; `before_ack` and `taken` pass once a batch.
            number = dice.randrange(5, 12) if point in ("before_ack", "taken") else dice.randrange(40, count // 14)
            worker = scene.worker("--instance", "points", plants=[f"kill={point}:{number}"])
            code = await asyncio.to_thread(_code, worker, 60.0)
            scene.killed_at.append(time.time())
            if code != -9:
                alive.append(f"{point}:{number} ended with {code}")
        scene.worker("--instance", "points")
        late = await scene.caught_up(120)
        codes = await scene.stopped()
        return [
            await scene.finding(
                "1-points",
                f"kill -9 at {len(POINTS)} points of a job's way",
                idle_within=120,
                asked={
                    "every point was reached": "; ".join(alive) or None,
                    "lag 0": late,
                    "exit codes": None if codes == [0] else f"{codes}",
                },
            )
        ]


def _code(worker: Child, within: float) -> int:
    try:
        return worker.wait(within)
    except TimeoutError:
        worker.kill()
        return 0


async def stock_killed(stage: Stage) -> list[Finding]:
    """The same kill test on the stock agent: same jobs, same model, same kills, 100 coroutines."""
    count, kills, script = kill_test(stage)
    kafka = await stage.broker()
    folder = stage.folder / "stock"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"stock{time.time_ns() % 10**9}"
    began = time.monotonic()
    await create_topics(kafka.bootstrap, {f"{name}.jobs": 8, f"{name}.results": 8})
    jobs = [(id_, item[1]) for id_, item in tickets(count)]
    places = await publish(kafka.bootstrap, f"{name}.jobs", [value for _, value in jobs if value])
    published = [Published(id_, Place(f"{name}.jobs", *place)) for (id_, _), place in zip(jobs, places, strict=True)]
    with FakeProcess(folder / "model.jsonl", script, name="stock") as model:
        environment = {
            "STOCK_NAME": name,
            "STOCK_BROKER": kafka.bootstrap,
            "STOCK_MODEL": model.url,
            "STOCK_DATA": str(folder / "data"),
        }
        command = [sys.executable, "-m", "tests.faults.stock", "worker", "-l", "warn"]
        worker = Child(command, log=folder / "stock.log", environment=environment, cwd=ROOT, name="the stock agent")
        open_at_kills = []
        try:
            async with Reader(kafka.bootstrap, f"{name}.results") as reader:
                worker.start()
                for number in range(kills):
                    await reader.until(_enough(worker, count * (number + 1) // (kills + 1)), within=300)
                    open_at_kills.append(model.counters()["in_flight"])
                    await asyncio.to_thread(worker.kill)
                    worker.start()
                await _quiet(reader, count)
                seen = list(reader.seen)
        finally:
            await asyncio.to_thread(worker.stop)
        entries = model.entries()
    outcomes = [
        Outcome("result", Place(s.topic, s.partition, s.offset), None, id_, outcome_id=outcome_id(id_, 0))
        for s in seen
        if (id_ := stock.one(s.value or b""))
    ]
    report = check(published, outcomes, seed=stage.seed, disturbance=Disturbance(kills=kills, in_flight=100))
    report.calls = len(entries)
    lost = len(lost_jobs(published, outcomes))
    same = None if lost else "it has lost none: this run shows no difference"
    notes = [f"calls open at the kills: {open_at_kills}; answered twice or more: {_twice(outcomes)} jobs"]
    seconds = time.monotonic() - began
    what = f"the same kills, stock Faust agent, concurrency=100, {count} jobs"
    return [Finding("1-stock", what, report, lost, seconds, notes, {"it loses some": same}, baseline=True)]


def _enough(worker: Child, count: int) -> Callable[[list[Seen]], bool]:
    """Whether that many jobs have a result. ChildError where the worker has ended on its own."""

    def looked(seen: list[Seen]) -> bool:
        if not worker.running:
            raise ChildError(f"{worker.name} ended with {worker.returncode}:\n{worker.tail()}")
        return len({stock.one(s.value or b"") for s in seen}) >= count

    return looked


async def _quiet(reader: Reader, count: int) -> None:
    """Reads until every job is there, or nothing has come for a while though the worker runs."""
    last = time.monotonic()
    known = len(reader.seen)
    while time.monotonic() - last < QUIET and len({stock.one(s.value or b"") for s in reader.seen}) < count:
        await reader.read()
        if len(reader.seen) != known:
            known, last = len(reader.seen), time.monotonic()
        await asyncio.sleep(0.3)


def _twice(outcomes: list[Outcome]) -> int:
    return sum(number > 1 for number in Counter(outcome.job_id for outcome in outcomes).values())
