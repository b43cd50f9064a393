"""Rebalances of the reader of outcomes: one that lives has each outcome once, and none of a partition that has left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from sluiceway.core import outcome as outcomes
from sluiceway.core.outcome import Result, Review, Status, outcome_id
from sluiceway.core.trail import Trail
from sluiceway.kafka.outcomes import _Reader

PLACE = TopicPartition("results", 0)
JOBS = 7


def record(offset: int, job: str) -> SimpleNamespace:
    made = Result(outcome_id(job, 0), job, 0, "t", Status.ANSWERED, "p", 0.0, Trail("o", 0.0, 0.0), 0, 0.0)
    return SimpleNamespace(topic="results", offset=offset, timestamp=1_000 + offset, value=outcomes.encode(made))


class Partition:
    """aiokafka's consumer of one partition, in batches of three; `leave` and `come` are what its coordinator does."""

    def __init__(self) -> None:
        self.log = [record(offset, f"j{offset}") for offset in range(JOBS)]
        self.commits: dict[TopicPartition, int] = {}
        self.reader = _Reader(self, "reviews", 100)
        self.mine = True
        self.position = self.polls = 0
        self.rebalanced_at_poll = -1
        self.paused: set[TopicPartition] = set()

    def assignment(self) -> set[TopicPartition]:
        return {PLACE} if self.mine else set()

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.commits.update(offsets)

    def pause(self, *places: TopicPartition) -> None:
        self.paused |= set(places)

    def resume(self, *places: TopicPartition) -> None:
        self.paused -= set(places)

    async def committed(self, place: TopicPartition) -> int | None:
        assert place in self.paused, "a record could come before it is known what was handled"
        return self.commits.get(place)

    async def beginning_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def seek(self, _place: TopicPartition, offset: int) -> None:
        self.position = offset

    async def leave(self) -> None:
        await self.reader.on_partitions_revoked(self.assignment())
        self.mine = False

    async def come(self) -> None:
        self.mine = True
        self.position = self.commits.get(PLACE, 0)
        await self.reader.on_partitions_assigned({PLACE})

    async def getmany(self, **_: Any) -> dict[TopicPartition, list[SimpleNamespace]]:
        self.polls += 1
        if self.polls == self.rebalanced_at_poll:
            await self.leave()
            await self.come()
        if not self.mine or self.paused:
            raise EOFError
        found = self.log[self.position : self.position + 3]
        self.position += len(found)
        if not found:
            raise EOFError
        return {PLACE: found}

    async def read(self) -> AsyncIterator[str]:
        """The ids, to the end of the log, or until the partition has left."""
        try:
            outcome: Result | Review
            async for outcome in self.reader.read():
                yield outcome.job_id
        except EOFError:
            return


ALL = [f"j{offset}" for offset in range(JOBS)]


async def test_a_rebalance_repeats_no_outcome_that_was_handled() -> None:
    """At whichever poll it comes: what was handled is committed before the partition goes."""
    for poll in range(1, 4):
        partition = Partition()
        partition.rebalanced_at_poll = poll
        assert [job async for job in partition.read()] == ALL


async def test_a_rebalance_repeats_no_outcome_that_was_in_hand() -> None:
    """The loop's body finishes it after the partition has come back: it was handled all the same."""
    for busy in ALL:
        partition, seen = Partition(), []
        async for job in partition.read():
            seen.append(job)
            if job == busy:
                await partition.leave()
                await partition.come()
        assert seen == ALL


async def test_an_offset_that_is_another_record_now_is_no_repeat() -> None:
    """The topic was deleted and made anew while the loop's body was busy with the record that stood there before."""
    partition, seen = Partition(), []
    async for job in partition.read():
        seen.append(job)
        if job == "j0":
            await partition.leave()
            partition.log = [record(offset, f"new{offset}") for offset in range(2)]
            partition.log[0].timestamp = 5_000
            await partition.come()
    assert seen == ["j0", "new0", "new1"]


async def test_nothing_of_a_partition_that_has_left_is_passed_on() -> None:
    """The rest of the batch is another reader's, who goes on behind what was handled here."""
    partition, seen = Partition(), []
    async for job in partition.read():
        seen.append(job)
        if job == "j1":
            await partition.leave()
    assert seen == ["j0", "j1"]
    assert partition.commits == {PLACE: 1}


async def test_what_is_handled_is_committed_while_its_batch_lasts() -> None:
    """A body that takes long has as little to repeat after a death as a quick one."""
    partition = Partition()
    partition.reader._due = 0.0
    commits = [partition.commits.get(PLACE) async for _ in partition.read()]
    assert commits[:2] == [None, 1]
