"""Workers that share limits: whatever happens to them, their parts never add up to more than the whole.

A world has one log of leases and workers that lag behind it, whose clocks neither agree nor run alike, whose heartbeats
are under way for as long as the dice say, and who crash, stand still and leave.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.control import Lease
from sluiceway.core.share import LEASE, Share

LIMITS = ("a", "b")


@dataclass
class Worker:
    share: Share
    began: float  # in the world's time
    clock: float  # what its own clock said then
    rate: float
    position: int
    sending: list[Lease | None] = field(default_factory=list)

    def now(self, time: float) -> float:
        return self.clock + self.rate * (time - self.began)


@dataclass
class World:
    seed: int
    kind: type[Share] = Share
    skew: float = 10.0  # seconds that a clock may be wrong at a worker's start
    time: float = 10_000.0
    log: list[tuple[str, Lease | None]] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)
    orphans: list[tuple[str, Lease | None]] = field(default_factory=list)  # under way from those who died
    started: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def start(self, name: str) -> None:
        now = self.time + self.dice.uniform(-self.skew, self.skew)
        share = self.kind(name, self.dice.choice((LIMITS, LIMITS, ("a",))), now)
        worker = Worker(share, self.time, now, self.dice.uniform(0.98, 1.02), len(self.log))
        newest = dict(self.log)  # what compaction may leave of it
        for other, lease in newest.items():
            if lease is not None:
                worker.share.see(other, lease, now, stood=True)
        self.workers[name] = worker

    def beat(self, name: str) -> None:
        worker = self.workers[name]
        worker.sending.append(worker.share.beat(worker.now(self.time)))

    def arrive(self, name: str) -> None:
        if self.workers[name].sending:
            self.log.append((name, self.workers[name].sending.pop(0)))

    def read(self, name: str, most: int = 10**9) -> None:
        worker = self.workers[name]
        for other, lease in self.log[worker.position : worker.position + most]:
            worker.share.see(other, lease, worker.now(self.time))
        worker.position = min(len(self.log), worker.position + most)

    def crash(self, name: str) -> None:
        self.orphans += [(name, lease) for lease in self.workers.pop(name).sending]

    def leave(self, name: str) -> None:
        worker = self.workers[name]
        last = worker.share.leave(worker.now(self.time))
        self.orphans += [(name, lease) for lease in [*worker.sending, last]]
        del self.workers[name]

    def step(self) -> None:
        """One thing happens; all but starts and ends happen often."""
        dice, names = self.dice, list(self.workers)
        what = dice.random()
        if (what < 0.03 or not names) and len(names) < 4:
            self.started += 1
            self.start(f"w{self.started}")
        elif what < 0.045:
            self.crash(dice.choice(names))
        elif what < 0.055:
            self.leave(dice.choice(names))
        elif what < 0.25:
            self.beat(dice.choice(names))
        elif what < 0.45:
            self.arrive(dice.choice(names))
        elif what < 0.70:
            self.read(dice.choice(names), dice.choice((1, 2, 10**9)))
        elif what < 0.75 and self.orphans:
            self.log.append(self.orphans.pop(0))
        elif what < 0.78:
            self.time += dice.choice((LEASE, LEASE * 1.05, LEASE * 1.2, 120.0))
        elif what < 0.90:
            self.time += dice.uniform(0.0, 3.0)
        else:
            self.round()

    def round(self) -> None:
        """Nothing goes wrong for a heartbeat."""
        self.time += LEASE / 5
        for _ in range(3):
            for name, worker in self.workers.items():
                if worker.share.due(worker.now(self.time)) <= 0:
                    self.beat(name)
                while worker.sending:
                    self.arrive(name)
            for name in self.workers:
                self.read(name)

    def sums(self) -> dict[str, float]:
        return {
            limit: sum([worker.share.part(limit, worker.now(self.time)) for worker in self.workers.values()])
            for limit in LIMITS
        }

    def most(self, steps: int) -> float:
        """The largest sum of parts that was ever reached."""
        found = 0.0
        for _ in range(steps):
            self.step()
            found = max(found, *self.sums().values())
        return found


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_parts_never_add_up_to_more_than_the_whole(seed: int) -> None:
    """Joins, leaves, crashes, standstills and late heartbeats in any order; clocks that neither agree nor run alike."""
    assert World(seed).most(400) <= 1 + 1e-9


class KnownByNobody(Share):
    """Begins before the others have said that they count it."""

    def part(self, limit: str, now: float) -> float:
        sharers = [other for other in self._others.values() if limit in other.lease.uses]
        return 1 / (1 + len(sharers)) if self.lives(now) else 0.0


class Undying(Share):
    """Keeps its part when its own lease is over."""

    def lives(self, now: float) -> bool:  # noqa: ARG002  what is wrong with it
        return self._lives_until is not None and not self._left


class Resurrected(Share):
    """Goes on where it was when its lease has lapsed, and does not ask to be known anew."""

    def _bear(self, now: float) -> None:  # noqa: ARG002  what is wrong with it
        self._lives_until = None


class Impatient(Share):
    """Counts others' leases from when they were sent."""

    def see(self, worker: str, lease: Lease | None, now: float, *, stood: bool = False) -> None:
        super().see(worker, lease, now, stood=stood)
        for name in [name for name, other in self._others.items() if now > other.lease.at + other.lease.seconds]:
            del self._others[name]


