"""aiokafka's consumer and producer, and Faust's app, as the role and the publisher under test see them.

They stand at the lowest seam: `Group`, `Committer`, `FetchLoop`, `RoleConsumer` and `Publisher` above them are the real
ones. Errors are aiokafka's own classes. `installed()` puts them in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors

from tests.sim.broker import BROKER, Member, Sent
from tests.sim.loop import current
from tests.sim.producer import SimProducer
from tests.support.topics import Seen

_TICK = 0.4  # seconds between looks at what is to be committed


class _Position:
    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position: int | None = None

    @property
    def has_valid_position(self) -> bool:
        return self.position is not None


class _Assignment:
    def __init__(self, partitions: Sequence[TopicPartition]) -> None:
        self.states = {tp: _Position() for tp in partitions}

    def state_value(self, tp: TopicPartition) -> _Position | None:
        return self.states.get(tp)


class _Subscription:
    """aiokafka's way to the positions: `_subscription.subscription.assignment`."""

    def __init__(self) -> None:
        self.assignment = _Assignment(())
        self.subscription = self


class _Waiters:
    def __init__(self, consumer: SimConsumer) -> None:
        self._consumer = consumer
        self._fetch_task = None  # these die in no world
        self._records: dict[Any, Any] = {}  # what is fetched is read at once

    def _create_fetch_waiter(self) -> asyncio.Future[None]:
        return self._consumer.broker.arrival(self._consumer.assigned)


class _Coordination:
    def __init__(self, consumer: SimConsumer) -> None:
        self._consumer = consumer
        self.group_id = consumer.group
        self.generation = -1
        self._asked = 0.0
        self._coordination_task = None

    async def ensure_coordinator_known(self) -> None:
        broker = self._consumer.broker
        self._asked = broker.loop.time()
        if broker.dice.random() < 0.1:
            await broker.travel()  # it is looked up again

    async def _do_commit_offsets(self, _assignment: object, offsets: Mapping[TopicPartition, Any]) -> None:
        consumer = self._consumer
        broker, weather, generation = consumer.broker, consumer.broker.weather, self.generation
        values = {tp: (value.offset, value.metadata) for tp, value in offsets.items()}
        dice = broker.dice.random()
        if dice < weather.commit_error:
            await broker.travel()
            broker.note("commit_error")
            raise broker.dice.choice(
                (kafka_errors.NotCoordinatorForGroupError, kafka_errors.GroupLoadInProgressError)
            )()
        answered: asyncio.Future[str] = broker.loop.create_future()
        sent = Sent(consumer.process, self._asked)
        lost = dice < weather.commit_error + weather.commit_lost

        def arrives() -> None:
            answer = broker.commit(consumer.group, consumer.member.name, generation, values, sent)
            broker.note("commit_" + answer, member=consumer.member.name, at=tuple(v[0] for v in values.values()))
            if lost:
                broker.note("commit_answer_lost")
            elif not answered.done():
                answered.set_result(answer)

        # One connection: what is sent later arrives later.
        consumer.last_commit = max(consumer.last_commit, broker.loop.time() + broker.latency())
        broker.later(consumer.last_commit - broker.loop.time(), arrives)
        match await answered:
            case "ok":
                return
            case "unknown_member":
                raise kafka_errors.UnknownMemberIdError()
            case "illegal_generation":
                raise kafka_errors.IllegalGenerationError()
            case _:
                raise kafka_errors.OffsetMetadataTooLargeError()

    def coordinator_dead(self) -> None:
        pass

    async def _send_req(self, request: Any) -> Any:
        """The answer to an OffsetFetchRequest. While the coordinator loads, an error stands for all of it."""
        consumer = self._consumer
        await consumer.asked()
        broker = consumer.broker
        if broker.weather.offsets_error and broker.dice.random() < broker.weather.offsets_error:
            broker.note("offsets_loading")
            return SimpleNamespace(topics=[], error_code=kafka_errors.GroupLoadInProgressError.errno)
        committed = broker.group(self.group_id).committed
        topics = [
            (topic, [(number, *committed.get(TopicPartition(topic, number), (-1, "")), 0) for number in numbers])
            for topic, numbers in request._partitions
        ]
        return SimpleNamespace(topics=topics, error_code=0)


