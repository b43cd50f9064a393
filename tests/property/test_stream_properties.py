"""A whole role as a state machine: a broker that remembers everything, workers that die, epochs that end at any step.

The broker here keeps the log, the group's committed offset with its metadata, and each epoch's owner. Whatever the
order of fetches, completions, commits, revokes and crashes: nothing is lost (L1), nothing unsettled is committed away
(L4), the limits hold, and what a restart repeats was not settled before the last commit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluiceway.core.offsets import decode_finished
from sluiceway.core.stream import Commit, Limits, Order, Partition, Stream, Taken

PARTITIONS = [Partition("jobs", number) for number in range(3)]
LIMITS = Limits(jobs=5, queue=6, bytes=5_000, span=12, commit_interval=1.0, commit_count=4)


@dataclass(frozen=True)
class Rec:
    offset: int
    key: bytes | None
    value: bytes | None = b"job"
    headers: tuple[tuple[str, bytes], ...] = ()


class Role(RuleBasedStateMachine):
    @initialize(order=st.sampled_from(list(Order)))
    def begin(self, order: Order) -> None:
        self.limits = replace(LIMITS, order=order)
        self.log: dict[Partition, list[Rec]] = {p: [] for p in PARTITIONS}
        self.end = dict.fromkeys(PARTITIONS, 0)
        self.group: dict[Partition, tuple[int, str]] = {}
        self.settled: set[tuple[Partition, int]] = set()  # acked by the broker
        self.safe: set[tuple[Partition, int]] = set()  # settled before the last acked commit
        self.now = 0.0
        self.new_worker()

    def new_worker(self) -> None:
        self.stream = Stream(
            self.limits, suspect=lambda record: record.offset % 11 == 3, tenant=lambda record: str(record.offset % 3)
        )
        self.position: dict[Partition, int] = {}
        self.running: list[Taken] = []
        self.late: list[Taken] = []  # still running though their epoch has ended
        self.late_batches: list[tuple[Partition, int, list[Rec]]] = []
        self.flight: tuple[list[Commit], dict[Partition, set[int]]] | None = None
        for partition in PARTITIONS:
            self.assign(partition)

    def assign(self, partition: Partition) -> None:
        committed, metadata = self.group.get(partition, (None, None))
        start = 0 if committed is None else committed
        self.stream.assign(partition, committed, metadata, start, self.now)
        self.position[partition] = start

    def taken_below(self, partition: Partition, offset: int) -> set[int]:
        return {rec.offset for rec in self.log[partition] if rec.offset < offset}

    @rule(where=st.sampled_from(PARTITIONS), gap=st.integers(0, 3), key=st.sampled_from([None, b"a", b"b"]))
    def publish(self, where: Partition, gap: int, key: bytes | None) -> None:
        self.log[where].append(Rec(self.end[where] + gap, key))
        self.end[where] += gap + 1

    @precondition(lambda self: not self.late_batches)  # the loop waits for what it has handed over
    @rule(most=st.integers(1, 4))
    def fetch(self, most: int) -> None:
        room = self.stream.room()
        for partition, epoch, count in self.stream.wanted():
            unread = [rec for rec in self.log[partition] if rec.offset >= self.position[partition]]
            found = unread[: min(most, count, room)]
            position = found[-1].offset + 1 if found else self.position[partition] if unread else self.end[partition]
            room -= len(found)
            if found or self.stream.moved(partition, epoch, position):
                self.stream.fetched(partition, epoch, found, position, self.now)
                self.position[partition] = position

    @rule(most=st.integers(1, 4))
    def fetch_and_hand_over_late(self, most: int) -> None:
        """The batch is on its way to the agent while other things happen; it carries the epoch of its fetch."""
        wanted = self.stream.wanted()
        if wanted and not self.late_batches:
            partition, epoch, count = wanted[0]
            unread = [rec for rec in self.log[partition] if rec.offset >= self.position[partition]]
            self.late_batches.append((partition, epoch, unread[: min(most, count, self.stream.room())]))

    @precondition(lambda self: self.late_batches)
    @rule()
    def arrive_late(self) -> None:
        partition, epoch, records = self.late_batches.pop()
        if not records:
            return
        alive = self.stream.epoch(partition) == epoch
        taken = self.stream.fetched(partition, epoch, records, records[-1].offset + 1, self.now)
        if alive:
            self.position[partition] = records[-1].offset + 1
        else:
            assert taken == 0

    @rule()
    def start(self) -> None:
        for job in self.stream.start(self.now):
            where = (job.held.partition, job.record.offset)
            assert where not in self.safe, "a job settled before the last commit was started again"
            assert not any(
                other.held is job.held and other.record.offset == job.record.offset for other in self.running
            )
            if self.limits.order is Order.KEY and job.record.key is not None:
                assert not any(o.held is job.held and o.record.key == job.record.key for o in self.running)
            if self.limits.order is Order.PARTITION:
                assert not any(o.held is job.held for o in self.running)
            self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10))
    def ack(self, which: int) -> None:
        job = self.running.pop(which % len(self.running))
        assert self.stream.settle(job, self.now)
        assert not self.stream.settle(job, self.now)
        self.settled.add((job.held.partition, job.record.offset))

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 10))
    def late_ack(self, which: int) -> None:
        assert not self.stream.settle(self.late.pop(which % len(self.late)), self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]), force=st.booleans())
    def commit(self, seconds: float, force: bool) -> None:
        self.now += seconds
        commits = self.stream.commit_due(self.now, force=force)
        if not commits:
            return
        assert self.flight is None
        done: dict[Partition, set[int]] = {}
        for commit in commits:
            # L4, at the moment the offset leaves us.
            unsettled = {
                rec.offset for rec in self.log[commit.partition] if (commit.partition, rec.offset) not in self.settled
            }
            below = self.taken_below(commit.partition, commit.offset)
            assert not below & unsettled
            finished = decode_finished(commit.offset, commit.metadata)
            assert finished is not None
            above = {o for first, last in finished for o in range(first, last)}
            assert not above & unsettled
            done[commit.partition] = below | above
        self.flight = (commits, done)

    @precondition(lambda self: self.flight is not None)
    @rule(outcome=st.sampled_from(["acked", "failed", "acked but nobody heard"]))
    def commit_answer(self, outcome: str) -> None:
        assert self.flight is not None
        commits, done = self.flight
        self.flight = None
        if outcome != "failed":
            for commit in commits:
                if self.stream.epoch(commit.partition) == commit.epoch:  # the broker fences other generations
                    self.group[commit.partition] = (commit.offset, commit.metadata)
                    self.safe |= {(commit.partition, offset) for offset in done[commit.partition]}
        if outcome == "acked":
            self.stream.committed(commits, self.now)
        else:
            self.stream.commit_failed(self.now, 0.5)

    @rule(where=st.sets(st.sampled_from(PARTITIONS), min_size=1), commit=st.booleans())
    def revoke_and_come_back(self, where: set[Partition], commit: bool) -> None:
        self.stream.drain(where)
        if commit:
            self.commit(0.1, True)
            if self.flight is not None:
                self.commit_answer("acked")
        self.stream.revoke(where)
        gone = [job for job in self.running if job.held.gone]
        self.running = [job for job in self.running if not job.held.gone]
        self.late += gone
        for partition in sorted(where):
            self.assign(partition)

    @rule()
    def crash(self) -> None:
        self.new_worker()

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "stream"):
            return
        assert self.stream.running == len(self.running) <= self.limits.jobs
        assert len(self.running) == 1 or not any(job.alone for job in self.running)
        # A batch that was handed over late finds less room than it was fetched for: one batch, no more.
        assert 0 <= self.stream.queued <= self.limits.queue + 4
        assert self.stream.bytes >= 0
        for row in self.stream.stats(self.now):
            unsettled = {r.offset for r in self.log[row.partition] if (row.partition, r.offset) not in self.settled}
            assert not {offset for offset in unsettled if offset < row.watermark}

    def teardown(self) -> None:
        """After healing everything is settled: no order of events leaves a job behind or a partition stuck."""
        if not hasattr(self, "stream"):
            return
        if self.flight is not None:
            self.commit_answer("failed")
        self.commit(10.0, True)
        if self.flight is not None:
            self.commit_answer("acked")
        for row in self.stream.stats(self.now):
            assert self.group[row.partition][0] == row.watermark, "a commit that failed was never made again"
        self.new_worker()
        for _ in range(sum(map(len, self.log.values())) * 3 + 5):
            self.fetch(4)
            self.start()
            while self.running:
                self.ack(0)
        everything = {(partition, rec.offset) for partition, recs in self.log.items() for rec in recs}
        assert everything <= self.settled
        self.now += 10
        self.commit(10.0, True)
        self.commit_answer("acked") if self.flight else None
        for partition, recs in self.log.items():
            if recs:
                assert self.group[partition][0] == self.end[partition]


Role.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRole = Role.TestCase
