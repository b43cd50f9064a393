"""The worker: one process that runs one role or both against Kafka, and how it starts, stops and fails.

The first SIGTERM or SIGINT drains, commits and leaves the group; a second one leaves at once. Whatever Faust, aiokafka
or a model still await when the stop budget ends, the process ends. Exit code 0: stopped as asked; 1: it failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, Store, open_store
from sluiceway.clock import WallClock
from sluiceway.core import ledger
from sluiceway.core.cascade import Role
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import DeadLetter
from sluiceway.core.stream import Limits
from sluiceway.kafka.cluster import cluster_id
from sluiceway.kafka.consumer import RoleConsumer, RoleSettings
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import Connection
from sluiceway.kafka.start import From, Start
from sluiceway.kafka.topics import require_room, sizes
from sluiceway.policyfile import open_runner, read_policy
from sluiceway.ports import Record
from sluiceway.runner import Runner
from sluiceway.telemetry import logs
from sluiceway.telemetry.logs import Event
from sluiceway.telemetry.metrics import Metrics
from sluiceway.telemetry.probes import Probes
from sluiceway.topicmap import TopicMap, topic_map
from sluiceway.work import Desk

STOP_BUDGET = 25.0  # seconds from the signal to the end of the process
_GRACE = 2.0  # of it for producer, probes and connections


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """What `sluiceway work` was asked for. `max_cost` in pico-dollars."""

    policy: Path
    connection: Connection
    roles: tuple[Role, ...] = (Role.JOBS, Role.ESCALATIONS)
    start: Start | None = None
    shadow: bool = False
    limit: int | None = None
    max_cost: int | None = None
    instance: str | None = None
    metrics_port: int | None = None  # None: the usual one, or a free one where that is taken
    state: Path | None = None  # where the local store lies; None keeps none
    limits: Limits = field(default_factory=Limits)
    stop_budget: float = STOP_BUDGET


def run(options: WorkOptions) -> int:
    """The exit code of a worker that has stopped. Does not return where something would not stop: the process ends."""
    logs.configure()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code, clean = runner.run(_Worker(options).run())
        if not clean:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


class _KafkaMeter:
    """What the Kafka layer tells, as metrics and log lines."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def taken(self, group: str, topic: str, count: int) -> None:
        self._metrics.taken.labels(group, topic).inc(count)

    def settled(self, group: str, topic: str, count: int) -> None:
        self._metrics.settled.labels(group, topic).inc(count)

    def notice(self, event: str, **fields: str | int | float) -> None:
        self._metrics.notices.labels(event).inc()
        logs.logger().info(Event.KAFKA, notice=event, **fields)