class SimConsumer:
    """A member of a group. Its membership is one task, as aiokafka's coordination is."""

    def __init__(self, *, group_id: str, **_arguments: object) -> None:
        self.broker = BROKER[-1]
        self.process = current()
        self.group = group_id
        self.topics: Sequence[str] = ()
        self._subscription = _Subscription()
        self._fetcher = _Waiters(self)
        self._coordinator = _Coordination(self)
        self._client = self
        self._ends: dict[TopicPartition, int] = {}
        self._listener: Any = None
        self.last_commit = 0.0
        self._owns = False  # assigned, and not revoked since
        self._task: asyncio.Task[None] | None = None
        self._number = self.broker.number()
        self.member = self._new_member()

    def _new_member(self) -> Member:
        process = self.process
        return Member(
            f"{process.name}/{self.group}#{self._number}", lambda: not (process.dead or process.frozen), self.topics
        )

    async def start(self) -> None:
        await self.broker.travel()

    async def close(self) -> None:
        pass

    def subscribe(self, *, topics: Sequence[str], listener: Any) -> None:
        self.topics = tuple(topics)
        self._listener = listener
        self._task = asyncio.get_running_loop().create_task(self._belong())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.broker.travel()
        self.broker.leave(self.group, self.member.name, "stop")
        self._coordinator.generation = -1

    async def _belong(self) -> None:
        while True:
            # As aiokafka: the callback for the old assignment, and even for an empty one, comes before each join.
            if self._owns:
                self._owns = False
                self.broker.revoking(self.process, self.group)
            await self._listener.on_partitions_revoked(self.assignment())
            await self.broker.travel()
            self.member = self._new_member()
            try:
                generation, partitions = await self.broker.join(self.group, self.member)
            except asyncio.CancelledError:
                if self.broker.group(self.group).members.get(self.member.name) is self.member:
                    raise  # it is we who stop
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # inside of a task
                    raise
                continue  # thrown out while it waited
            self._coordinator.generation = generation
            self._subscription.assignment = _Assignment(partitions)
            self._owns = True
            await self._listener.on_partitions_assigned(partitions)
            if await self.broker.heartbeat(self.group, self.member) == "unknown":
                self._coordinator.generation = -1
                self.broker.note("thrown_out", member=self.member.name)

    def assignment(self) -> list[TopicPartition]:
        return list(self._subscription.assignment.states)

    def assigned(self) -> Container[TopicPartition]:
        return self._subscription.assignment.states

    # -- fetching -----------------------------------------------------------------------------------------------

    async def getmany(
        self,
        tp: TopicPartition,
        *,
        timeout_ms: int,  # noqa: ARG002  aiokafka's signature
        max_records: int,
    ) -> dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]:
        state = self._subscription.assignment.state_value(tp)
        if state is None:
            raise kafka_errors.IllegalStateError("no partition of ours")
        if state.position is None:
            raise kafka_errors.NoOffsetForPartitionError(tp)
        broker, weather = self.broker, self.broker.weather
        if weather.paused_until > broker.loop.time():
            broker.announce(tp, broker.latency())
            return {}
        end = self._ends[tp] = broker.log(tp).end
        if state.position >= end:
            return {}
        if weather.fetch_error and broker.dice.random() < weather.fetch_error:
            broker.note("fetch_error")
            raise kafka_errors.NotLeaderForPartitionError()
        most = max(1, min(max_records, broker.dice.choice((1, 7, 30, 500))))
        found, position = broker.read(tp, state.position, most)
        if weather.refetch and found and broker.dice.random() < weather.refetch:
            # A batch that holds records below the position: aiokafka drops them, another version may not.
            again, _ = broker.read(tp, max(broker.first[tp], state.position - 2), 2)
            again = [record for record in again if record.offset < state.position][: most - 1]
            found, position = broker.read(tp, state.position, most - len(again))
            found = again + found
            broker.note("fetched_again", records=len(found))
        state.position = position
        if position < end:
            broker.announce(tp, 0.005)
        return {tp: [_as_fetched(record) for record in found]} if found else {}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        state = self._subscription.assignment.state_value(tp)
        if state is None:
            raise kafka_errors.IllegalStateError("no partition of ours")
        state.position = offset
        self.broker.seeked(tp, self.group)
        self.broker.announce(tp, self.broker.latency())

    def highwater(self, tp: TopicPartition) -> int | None:
        return self._ends.get(tp)

    # -- offsets ------------------------------------------------------------------------------------------------

    async def asked(self) -> None:
        await self.broker.travel()
        if self.broker.weather.offsets_error and self.broker.dice.random() < self.broker.weather.offsets_error:
            self.broker.note("offsets_error")
            raise kafka_errors.KafkaTimeoutError()

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        await self.asked()
        return {tp: self.broker.first[tp] for tp in partitions}

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        await self.asked()
        return {tp: self.broker.log(tp).end for tp in partitions}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(len(self.broker.topics[topic])))


