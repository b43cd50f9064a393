"""One member of a consumer group: aiokafka's consumer, driven by hand. aiokafka's private parts are used
here and in committed.py.

Its errors are mapped to `Committed`, `InputError` or `UnansweredError` in this one place. It commits under the very
generation in which a partition was assigned: a commit that comes late is refused by us or by the broker, never booked
for the next owner.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, OffsetAndMetadata, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.abc import ConsumerRebalanceListener

from sluiceway.core.errors import InputError
from sluiceway.core.stream import Commit, Partition
from sluiceway.kafka.assignor import assignor
from sluiceway.kafka.committed import fetch_committed
from sluiceway.kafka.misnamed import read_misnamed
from sluiceway.kafka.security import Connection

_DAY_MS = 86_400_000
_REBALANCED = (
    kafka_errors.UnknownMemberIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
)
_FORBIDDEN = (
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
)


class Committed(Enum):
    DONE = "done"
    AGAIN = "again"  # transient: make it again after a moment
    REBALANCED = "rebalanced"  # the epoch is over; the next owner decides
    TOO_LARGE = "too_large"  # the broker takes less metadata than we sent


class UnansweredError(Exception):
    """The cluster does not answer now; the same request may succeed later. `args[0]` names the error."""


class OutOfRangeError(Exception):
    """The fetch position is not in the partition any more, or not yet: retention has passed it, or it was reset."""

    def __init__(self, partition: Partition, position: int | None) -> None:
        super().__init__(f"{partition.topic}[{partition.partition}] at {position}")
        self.partition = partition
        self.position = position


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    def __init__(
        self,
        revoking: Callable[[list[Partition]], Coroutine[None, None, None]],
        assigned: Callable[[list[Partition]], None],
    ) -> None:
        self._revoking = revoking
        self._assigned = assigned

    # Not a coroutine function: what must happen before anything else may run happens in the call itself.
    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> Coroutine[None, None, None]:
        return self._revoking([Partition(*tp) for tp in revoked])

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._assigned([Partition(*tp) for tp in assigned])


class Group:
    """`fetch_bytes`: the largest record of the topics read; fetch sizes follow it."""

    def __init__(self, connection: Connection, group: str, instance: str | None, fetch_bytes: int) -> None:
        arguments = connection.consumer()
        arguments["max_partition_fetch_bytes"] = max(arguments["max_partition_fetch_bytes"], fetch_bytes)
        # A partition that stays with its owner keeps its running calls: a rebalance then pays for fewer twice.
        self._assignor = assignor()
        arguments["fetch_max_bytes"] = max(arguments["fetch_max_bytes"], fetch_bytes)
        self._consumer = AIOKafkaConsumer(
            **arguments,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="none",  # no silent resets
            isolation_level="read_committed",  # aborted jobs must not be paid for
            # With all partitions paused aiokafka thinks itself idle and would leave the group.
            max_poll_interval_ms=_DAY_MS,
            # One and no more: aiokafka sends a JoinGroup for each, the second of which starts the next rebalance.
            partition_assignment_strategy=[self._assignor],
        )
        self._fetch_bytes = int(arguments["max_partition_fetch_bytes"])
        self.name = group
        self._bootstrap = connection.bootstrap

    async def start(self) -> None:
        """Connected, not yet a member. Raises InputError where the cluster can't be reached."""
        try:
            await self._consumer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self.stop(2.0)
            raise InputError(
                "connection", f"no answer from {self._bootstrap} ({error!r}). Mend: check -b and security settings"
            ) from None

    def subscribe(
        self,
        topics: Sequence[str],
        revoking: Callable[[list[Partition]], Coroutine[None, None, None]],
        assigned: Callable[[list[Partition]], None],
    ) -> None:
        """Join the group. `revoking` starts at once and may take its time; `assigned` only takes note."""

        def noted(partitions: list[Partition]) -> None:
            self._assignor.generation = self.generation
            assigned(partitions)

        self._consumer.subscribe(topics=list(topics), listener=_Listener(revoking, noted))

    async def stop(self, budget: float) -> bool:
        """Leave the group and disconnect; False if that took longer than `budget` seconds and was cut short."""
        coordinator = self._consumer._coordinator
        if coordinator is not None and coordinator.generation == 0:
            # The embedded broker's first generation, under which aiokafka would leave nobody; a leave names none.
            coordinator.generation = 1
        task = asyncio.ensure_future(self._consumer.stop())
        done, _ = await asyncio.wait([task], timeout=max(0.05, budget))
        if done and task.exception() is None:
            return True
        if not done:
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        with contextlib.suppress(TimeoutError):  # aiokafka leaves its connections open where its own parts have died
            await asyncio.wait_for(self._consumer._client.close(), 0.3)
        return False

    # -- membership ---------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The group's generation that we are a member of; -1 outside of one."""
        coordinator = self._consumer._coordinator
        return -1 if coordinator is None else int(coordinator.generation)

    def assignment(self) -> set[Partition]:
        return {Partition(*tp) for tp in self._consumer.assignment()}

    # -- fetching -----------------------------------------------------------------------------------------------

    async def fetch(self, partition: Partition, records: int) -> tuple[list[ConsumerRecord], int | None]:
        """What has arrived, at most `records`, and the position after it. Never waits for more to arrive.

        Raises OutOfRangeError, UnansweredError, or InputError where reading is forbidden.
        """
        tp = TopicPartition(*partition)
        try:
            found = await self._consumer.getmany(tp, timeout_ms=0, max_records=records)
        except kafka_errors.OffsetOutOfRangeError:
            raise OutOfRangeError(partition, self.position(partition)) from None
        except kafka_errors.NoOffsetForPartitionError:
            return [], None  # aiokafka looked before we had set the start
        except _FORBIDDEN as error:
            raise InputError("fetch", f"{partition.topic}: {error!r}. Mend: the principal needs Read there") from None
        except kafka_errors.RecordTooLargeError as error:
            raise InputError("fetch", f"{partition.topic}: {error}. Mend: -X max.partition.fetch.bytes") from None
        except UnicodeDecodeError:
            return await self._misnamed(partition, records)
        except (kafka_errors.ConsumerStoppedError, kafka_errors.IllegalStateError):
            return [], None
        except kafka_errors.KafkaError as error:
            if isinstance(error.__cause__, UnicodeDecodeError):  # aiokafka without its compiled parts
                return await self._misnamed(partition, records)
            raise self._unread(partition, error) from None
        return found.get(tp, []), self.position(partition)

    async def _misnamed(self, partition: Partition, records: int) -> tuple[list[ConsumerRecord], int | None]:
        """What `fetch` gives where aiokafka can't read a header's name."""
        position = self.position(partition)
        if position is None:
            return [], None
        tp = TopicPartition(*partition)
        try:
            read = read_misnamed(self._consumer, tp, position, records, self._fetch_bytes)
            found, reached = await asyncio.wait_for(read, 20.0)
        except kafka_errors.KafkaError as error:
            raise self._unread(partition, error) from None
        except (TimeoutError, OSError) as error:
            raise UnansweredError(repr(error)) from None
        if self.position(partition) != position:
            return [], None  # it went to another owner meanwhile
        self.seek(partition, reached)
        return found, reached

    def _unread(self, partition: Partition, error: kafka_errors.KafkaError) -> Exception:
        if error.retriable:
            return UnansweredError(repr(error))
        where = f"{partition.topic}[{partition.partition}] at {self.position(partition)}"
        mend = "look at this record's batch (codec, checksum) with kafka-dump-log"
        return InputError("fetch", f"{where}: {error!r}. Mend: {mend}")

    def broken(self) -> BaseException | None:
        """Why aiokafka has silently stopped to fetch or to coordinate; None while it does both."""
        for task in (self._consumer._fetcher._fetch_task, self._consumer._coordinator._coordination_task):
            if task is not None and task.done() and not task.cancelled():
                error: BaseException | None = task.exception()
                return error or kafka_errors.ConsumerStoppedError()
        return None

    def position(self, partition: Partition) -> int | None:
        """The next offset to be fetched; None where it is not set."""
        subscription = self._consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        state = assignment.state_value(TopicPartition(*partition)) if assignment is not None else None
        return int(state.position) if state is not None and state.has_valid_position else None

    def arrival(self) -> asyncio.Future[None]:
        """Done when something has arrived for any partition, or the group is broken (its exception says why)."""
        future: asyncio.Future[None] = self._consumer._fetcher._create_fetch_waiter()
        return future

    def pass_over(self, topics: Container[str]) -> None:
        """What lies unread of `topics` holds up no fetch of others.

        aiokafka asks a broker for nothing until what it brought last is read, for a tenth of a second at most.
        """
        fetcher = self._consumer._fetcher
        for tp, result in fetcher._records.items():
            if result._backoff and tp.topic in topics:
                result._backoff = 0.0
                fetcher._notify(fetcher._wait_consume_future)

    def seek(self, partition: Partition, offset: int) -> None:
        self._consumer.seek(TopicPartition(*partition), offset)

    def end(self, partition: Partition) -> int | None:
        """The end of the partition as of the last fetch."""
        with contextlib.suppress(kafka_errors.IllegalStateError, AssertionError):
            end = self._consumer.highwater(TopicPartition(*partition))
            return None if end is None else int(end)
        return None

    # -- offsets ------------------------------------------------------------------------------------------------

    async def commit(self, commits: Sequence[Commit], generation: int, within: float) -> Committed:
        """One attempt, no longer than `within` seconds. Raises InputError where committing is forbidden."""
        coordinator = self._consumer._coordinator
        offsets = {TopicPartition(*c.partition): OffsetAndMetadata(c.offset, c.metadata) for c in commits}

        async def attempt() -> Committed:
            await coordinator.ensure_coordinator_known()
            if coordinator.generation != generation:
                return Committed.REBALANCED
            # Not `commit()`: that one retries without a limit, and under whatever generation it finds by then.
            await coordinator._do_commit_offsets(None, offsets)
            return Committed.DONE

        try:
            return await asyncio.wait_for(attempt(), within)
        except _REBALANCED:
            return Committed.REBALANCED
        except (kafka_errors.OffsetMetadataTooLargeError, kafka_errors.InvalidCommitOffsetSizeError):
            return Committed.TOO_LARGE
        except _FORBIDDEN as error:
            raise InputError("commit", f"group {self.name}: {error!r}. Mend: the principal needs Read on it") from None
        except (kafka_errors.KafkaError, TimeoutError, OSError):
            return Committed.AGAIN

    async def committed(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """The group's offset and metadata where it has one. Raises UnansweredError or InputError."""
        tps = [TopicPartition(*p) for p in partitions]
        found = await self._asked(lambda: fetch_committed(self._consumer._coordinator, tps))
        return {Partition(*tp): (int(value.offset), value.metadata or "") for tp, value in found.items()}

    async def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        """First offset and end of each partition. Raises UnansweredError or InputError."""
        tps = [TopicPartition(*p) for p in partitions]
        first = await self._asked(lambda: self._consumer.beginning_offsets(tps))
        end = await self._asked(lambda: self._consumer.end_offsets(tps))
        return {Partition(*tp): (int(first[tp]), int(end[tp])) for tp in tps}

    async def at_time(self, partitions: Iterable[Partition], time: float) -> dict[Partition, int | None]:
        """The first offset at or after `time` (seconds since the epoch); None where all are earlier."""
        stamps = {TopicPartition(*p): int(time * 1000) for p in partitions}
        found = await self._asked(lambda: self._consumer.offsets_for_times(stamps))
        return {Partition(*tp): None if value is None else int(value.offset) for tp, value in found.items()}

    def siblings(self, topic: str) -> list[Partition]:
        """All partitions of a topic that the cluster knows of."""
        return [Partition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())]

    async def _asked(self, ask: Callable[[], Awaitable[Mapping[Any, Any]]], within: float = 20.0) -> Mapping[Any, Any]:
        try:
            return await asyncio.wait_for(ask(), within)
        except _FORBIDDEN as error:
            raise InputError("offsets", f"group {self.name}: {error!r}. Mend: grant Read on group and topic") from None
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            raise UnansweredError(repr(error)) from None
