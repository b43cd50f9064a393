"""Limits shared between processes through the control topic, on real brokers and real sockets."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_models import FakeAnswer, FakeModels, FakeRequest
from tests.support.processes import Child
from tests.support.roles import until
from tests.support.topics import Address, create_topics

from sluiceway.clock import WallClock
from sluiceway.core.control import Spend
from sluiceway.core.ledger import DayBudget
from sluiceway.kafka.control import Control
from sluiceway.kafka.embedded import SETTINGS
from sluiceway.kafka.security import read_connection
from sluiceway.kafka.shares import Shares, worker_name

RATE = 40  # requests a second that the server's limit allows
BURST = 5.0  # seconds' worth that a token bucket gathers
LATE = 2.0  # seconds by which this machine may hold requests back, so that they come bunched
ROOT = Path(__file__).parents[2]


class LimitedServer:
    """Notes when each request came; it refuses none, so that what it saw is what was sent."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, _: FakeRequest) -> FakeAnswer:
        self.times.append(time.monotonic())
        return FakeAnswer(value={"label": "login"})

    def most_over(self) -> float:
        """By how many requests a token bucket of the limit would have been overdrawn at most."""
        level, at, worst = BURST * RATE, self.times[0], 0.0
        for when in self.times:
            level = min(BURST * RATE, level + RATE * (when - at)) - 1
            at, worst = when, min(worst, level)
        return -worst


def settings(kafka: Address) -> list[str]:
    return [f"{key}={value}" for key, value in SETTINGS.items()] if kafka.kind == "embedded" else []


def process(kafka: Address, topic: str, url: str, folder: Path, name: str, *, shared: bool = True) -> Child:
    given = [argument for pair in settings(kafka) for argument in ("--setting", pair)]
    command = [sys.executable, "-m", "tests.support.sharing_process", str(kafka), topic, url, *given]
    return Child(
        [*command, "--name", name, "--rpm", str(RATE * 60), *["--shared"] * shared],
        log=folder / name,
        cwd=ROOT,
        name=name,
    )


def part(child: Child) -> str:
    """What the process said last of its part."""
    lines = [line for line in child.log.read_text().splitlines() if line.startswith("part ")]
    return lines[-1].removeprefix("part ") if lines else ""


@asynccontextmanager
async def running(*children: Child) -> AsyncIterator[None]:
    try:
        for child in children:
            await asyncio.to_thread(child.start)
        yield
    finally:
        for child in children:
            await asyncio.to_thread(child.kill)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each for itself"])
@pytest.mark.slow_on_embedded
async def test_a_rate_limit_that_is_enforced_across_two_processes(
    any_kafka: Address, prefix: str, tmp_path: Path, shared: bool
) -> None:
    """A known complaint: two processes, each within the limit and over it together. (Each for itself, they are.)

    800 requests are what both may send in 15 s and what each for itself sends in 9.
    """
    topic = f"{prefix}control"
    await create_topics(any_kafka, {topic: 1}, {"cleanup.policy": "compact"})
    server = LimitedServer()
    async with FakeModels(server) as fake:
        first, second = (process(any_kafka, topic, fake.url, tmp_path, name, shared=shared) for name in ("one", "two"))
        async with running(first, second):
            await until(lambda: len(server.times) >= 800, within=120.0)
            if shared:
                assert part(first) == part(second) == "0.5"
    if shared:
        assert server.most_over() <= LATE * RATE
    else:
        assert server.most_over() > LATE * RATE


async def test_workers_come_leave_and_are_killed_and_the_sum_stays_within_the_limit(
    apache_kafka: ApacheKafka, prefix: str, tmp_path: Path
) -> None:
    """From one to three and back, one of them by kill -9: each has its part, and a dead one's is used again."""
    kafka = Address(apache_kafka.bootstrap, "apache")
    topic = f"{prefix}control"
    await create_topics(kafka, {topic: 1}, {"cleanup.policy": "compact"})
    server = LimitedServer()
    third = 1 / 3
    async with FakeModels(server) as fake:
        one, two, three = (process(kafka, topic, fake.url, tmp_path, name) for name in ("one", "two", "three"))
        async with running(one):
            await until(lambda: part(one) == "1.0")
            async with running(two, three):
                await until(lambda: part(one) == part(two) == part(three) == str(third), within=60.0)
                await asyncio.to_thread(three.kill)
                await until(lambda: part(one) == part(two) == "0.5", within=60.0)
                two.signal(signal.SIGTERM)
                await until(lambda: part(one) == "1.0", within=60.0)
                await until(lambda: not two.running)
                assert two.returncode == 0
                assert part(two) == "0.0"
    assert server.most_over() <= LATE * RATE


