"""Worlds in virtual time: the laws hold in each of them, and each planted defect breaks a law in some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.plants import PLANTS
from tests.sim.runs import EXPECTED, Tally, caught, run
from tests.sim.told import Told
from tests.sim.world import run_world

WORLDS = 60  # .ci/run runs 5,000
PATIENCE = 300  # worlds in which a planted defect is caught at the latest
ROOT = Path(__file__).parents[2]


def _stories(tally: Tally) -> str:
    return "\n\n".join(map(str, tally.failed[:3])) + f"\n{len(tally.failed)} of {tally.worlds} worlds broke a law"


@pytest.mark.timeout(900)  # on a machine that does much else
def test_the_laws_hold_in_some_worlds() -> None:
    """L1 to L4, L6, L7 and L8, by ids, whatever two workers and their broker are put through."""
    tally = run(range(1, WORLDS + 1))
    print(tally.table())
    assert not tally.failed, _stories(tally)


def test_the_same_seed_gives_the_same_run() -> None:
    """To the last event, in this process and in another one with other hashes."""
    seeds = (3, 4, 5)
    digests = [run_world(seed).digest for seed in seeds]
    assert digests == [run_world(seed).digest for seed in seeds]
    assert len(set(digests)) == len(seeds)
    code = f"from tests.sim.world import run_world; print(*[run_world(seed).digest for seed in {seeds}])"
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert other.stdout.split() == digests


def test_a_world_is_as_large_as_promised() -> None:
    """200 jobs, two workers, four partitions, three faults."""
    for seed in range(1, 6):
        told = run_world(seed)
        assert told.jobs >= 200 - 10  # some of the 200 are bytes that are no job
        assert len(told.faults) >= 3
        assert told.counts["started"] >= 2


@pytest.fixture(scope="module")
def found() -> dict[str, Told | None]:
    """Each planted defect, and the first world that noticed it: looked for side by side."""
    return caught(sorted(PLANTS), range(1, PATIENCE + 1))


@pytest.mark.timeout(900)  # the first of them looks for all
@pytest.mark.slow
@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_defect_is_caught(plant: str, found: dict[str, Told | None]) -> None:
    """Within a few hundred worlds; the story names law and seed."""
    told = found[plant]
    assert told is not None, f"no world of {PATIENCE} noticed {plant}"
    assert f"--seed {told.seed}" in str(told)


def test_every_planted_defect_has_its_place() -> None:
    """What it changes stands there, or it would be planted in vain: LookupError says which wants planting anew."""
    for plant in PLANTS.values():
        with plant():
            pass
    assert len(PLANTS) >= 13


def test_what_is_counted_is_known() -> None:
    """The table can't lose a row unnoticed."""
    assert len(EXPECTED) == len(set(EXPECTED)) > 50
