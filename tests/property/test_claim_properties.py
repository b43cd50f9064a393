"""Workers that spend one budget: together they never spend more than it, whatever lags behind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.claim import Claims, name_of
from sluiceway.core.control import Lease, Spend
from sluiceway.core.ledger import DayBudget
from sluiceway.core.share import Share

LIMIT = 10_000
DAY = 86_400.0
Entry = tuple[str, Lease | Spend]


@dataclass
class Worker:
    share: Share
    budget: DayBudget
    claims: Claims
    position: int = 0
    sending: list[Entry] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)  # worst and true cost of each in flight

    @property
    def committed(self) -> int:
        return self.budget.spent + self.budget.reserved


@dataclass
class World:
    """One log; `gone` is what those who have left or died had committed."""

    seed: int
    lease: float = 1e6
    kind: type[Claims] = Claims
    time: float = 1_000 * DAY + 100.0
    log: list[Entry] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)
    late: list[Entry] = field(default_factory=list)
    gone: int = 0
    unwritten: int = 0  # of it what the dead had not written down
    started: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def start(self) -> None:
        self.started += 1
        name, budget = f"w{self.started}", DayBudget(LIMIT)
        share = Share(name, [name_of("t")], self.time, seconds=self.lease)
        claims = self.kind(name, {"t": budget}, lambda task: share.sharers(name_of(task)), self.time)
        worker = self.workers[name] = Worker(share, budget, claims)
        for other, record in {(other, type(record)): (other, record) for other, record in self.log}.values():
            self.see(worker, other, record, stood=True)
        worker.position = len(self.log)
        worker.sending.append((name, share.beat(self.time)))

    def see(self, worker: Worker, other: str, record: Lease | Spend, *, stood: bool = False) -> None:
        if isinstance(record, Lease):
            worker.share.see(other, record, self.time, stood=stood)
        else:
            worker.claims.see(other, record, self.time)

    def read(self, worker: Worker, most: int = 10**9) -> None:
        for other, record in self.log[worker.position : worker.position + most]:
            self.see(worker, other, record)
        worker.position = min(len(self.log), worker.position + most)

    def call(self, worker: Worker) -> None:
        """As the runner does: only where its worst cost is left."""
        worst = self.dice.choice((1, 10, 100, 1000))
        if worst <= worker.budget.left(self.time):
            worker.budget.reserve(worst)
            worker.calls.append((worst, self.dice.randint(0, worst)))

    def settle(self, worker: Worker) -> None:
        if worker.calls:
            worst, actual = worker.calls.pop(self.dice.randrange(len(worker.calls)))
            worker.budget.settle(worst, actual, self.time)

    def write(self, name: str) -> None:
        worker = self.workers[name]
        what: Lease | Spend = (
            worker.claims.record(self.time) if self.dice.random() < 0.6 else worker.share.beat(self.time)
        )
        worker.sending.append((name, what))

    def crash(self, name: str) -> None:
        worker = self.workers.pop(name)
        self.late += worker.sending
        written = [record for other, record in self.log if other == name and isinstance(record, Spend)]
        told = written[-1].tasks["t"].committed if written else 0
        self.gone += worker.committed
        self.unwritten += max(0, worker.committed - told)

    def leave(self, name: str) -> None:
        worker = self.workers[name]
        while worker.calls:
            self.settle(worker)
        worker.sending.append((name, worker.claims.record(self.time, last=True)))
        worker.sending.append((name, worker.share.leave(self.time)))
        self.crash(name)

    def step(self, *, deaths: float = 0.01) -> None:
        dice, names = self.dice, list(self.workers)
        self.time += dice.uniform(0.0, 0.2)
        what = dice.random()
        if not names or (what < 0.03 and len(names) < 4):
            self.start()
            return
        name = dice.choice(names)
        worker = self.workers[name]
        if 0.03 <= what < 0.03 + deaths:
            self.crash(name)
        elif what < 0.05:
            self.leave(name)
        elif what < 0.15:
            self.write(name)
        elif what < 0.30 and worker.sending:
            self.log.append(worker.sending.pop(0))
        elif what < 0.50:
            self.read(worker, dice.choice((1, 2, 10**9)))
        elif what < 0.75:
            self.call(worker)
        elif what < 0.90:
            self.settle(worker)
        elif self.late:
            self.log.append(self.late.pop(0))

    def round(self) -> None:
        """All that is due is written and read."""
        self.time += 0.5
        for _ in range(4):
            for name, worker in self.workers.items():
                if worker.share.due(self.time) <= 0:
                    worker.sending.append((name, worker.share.beat(self.time)))
                if worker.claims.due(self.time):
                    worker.sending.append((name, worker.claims.record(self.time)))
                self.log += worker.sending
                worker.sending.clear()
            for worker in self.workers.values():
                self.read(worker)

    def committed(self) -> int:
        return self.gone + sum([worker.committed for worker in self.workers.values()])


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_workers_together_never_spend_more_than_the_budget_while_leases_hold(seed: int) -> None:
    """To the pico-dollar, with records under way for as long as the dice say; those who die included."""
    world = World(seed)
    for _ in range(500):
        world.step()
        assert world.committed() <= LIMIT


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_dead_worker_adds_at_most_what_it_had_not_written_down(seed: int) -> None:
    """Once its lease is over the rest of its claim is free for others: else a crash would cost a day's budget."""
    world = World(seed, lease=10.0)
    for number in range(500):
        world.step(deaths=0.0)
        if number % 10 == 0:
            world.round()  # nobody is cut off
        if number % 50 == 0 and world.workers:
            world.crash(next(iter(world.workers)))
            for _ in range(30):
                world.round()
        assert world.committed() <= LIMIT + world.unwritten