@pytest.mark.slow_on_embedded
async def test_a_days_budget_is_spent_by_several_workers_and_never_passed(any_kafka: Address, prefix: str) -> None:
    """Two spend it as fast as they can, one comes later, one of them dies: all but a few calls' worth, and no more."""
    topic = f"{prefix}control"
    await create_topics(any_kafka, {topic: 1}, {"cleanup.policy": "compact"})
    clock, call = WallClock(), 10
    opened: list[tuple[Control, Shares, DayBudget]] = []

    async def worker() -> DayBudget:
        control = Control(read_connection(str(any_kafka), settings(any_kafka)), topic)
        await control.start()
        budget = DayBudget(10_000)
        shares = Shares(control, worker_name("w"), [], lambda _: None, clock.now, budgets={"t": budget}, seconds=3.0)
        opened.append((control, shares, budget))
        assert budget.left(clock.now()) == 0  # nothing before it is granted
        await shares.start()
        return budget

    def spent() -> int:
        return sum([budget.spent for _, _, budget in opened])

    async def spend(budget: DayBudget, most: int) -> None:
        """Until `most` is spent by all together, or nothing is left for anybody else."""
        while spent() < most:
            if call <= budget.left(clock.now()):
                budget.reserve(call)
                budget.settle(call, call, clock.now())
            await asyncio.sleep(0.001)

    try:
        first, second = await worker(), await worker()
        assert first.left(clock.now()) >= 2_000
        assert second.left(clock.now()) == 5_000
        async with asyncio.timeout(60):
            await asyncio.gather(spend(first, 5_000), spend(second, 5_000))
        third = await worker()
        assert third.left(clock.now()) > 0
        control, dead, _ = opened[1]
        assert dead._task is not None
        dead._task.cancel()  # no more heartbeats, and no last word
        written = [record for key, record in control.values("spend").items() if key == dead._spend_key]
        assert isinstance(written[0], Spend)
        unwritten = second.spent - written[0].tasks["t"].committed
        async with asyncio.timeout(90):
            await asyncio.gather(spend(first, 10_000 - 3 * call), spend(third, 10_000 - 3 * call))
        assert spent() <= 10_000 + unwritten
        assert first.left(clock.now()) + third.left(clock.now()) <= 10_000 - spent() + unwritten
    finally:
        for control, shares, _ in opened:
            assert await shares.stop(10.0)
            assert await control.stop(5.0)


async def test_who_is_cut_off_from_the_cluster_has_no_part_when_its_lease_is_over_and_gets_it_back(
    apache_kafka: ApacheKafka, prefix: str
) -> None:
    """The others may have taken it. Nothing raises; a frozen broker that thaws is enough."""
    topic = f"{prefix}control"
    await create_topics(apache_kafka.bootstrap, {topic: 1}, {"cleanup.policy": "compact"})
    control = Control(read_connection(apache_kafka.bootstrap), topic)
    await control.start()
    seen: list[Mapping[str, float]] = []
    shares = Shares(control, worker_name("w"), ["m"], seen.append, WallClock().now, seconds=2.0)
    try:
        await shares.start()
        await until(lambda: shares.parts == {"m": 1.0})
        apache_kafka.freeze()
        try:
            await until(lambda: shares.parts == {"m": 0.0})
        finally:
            apache_kafka.thaw()
        await until(lambda: shares.parts == {"m": 1.0})
        assert seen[0] == {"m": 0.0}
    finally:
        assert await shares.stop(10.0)
        assert control.values("lease") == {} or await control.catch_up(10.0)
        assert control.values("lease") == {}
        await control.stop(5.0)