class _Worker:
    def __init__(self, options: WorkOptions) -> None:
        self._options = options
        self._metrics = Metrics()
        self._consumers: list[RoleConsumer] = []
        self._asked = asyncio.Event()
        self._log = logs.logger()
        self._closing = ExitStack()

    async def run(self) -> tuple[int, bool]:
        """The exit code, and whether everything has ended."""
        options = self._options
        self._catch_signals()
        policy = read_policy(options.policy)
        topics = topic_map(policy, shadow=options.shadow)
        meter = _KafkaMeter(self._metrics)
        clock = WallClock()
        store = self._open_store(clock)
        journal = None if store is None else Journal(store)
        runner, pool = open_runner(policy, clock=clock, meter=self._metrics, journal=journal, roles=options.roles)
        self._metrics.policy(policy.digest)
        publisher = Publisher(options.connection, topics.written, meter=meter)
        probes = Probes(self._metrics, self._ready, self._refresh, options.metrics_port)
        code, clean = 1, True
        try:
            await probes.start()
            self._log.info(
                Event.WORKER_STARTED,
                roles=[role.value for role in options.roles],
                policy=policy.digest,
                port=probes.port,
            )
            await publisher.start()
            await self._require_room(topics)
            desk = Desk(runner, topics, await cluster_id(options.connection), self._dead_letter, self._tombstone)
            for role in options.roles:
                self._consumers.append(self._consumer(role, topics, desk, publisher, meter))
            for consumer in self._consumers:
                await consumer.start()
            code = await self._serve(runner, publisher)
        finally:
            clean = await self._stop(publisher)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(probes.stop(), pool.close(), return_exceptions=True), _GRACE)
            self._closing.close()
        self._log.info(Event.WORKER_STOPPED, code=code, clean=clean, spent_usd=ledger.usd(runner.spent))
        return code, clean

    def _open_store(self, clock: WallClock) -> Store | None:
        """The local store, and a line for each call that the process before us started and saw no reply to."""
        options = self._options
        if options.state is None:
            return None
        opened = open_store(options.state, bounds=Bounds(), now=clock.now, instance=options.instance)
        store = self._closing.enter_context(opened)
        for call in store.lost:
            self._metrics.lost_calls.labels(call.task, call.model).inc()
            self._log.warning(
                Event.CALL_LOST, job_id=call.job_id, task=call.task, model=call.model, started=call.started
            )
        return store

    async def _require_room(self, topics: TopicMap) -> None:
        """Raises InputError where an accepted record might not fit a topic it can go to: better now than then."""
        onward = [name for name in topics.written if name != topics.dead_letters]
        found = await sizes(self._options.connection, (*topics.jobs, *topics.written))
        if Role.JOBS in self._options.roles:
            require_room(found, topics.jobs, onward, topics.dead_letters)
        require_room(found, (topics.escalations,), (), topics.dead_letters)

    def _consumer(
        self, role: Role, topics: TopicMap, desk: Desk, publisher: Publisher, meter: _KafkaMeter
    ) -> RoleConsumer:
        options = self._options
        limits = options.limits
        if options.limit is not None and role is options.roles[0]:
            limits = Limits(**{**{name: getattr(limits, name) for name in limits.__slots__}, "limit": options.limit})
        settings = RoleSettings(
            group=topics.groups[role],
            topics=topics.read_by(role),
            limits=limits,
            # What waits in our own topics is work already accepted: without offsets it is read from its beginning.
            start=options.start if role is Role.JOBS else options.start or Start(From.EARLIEST),
            instance=options.instance,
        )
        return RoleConsumer(options.connection, settings, desk.work(role), publisher, meter, desk.oversize(role))

    async def _serve(self, runner: Runner, publisher: Publisher) -> int:
        """Waits for a signal, a limit or a fault, and returns the exit code."""
        self._log.info(Event.WORKER_READY, groups=[consumer.settings.group for consumer in self._consumers])
        asked = asyncio.ensure_future(self._asked.wait())
        faults = [asyncio.ensure_future(consumer.failed()) for consumer in self._consumers]
        faults.append(asyncio.ensure_future(publisher.failed()))
        limits = [asyncio.ensure_future(self._consumers[0].finished()), asyncio.ensure_future(self._spent(runner))]
        waiting = [asked, *faults, *limits]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for fault in faults:
                if fault.done():
                    self._fail(fault.result())
                    return 1
            for limit in limits:
                if limit.done():
                    self._log.info(Event.LIMIT_REACHED, spent_usd=ledger.usd(runner.spent))
            return 0
        finally:
            for task in waiting:
                task.cancel()

    async def _spent(self, runner: Runner) -> None:
        """Returns when --max-cost is reached; calls in flight may still add to it."""
        limit = self._options.max_cost
        while limit is None or runner.spent < limit:  # noqa: ASYNC110  a sum to look at, not an event to wait for
            await asyncio.sleep(0.2)

    def _fail(self, fault: BaseException) -> None:
        if isinstance(fault, InputError):
            self._log.error(Event.WORKER_FAILED, reason=fault.reason, detail=fault.detail)
        else:
            self._log.error(Event.WORKER_FAILED, reason=type(fault).__name__, exc_info=fault)

    async def _stop(self, publisher: Publisher) -> bool:
        end = time.monotonic() + self._options.stop_budget
        self._log.info(Event.WORKER_DRAINING, budget=self._options.stop_budget)
        room = max(0.1, self._options.stop_budget - _GRACE)
        results = await asyncio.gather(*(consumer.stop(room) for consumer in self._consumers), return_exceptions=True)
        clean = all(result is True for result in results)
        return await publisher.stop(max(0.5, end - time.monotonic())) and clean

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def asked() -> None:
            if self._asked.is_set():
                os._exit(1)
            self._asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked)

    def _tombstone(self, record: Record) -> None:
        self._metrics.tombstones.labels(record.topic).inc()

    def _dead_letter(self, record: Record, letter: DeadLetter, task: str) -> None:
        self._metrics.dead_letter(task)
        self._log.warning(
            Event.DEAD_LETTER,
            reason=letter.reason.value,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            sha256=letter.sha256,
        )

    def _ready(self) -> tuple[bool, list[str]]:
        if not self._consumers:
            return False, ["starting"]
        reasons = [
            f"{consumer.settings.group}: {reason}" for consumer in self._consumers for reason in consumer.ready()[1]
        ]
        return not reasons, reasons

    def _refresh(self) -> None:
        """Brings the gauges up to date: called as /metrics is read."""
        metrics = self._metrics
        metrics.lag.clear()
        for consumer in self._consumers:
            group, stats = consumer.settings.group, consumer.stats()
            metrics.in_flight.labels(group).set(stats.running + stats.queued)
            metrics.watermark_age.labels(group).set(stats.watermark_age)
            if stats.last_commit is not None:
                metrics.last_commit.labels(group).set(time.time() - stats.last_commit)
            for partition, lag in stats.lag.items():
                metrics.lag.labels(group, partition.topic, str(partition.partition)).set(lag)