class Unclaimed(Claims):
    """Spends what it claims without reading it back."""

    def record(self, now: float, *, last: bool = False) -> Spend:
        spend = super().record(now, last=last)
        for task, claim in spend.tasks.items():
            self._budgets[task].granted = claim.claimed
        return spend


class Unlowered(Claims):
    """Goes on with an old grant when it has claimed less."""

    def record(self, now: float, *, last: bool = False) -> Spend:
        granted = {task: budget.granted for task, budget in self._budgets.items()}
        spend = super().record(now, last=last)
        for task, budget in self._budgets.items():
            budget.granted = granted[task]
        return spend


class Trusting(Claims):
    """Counts what others have committed, and not what they may."""

    def _taken(self, task: str, day: str) -> int:
        return sum([claims[task].committed for claims in self._others.values() if claims[task].day == day])


@pytest.mark.parametrize("kind", [Unclaimed, Unlowered, Trusting])
def test_each_rule_is_needed(kind: type[Claims]) -> None:
    """Without any one of them some world spends more than its budget."""

    def overspends(seed: int) -> bool:
        world = World(seed, kind=kind)
        for _ in range(500):
            world.step(deaths=0.0)
            if world.committed() > LIMIT:
                return True
        return False

    assert any(overspends(seed) for seed in range(200))


@given(st.integers(0, 2**32), st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_when_all_is_quiet_what_is_left_is_granted_in_equal_parts(seed: int, steps: int) -> None:
    """And each worker is told so; one that has just come too."""
    world = World(seed, lease=10.0)
    for _ in range(steps):
        world.step(deaths=0.0)
    world.log += world.late
    world.late.clear()
    world.start()
    for _ in range(40):
        world.round()
    left = LIMIT - world.committed()
    parts = [worker.budget.left(world.time) for worker in world.workers.values()]
    assert all(worker.claims.settled(world.time) for worker in world.workers.values()) or left < len(parts)
    assert min(parts) >= left // len(parts) - 1
    assert sum(parts) <= left


def test_a_new_day_begins_with_a_part_for_each_before_anything_is_said() -> None:
    """A quarter of it among all, so that no job is refused at midnight; soon after each has its half."""
    world = World(3, lease=100.0)
    world.start()
    world.start()
    for _ in range(10):
        world.round()
    first, second = world.workers.values()
    while world.committed() < LIMIT * 0.9:
        for worker in (first, second):
            world.call(worker)
        world.round()
    for worker in (first, second):
        while worker.calls:
            world.settle(worker)
    world.time = 1_001 * DAY
    assert [worker.budget.left(world.time) for worker in (first, second)] == [LIMIT // 8] * 2
    for _ in range(10):
        world.round()
    assert [worker.budget.left(world.time) for worker in (first, second)] == [LIMIT // 2] * 2


def test_all_of_a_budget_is_spent_by_the_one_worker_that_is_busy() -> None:
    """The idle one gives up its part again and again; what can't be used is less than the dearest call a worker."""
    world = World(5, lease=100.0)
    world.start()
    world.start()
    for _ in range(10):
        world.round()
    busy, idle = world.workers.values()
    for _ in range(300):
        if busy.budget.left(world.time) >= 10:
            busy.budget.reserve(10)
            busy.budget.settle(10, 10, world.time)
        world.round()
        busy.budget.left(world.time)
        for _ in range(10):
            if busy.budget.left(world.time) >= 10:
                busy.budget.reserve(10)
                busy.budget.settle(10, 10, world.time)
    assert idle.committed == 0
    assert LIMIT - 2 * 10 <= busy.committed <= LIMIT
