"""Reading outcomes: for programs that act on them and must not act twice.

    from sluiceway.kafka.outcomes import outcomes

    async for outcome in outcomes("localhost:9092", group="crm-sync"):
        if outcome.status == "answered": ...

Sluiceway delivers at least once. This drops the duplicates within a window, and remembers the window across its own
restarts by reading it again: nothing but the group's offsets is stored. What the loop's body was busy with when its
process died comes again, as does what it had handled since the last commit, which is made every second. A rebalance
repeats neither to a reader that lives: what is handled is committed before the partitions go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from sluiceway.core import outcome as outcomes_
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import Result, Review
from sluiceway.core.window import Window
from sluiceway.kafka.committed import heed
from sluiceway.kafka.security import read_connection

RESULTS = "sluiceway.results"
REVIEWS = "sluiceway.reviews"
_COMMIT = 1.0  # seconds between two commits
_REVOKE = 3.0  # seconds; the whole group waits for it


async def outcomes(
    bootstrap: str | None = None,
    *,
    group: str,
    results: Iterable[str] = (RESULTS,),
    reviews: str = REVIEWS,
    final: bool = False,
    window: int = 10_000,
    settings: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Result | Review]:
    """Each round's effective outcome, once: a result, or a review that a result may still follow.

    What is left of a round comes no more once a later one of its job has come (a decision, a redrive).
    `final` leaves reviews out. `window` counts jobs of each partition: a duplicate that comes later passes as new.
    An outcome counts as handled when the next one is asked for. Results and reviews need equal numbers of partitions
    (topics/ has it so), so that one member of `group` reads all of a job. A new group begins at the earliest record.
    Dead letters are no part of it: they hold bytes that became no job. Raises InputError where Kafka is not there.
    """
    connection = read_connection(bootstrap, settings, None, os.environ if environment is None else environment)
    topics = [*results] if final else [*results, reviews]
    consumer = AIOKafkaConsumer(
        **connection.consumer(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        # All partitions of one number go to one member, so that a job's review and result meet in one window.
        partition_assignment_strategy=[RangePartitionAssignor],
    )
    reader = _Reader(consumer, reviews, window)
    try:
        await consumer.start()
        heed(consumer)
        consumer.subscribe(topics, listener=reader)
        async for outcome in reader.read():
            yield outcome
    except KafkaError as error:
        raise InputError("outcomes", f"{connection.bootstrap}: {error!r}. Mend: check -b, topics and ACLs") from None
    finally:
        await consumer.stop()


class _Reader(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    def __init__(self, consumer: AIOKafkaConsumer, reviews: str, window: int) -> None:
        self._consumer = consumer
        self._reviews = reviews
        self._size = window
        self._windows: dict[int, Window] = {}  # by partition number: a job's results and reviews share it
        self._resume: dict[TopicPartition, int] = {}  # below this, records only fill the window
        self._handled: dict[TopicPartition, int] = {}  # and not committed yet
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + _COMMIT
        self._epoch = 0  # an assignment; aiokafka takes all partitions back before it makes the next one
        self._late: dict[TopicPartition, tuple[int, int]] = {}  # offset and time of what was handled after its epoch

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._epoch += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVOKE):
                    await self._commit()
        finally:
            for partition in revoked:
                self._windows.pop(partition.partition, None)
                self._resume.pop(partition, None)
                self._handled.pop(partition, None)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer.pause(*assigned)  # nothing is read of them before it is known what was handled
        try:
            first = await self._consumer.beginning_offsets(list(assigned))
            for partition in assigned:
                committed = await self._consumer.committed(partition)
                if committed is None:
                    continue
                self._resume[partition] = committed
                self._consumer.seek(partition, max(first[partition], committed - self._size))
        finally:
            self._consumer.resume(*(self._consumer.assignment() & set(assigned)))

    async def read(self) -> AsyncIterator[Result | Review]:
        try:
            while True:
                found = await self._consumer.getmany(timeout_ms=200, max_records=500)
                epoch = self._epoch
                for partition, record in ((place, record) for place, records in found.items() for record in records):
                    if self._epoch != epoch:
                        break  # the rest of this batch is another reader's, or comes again
                    outcome = self._new(partition, record)
                    if outcome is not None:
                        yield outcome
                        if self._epoch != epoch:
                            self._late[partition] = record.offset, record.timestamp
                            break
                    if record.offset >= self._resume.get(partition, 0):
                        self._handled[partition] = record.offset + 1
                    await self._commit_due()
                await self._commit_due()
        finally:
            await self._commit()

    def _new(self, partition: TopicPartition, record: Any) -> Result | Review | None:
        """The outcome in `record`, if the loop's body has not had it."""
        window = self._windows.get(partition.partition)
        if window is None:
            window = self._windows[partition.partition] = Window(self._size)
        outcome = _decoded(record, is_review=record.topic == self._reviews)
        if outcome is None or not window.admits(outcome) or record.offset < self._resume.get(partition, 0):
            return None
        return None if self._late.get(partition) == (record.offset, record.timestamp) else outcome

    async def _commit_due(self) -> None:
        if self._handled and self._loop.time() >= self._due:
            await self._commit()
            self._due = self._loop.time() + _COMMIT

    async def _commit(self) -> None:
        mine = {
            partition: offset for partition, offset in self._handled.items() if partition in self._consumer.assignment()
        }
        if not mine:
            return
        with contextlib.suppress(CommitFailedError, IllegalStateError):
            # else the partitions have another reader, who goes on from the last commit
            await self._consumer.commit(mine)
        for partition, offset in mine.items():
            if self._handled.get(partition) == offset:
                del self._handled[partition]


def _decoded(record: Any, *, is_review: bool) -> Result | Review | None:
    if record.value is None:
        return None
    try:
        if is_review:
            return outcomes_.decode(Review, record.value)
        return outcomes_.decode(Result, record.value)
    except InputError:
        return None  # not ours: whoever may write there has written something else
