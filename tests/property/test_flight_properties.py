"""What was in flight, held to an oracle: a state machine, with a death before and after each write."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.support.stores import a_commit, a_record, a_store

from sluiceway.archive.flight import SUSPECT_DEATHS, StoreFlight
from sluiceway.core.held import Commit
from sluiceway.ports import Record

# Few, so that the machine meets the same one often.
RECORDS = [a_record(1), a_record(2), a_record(1, partition=1)]
JOBS = [*(("g", record) for record in RECORDS), ("h", RECORDS[0]), ("g", a_record(1, timestamp=2.0))]
Job = tuple[str, Record]


@dataclass
class Oracle:
    """What is known, in the plainest form: of this run, and of those before it."""

    running: dict[Job, bool] = field(default_factory=dict)  # -> alone
    published: set[Job] = field(default_factory=set)
    earlier: dict[Job, bool] = field(default_factory=dict)  # published by an earlier run -> and settled by this one
    deaths: dict[Job, tuple[int, bool]] = field(default_factory=dict)

    def publish(self, job: Job) -> None:
        taken = self.running.pop(job, None) is not None
        if job in self.earlier:
            self.earlier[job] = True
        if taken or job not in self.earlier:
            self.published.add(job)
        self.deaths.pop(job, None)

    def die(self, job: Job, *, alone: bool) -> None:
        deaths, before = self.deaths.get(job, (0, False))
        self.deaths[job] = (deaths + 1, before or alone)

    def cover(self, group: str, partition: int, done: set[int]) -> None:
        for job in JOBS:
            if job[0] == group and job[1].partition == partition and job[1].offset in done:
                self.published.discard(job)
                if self.earlier.get(job):
                    del self.earlier[job]

    def next_run(self, *, died: bool) -> None:
        if died:
            for job, alone in self.running.items():
                self.die(job, alone=alone and len(self.running) == 1)
        self.running.clear()
        self.earlier = dict.fromkeys([*self.earlier, *self.published], False)
        self.published.clear()


class FlightMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.root = Path(tempfile.mkdtemp())
        self.opened = 0
        self.known, self.written = Oracle(), Oracle()
        self.open(self.root / "0")

    def open(self, directory: Path) -> None:
        self.store = a_store(directory)
        self.flights = {group: StoreFlight(self.store, group) for group in ("g", "h")}

    def act(self, what: str, job: Job, *, dies: bool, alone: bool = False, commit: Commit | None = None) -> None:
        """Does it, and lets the turn end; or dies before the turn's end, so that nothing of it was written."""
        group, record = job
        flight = self.flights[group]

        async def acts() -> None:
            if what == "take":
                flight.take(record, alone=alone)
            elif commit is not None:
                flight.cover(commit)
            else:
                getattr(flight, what)(record)
            if dies:
                self.image()
            await asyncio.sleep(0)

        self.runner.run(acts())
        if dies:
            self.next_run(self.image_of(self.opened), died=True)
        else:
            self.written = copy.deepcopy(self.known)

    def image_of(self, number: int) -> Path:
        return self.root / str(number)

    def image(self) -> None:
        self.opened += 1
        into = self.image_of(self.opened)
        into.mkdir()
        for file in self.store.directory.glob("store.db*"):
            shutil.copy(file, into)

    def next_run(self, directory: Path, *, died: bool) -> None:
        self.store.close()
        self.known = copy.deepcopy(self.written)
        self.known.next_run(died=died)
        self.written = copy.deepcopy(self.known)
        self.open(directory)

    @rule(job=st.sampled_from(JOBS), alone=st.booleans(), dies=st.booleans())
    def take(self, job: Job, alone: bool, dies: bool) -> None:
        self.known.running[job] = alone
        self.act("take", job, dies=dies, alone=alone)

    @rule(job=st.sampled_from(JOBS), dies=st.booleans())
    def publish(self, job: Job, dies: bool) -> None:
        self.known.publish(job)
        self.act("publish", job, dies=dies)

    @rule(job=st.sampled_from(JOBS), dies=st.booleans())
    def drop(self, job: Job, dies: bool) -> None:
        self.known.running.pop(job, None)
        self.act("drop", job, dies=dies)

    @rule(job=st.sampled_from(JOBS), dies=st.booleans())
    def blame(self, job: Job, dies: bool) -> None:
        """The flight learns of it at the next opening only: this process is at its end."""
        if job in self.known.running:
            alone = self.known.running.pop(job)
            self.act("blame", job, dies=dies)
            if not dies:
                self.written.die(job, alone=alone)
                self.image()
                self.next_run(self.image_of(self.opened), died=True)

    @rule(
        job=st.sampled_from(JOBS),
        offset=st.integers(0, 3),
        above=st.sets(st.integers(0, 3)),
        dies=st.booleans(),
    )
    def ack_commit(self, job: Job, offset: int, above: set[int], dies: bool) -> None:
        finished = sorted(one for one in above if one > offset)
        partition = job[1].partition
        self.known.cover(job[0], partition, {*range(offset), *finished})
        self.act("cover", job, dies=dies, commit=a_commit(offset, *finished, partition=partition))

    @rule()
    def crash(self) -> None:
        self.image()
        self.next_run(self.image_of(self.opened), died=True)

    @rule()
    def stop(self) -> None:
        self.next_run(self.store.directory, died=False)

    @invariant()
    def knows_what_the_oracle_knows(self) -> None:
        if not hasattr(self, "known"):
            return
        for job in JOBS:
            flight, record = self.flights[job[0]], job[1]
            assert flight.was_published(record) == (job in self.known.earlier or job in self.known.published)
            deaths, alone = self.known.deaths.get(job, (0, False))
            assert flight.suspect(record) == (deaths >= SUSPECT_DEATHS)
            assert flight.condemned(record) == alone

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.runner.close()
            shutil.rmtree(self.root)


TestFlightMachine = FlightMachine.TestCase
TestFlightMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
