"""`sluiceway resume` as a process, and what the workers that hold partitions see of it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from tests.support import rig
from tests.support.processes import run_sluiceway
from tests.support.rig import Rig
from tests.support.roles import until
from tests.support.topics import Address

from sluiceway.core.control import Hold, held
from sluiceway.core.held import Partition
from sluiceway.kafka.control import Control
from sluiceway.kafka.holds import ControlHolds
from sluiceway.kafka.security import read_connection

JOBS = "sluiceway.jobs"


async def cli(*arguments: str) -> Any:
    return await asyncio.to_thread(run_sluiceway, *arguments, within=90)


@pytest.fixture
async def cluster(any_rig: Rig) -> Address:
    """A cluster with our topics, empty."""
    await any_rig.open(rig.models("http://127.0.0.1:1", "http://127.0.0.1:1"), {"triage": rig.triage()}, partitions=2)
    return any_rig.bootstrap


async def test_what_a_flood_holds_is_listed_and_goes_on_when_it_is_resumed(cluster: Address) -> None:
    """Named by group, topic, partition or all; the worker is told; a later flood holds again; other processes know."""
    done = await cli("resume", "-b", cluster)
    assert (done.returncode, done.stdout) == (0, "Nothing is held.\n")
    told: list[tuple[str, Partition]] = []
    control = Control(read_connection(str(cluster)))
    await control.start()
    holds = ControlHolds(control, "w-1", lambda: 1_700_000_000.0, lambda *resumed: told.append(resumed))
    try:
        places = [Partition(JOBS, 0), Partition(JOBS, 1)]
        for group in ("g", "h"):
            for partition in places:
                holds.flooded(group, partition)
        await until(lambda: len(control.values("hold")) == 4)
        assert set(await holds.known("g")) == set(await holds.known("h")) == set(places)

        done = await cli("resume", "-b", cluster)
        assert done.returncode == 0
        assert "g sluiceway.jobs[1]: flood since 2023-11-14 22:13:20Z" in done.stdout
        assert "by w-1" in done.stdout
        assert set(await holds.known("g")) == set(places)  # looking changes nothing

        done = await cli("resume", "--group", "g", "--topic", JOBS, "--partition", "1", "-b", cluster, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        tree = orjson.loads(done.stdout)
        assert [(one["group"], one["partition"]) for one in tree["resumed"]] == [("g", 1)]
        assert {(one["group"], one["partition"]) for one in tree["held"]} == {("g", 0), ("h", 0), ("h", 1)}
        assert set(await holds.known("g")) == {places[0]}
        assert told == [("g", places[1])]

        done = await cli("resume", "--topic", "no.such.topic", "-b", cluster)
        assert (done.returncode, "not held" in done.stdout) == (1, True)
        assert (await cli("resume", "--all", "-b", cluster)).returncode == 0
        assert list(await holds.known("g")) == list(await holds.known("h")) == []
        assert set(told) == {(group, partition) for group in "gh" for partition in places}
        assert len(told) == 4

        holds.flooded("g", places[0])  # by a clock that has not moved
        await until(lambda: places[0] in held(control.records, "g"))
        other = Control(read_connection(str(cluster)))
        await other.start()
        assert set(held(other.records, "g")) == {places[0]}
        hold = held(other.records, "g")[places[0]]
        assert isinstance(hold, Hold)
        assert hold.instance == "w-1"
        await other.stop(5.0)
    finally:
        assert await holds.stop(5.0)
        await control.stop(5.0)