@pytest.mark.parametrize("kind", [KnownByNobody, Undying, Resurrected, Impatient])
def test_each_rule_is_needed(kind: type[Share]) -> None:
    """Without any one of them some world is found in which more than the whole is given out."""
    assert any(World(seed, kind).most(400) > 1 + 1e-9 for seed in range(300))


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_when_nothing_goes_wrong_any_more_all_have_equal_parts_and_nothing_is_left_over(seed: int, steps: int) -> None:
    """Whatever went before: within two leases, however far their clocks are apart."""
    world = World(seed)
    world.most(steps)
    world.start("fresh")
    for _ in range(12):
        world.round()
    for limit in LIMITS:
        parts = [worker.share.part(limit, worker.now(world.time)) for worker in world.workers.values()]
        sharers = [worker for worker in world.workers.values() if limit in worker.share.parts(0.0)]
        assert sorted(set(parts) - {0.0}) == ([1 / len(sharers)] if sharers else [])
        assert sum(parts) == pytest.approx(1.0) or not sharers


def test_a_part_grows_only_after_the_others_lease_has_ended_and_at_once_when_it_leaves() -> None:
    """One of three crashes: a lease and a tenth later the others have halves. Then one says goodbye."""
    world = World(1, skew=0.0)
    for name in ("a", "b", "c"):
        world.start(name)
    world.round()
    world.round()
    assert [round(worker.share.part("a", worker.now(world.time)), 3) for worker in world.workers.values()] == [
        0.333
    ] * 3
    world.crash("c")
    for _ in range(4):
        world.round()
        assert world.sums()["a"] == pytest.approx(2 / 3)
    for _ in range(3):
        world.round()
    assert world.sums()["a"] == pytest.approx(1.0)
    world.leave("b")
    world.log += world.orphans
    world.read("a")
    assert world.sums()["a"] == 1.0


def test_a_new_worker_has_nothing_until_all_others_have_said_that_they_count_it() -> None:
    """And they shrink as soon as they read of it."""
    world = World(1, skew=0.0)
    world.start("a")
    world.round()
    assert world.sums() == {"a": 1.0, "b": world.sums()["b"]}
    world.start("b")
    world.beat("b")
    world.arrive("b")
    world.read("b")
    first, second = (worker.share for worker in world.workers.values())
    assert first.part("a", world.workers["a"].now(world.time)) == 1.0
    assert second.part("a", world.workers["b"].now(world.time)) == 0.0
    world.read("a")
    assert first.part("a", world.workers["a"].now(world.time)) == 0.5
    assert first.due(world.workers["a"].now(world.time)) == 0.0
    world.beat("a")
    world.arrive("a")
    world.read("b")
    assert second.part("a", world.workers["b"].now(world.time)) == 0.5