def _as_fetched(seen: Seen) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(
        seen.topic, seen.partition, seen.offset, seen.timestamp, 0, seen.key, seen.value, None, 0, 0, seen.headers
    )


class SimApp:
    """Faust's part: it calls the role's duties in services of its own."""

    def __init__(self, group: str, bootstrap: str, duties: Any) -> None:  # noqa: ARG002  RoleApp's signature
        self.duties = duties
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(self._fetch()), create(self._look())]

    async def _fetch(self) -> None:
        self.duties.join()
        await self.duties.fetch()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            await self.duties.tick()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


class SimIntake:
    """The in-memory channel and its agent."""

    def __init__(self, app: SimApp, take: Callable[[Sequence[Any]], None]) -> None:
        self._app = app
        self._take = take

    async def put(self, batches: Sequence[Any]) -> None:
        dice = BROKER[-1].dice
        # The agent has its turn soon, and at times late: the epoch may have ended by then.
        late = dice.random() < BROKER[-1].weather.agent_late
        if late:
            BROKER[-1].note("agent_late")
        await asyncio.sleep(6.0 * dice.random() if late else 0)
        try:
            self._take(batches)
        except Exception as error:  # noqa: BLE001  top of the agent
            self._app.duties.crashed(error)


async def _sizes(_connection: object, names: Sequence[str], _patience: float = 0.0) -> dict[str, int | None]:
    broker = BROKER[-1]
    await broker.travel()
    return {name: broker.limits.get(name, 1 << 20) for name in names}


async def _open_producer(_connection: object, _size: int, idempotent: bool) -> tuple[SimProducer, bool]:
    broker = BROKER[-1]
    await broker.travel()
    return SimProducer(idempotent), idempotent


async def _close_producer(producer: SimProducer, budget: float) -> bool:
    if producer.under_way:
        await asyncio.wait(list(producer.under_way), timeout=budget)
    producer.closed = True
    for acked in list(producer.under_way):
        producer.doubt(acked)
    await producer.broker.travel()
    return True


Patch = tuple[str, Callable[..., Any] | Callable[..., Awaitable[Any]]]


@contextmanager
def installed() -> Iterator[None]:
    """The role and the publisher meet these instead of aiokafka and Faust."""
    places: list[Patch] = [
        ("sluiceway.kafka.group.AIOKafkaConsumer", SimConsumer),
        ("sluiceway.kafka.consumer.RoleApp", SimApp),
        ("sluiceway.kafka.consumer.Intake", SimIntake),
        ("sluiceway.kafka.consumer.sizes", _sizes),
        ("sluiceway.kafka.publish.sizes", _sizes),
        ("sluiceway.kafka.publish.open_producer", _open_producer),
        ("sluiceway.kafka.publish.close_producer", _close_producer),
    ]
    patches = [mock.patch(where, part) for where, part in places]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
