"""A job that its worker dies of: it costs a few restarts, then it is a dead letter, and its neighbours have answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import World, ids, repeats

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(apache_kafka: ApacheKafka) -> World:
    world = World(apache_kafka.bootstrap)
    await world.make()
    return world


async def mortal(world: World, folder: Path) -> asyncio.subprocess.Process:
    arguments = [world.bootstrap, world.name, str(folder / "journal"), str(folder / "state")]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.mortal_process", *arguments, cwd=ROOT
    )


@pytest.mark.parametrize("poison", [pytest.param(b"exit-now", marks=pytest.mark.slow), b"raise-always"])
async def test_a_job_that_three_processes_died_of_runs_alone_and_then_is_a_dead_letter(
    world: World, tmp_path: Path, poison: bytes
) -> None:
    """The fourth death, alone, condemns it. Nobody else is condemned, though others were in flight each time."""
    jobs = ids(100)
    await world.publish([*jobs[:50], poison, *jobs[50:]])
    everything = {*jobs, b"dead-" + poison}
    deaths = 0
    while True:
        child = await mortal(world, tmp_path)
        async with asyncio.timeout(60):
            while child.returncode is None and not set(await world.read()) >= everything:
                pass
        if child.returncode is None:
            child.terminate()
            assert await child.wait() == 0
            break
        assert child.returncode == (9 if poison.startswith(b"exit") else 1)
        deaths += 1
    found = await world.read()
    assert set(found) == everything
    starts = [line.split() for line in (tmp_path / "journal").read_bytes().splitlines()]
    running = [int(count) for count, value in starts if value == poison]
    print(f"deaths={deaths} duplicates={repeats(found)} beside it ran {running}")
    assert deaths == len(running) == 4
    assert running[3] == 1
