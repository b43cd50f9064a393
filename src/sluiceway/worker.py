"""The worker: one process that runs one role or both against Kafka, and how it starts, stops and fails.

The first SIGTERM or SIGINT drains, commits and leaves the group; a second one leaves at once. Whatever Faust, aiokafka
or a model still await when the stop budget ends, the process ends. Exit code 0: stopped as asked; 1: it failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sluiceway import garbage
from sluiceway.archive.answers import open_answers
from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds as StoreBounds
from sluiceway.archive.store import Store, open_store
from sluiceway.clock import WallClock
from sluiceway.core import ledger
from sluiceway.core.alone import Alone
from sluiceway.core.cascade import Role
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job
from sluiceway.core.leave import Leaving
from sluiceway.core.stream import Limits, Partition
from sluiceway.core.watchdog import Bounds
from sluiceway.kafka.cluster import cluster_id
from sluiceway.kafka.consumer import RoleConsumer, RoleSettings
from sluiceway.kafka.control import Control
from sluiceway.kafka.holds import ControlHolds
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import Connection
from sluiceway.kafka.shares import Shares, worker_name
from sluiceway.kafka.start import From, Start
from sluiceway.kafka.topics import require_room, sizes
from sluiceway.openfiles import make_room
from sluiceway.policyfile import open_runner, read_policy
from sluiceway.runner import Runner
from sluiceway.telemetry import logs
from sluiceway.telemetry.logs import Event
from sluiceway.telemetry.metrics import Metrics
from sluiceway.telemetry.probes import Probes
from sluiceway.telemetry.traces import open_traces
from sluiceway.telemetry.watchdog import Watchdog
from sluiceway.topicmap import DELAYS, TopicMap, topic_map
from sluiceway.vitals import KafkaMeter, Vitals
from sluiceway.work import Desk

if TYPE_CHECKING:
    from sluiceway.telemetry.otel import Traces

STOP_BUDGET = 25.0  # seconds from the signal to the end of the process
_GRACE = 3.0  # of it, at most a quarter, for the producer, and as much for control, probes and connections
_CUT = 2.0  # what the publisher may take beyond its time, to close what it cuts short
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CROWD = 0.2  # of the jobs in flight may sleep by rule; more of them wait in a retry topic


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
    trace_sample: float | None = None  # share of the traces that are kept; None: none is made
    metrics_port: int | None = None  # None: the usual one, or a free one where that is taken
    state: Path | None = None  # where the local store lies; None keeps none
    limits: Limits = field(default_factory=Limits)
    stop_budget: float = STOP_BUDGET


def run(options: WorkOptions) -> int:
    """The exit code of a worker that has stopped. Does not return where something would not stop: the process ends."""
    logs.configure()
    garbage.expect(options.limits.jobs * len(options.roles))
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


def _ignore_signals() -> None:
    """All is done: a second signal has nothing left to hurry.

    As it closes the loop would give signals their default back, and a process that ended in order the code of a kill.
    """
    loop = asyncio.get_running_loop()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class _Ended(NamedTuple):
    """Of some parts: whether all have ended, and whether all of them with True."""

    ended: bool
    well: bool


async def _within(seconds: float, parts: Sequence[Awaitable[object]]) -> _Ended:
    """Never waits longer: what has not ended is cancelled, and nobody waits for that."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    well = [not task.cancelled() and task.exception() is None and task.result() is True for task in ended]
    return _Ended(len(ended) == len(tasks), len(well) == len(tasks) and all(well))


_Ending = Callable[[float], Awaitable[object]]
"""Ends a part of the worker within so many seconds."""


class _Part(Protocol):
    """What can end the worker."""

    async def failed(self) -> BaseException: ...


class _Worker:
    def __init__(self, options: WorkOptions) -> None:
        self._options = options
        self._metrics = Metrics()
        self._meter = KafkaMeter(self._metrics)
        self._clock = WallClock()
        self._alone = Alone()
        self._consumers: dict[Role, RoleConsumer] = {}
        self._asked = asyncio.Event()
        self._log = logs.logger()
        self._closing = ExitStack()
        self._store: Store | None = None
        self._traces: Traces | None = None

    async def run(self) -> tuple[int, bool]:
        """The exit code, and whether everything has ended."""
        options = self._options
        self._catch_signals()
        make_room(len(options.roles) * options.limits.jobs, asked=options.limits.jobs > Limits().jobs)
        policy = read_policy(options.policy)
        topics = topic_map(policy, shadow=options.shadow)
        self._traces = traces = open_traces(options.trace_sample, topics.dead_letters)
        self._store = self._open_store()
        runner, pool = open_runner(
            policy,
            clock=self._clock,
            meter=self._metrics,
            journal=None if self._store is None else Journal(self._store, self._reused),
            answers=None if self._store is None else open_answers(self._store, policy.sharing),
            roles=options.roles,
            leaving=Leaving(DELAYS, max(1, round(options.limits.jobs * _CROWD))),
            tracer=traces,
        )
        self._metrics.policy(policy.digest)
        sending = None if traces is None else traces.sending
        publisher = Publisher(options.connection, topics.written, meter=self._meter, sending=sending)
        control = Control(options.connection, meter=self._meter)
        name = options.instance or socket.gethostname()
        holds = ControlHolds(control, name, self._clock.now, self._resume, self._meter)
        shares: Shares | None = None
        days = {} if options.shadow else runner.days
        if pool.limits or days:
            shares = Shares(
                control,
                worker_name(name),
                pool.limits,
                pool.share,
                self._clock.now,
                budgets=days,
                meter=self._meter,
            )
        bounds = Bounds.for_jobs(max(task.deadline for task in policy.tasks.values()))
        watchdog = Watchdog(bounds, lambda: vitals.facts(), self._metrics)
        vitals = Vitals(self._metrics, runner, publisher, self._consumers, watchdog.slow)
        probes = Probes(self._metrics, vitals.ready, vitals.refresh, options.metrics_port)
        watching = asyncio.create_task(watchdog.run(), name="watchdog")
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
            await control.start()
            if shares is not None:
                await shares.start()
            cluster = await cluster_id(options.connection)
            desk = Desk(runner, topics, cluster, vitals.dead_letter, vitals.tombstone)
            garbage.keep()
            for role in options.roles:
                self._consumers[role] = self._consumer(role, topics, desk, publisher, holds)
            for consumer in self._consumers.values():
                await consumer.start()
            parts = [*self._consumers.values(), publisher, control, *((shares,) if shares is not None else ())]
            code = await self._serve(runner, parts, watching)
        finally:
            telling = [holds.stop, *((shares.stop,) if shares is not None else ())]
            closing = [control.stop, lambda _: probes.stop(), lambda _: pool.close()]
            if traces is not None:
                closing.append(traces.close)
            clean, ended = await self._stop(publisher, telling, closing)
            watchdog.close()
            watching.cancel()
            self._closing.close()
        self._log.info(Event.WORKER_STOPPED, code=code, clean=clean, spent_usd=ledger.usd(runner.spent))
        _ignore_signals()
        return code, clean and ended

    def _open_store(self) -> Store | None:
        """The local store, and a line for each call that the process before us started and saw no reply to."""
        options = self._options
        if options.state is None:
            return None
        opened = open_store(options.state, bounds=StoreBounds(), now=self._clock.now, instance=options.instance)
        store = self._closing.enter_context(opened)
        for call in store.lost:
            self._metrics.lost_calls.labels(call.task, call.model).inc()
            self._log.warning(
                Event.CALL_LOST, job_id=call.job_id, task=call.task, model=call.model, started=call.started
            )
        return store

    def _reused(self, job: Job, before: str, now: str) -> None:
        """Two publishers share ids, or one has changed a job and kept its id."""
        self._metrics.reused_ids.labels(job.task).inc()
        self._log.warning(
            Event.ID_REUSED, job_id=job.id, task=job.task, round=job.round, sha256_before=before, sha256=now
        )

    async def _require_room(self, topics: TopicMap) -> None:
        """Raises InputError where an accepted record might not fit a topic it can go to: better now than then."""
        onward = [name for name in topics.written if name != topics.dead_letters]
        found = await sizes(self._options.connection, (*topics.jobs, *topics.written))
        if Role.JOBS in self._options.roles:
            require_room(found, topics.jobs, onward, topics.dead_letters)
        require_room(found, (topics.escalations, *topics.delays), (), topics.dead_letters)

    def _consumer(
        self, role: Role, topics: TopicMap, desk: Desk, publisher: Publisher, holds: ControlHolds
    ) -> RoleConsumer:
        options = self._options
        limits = options.limits
        if options.limit is not None and role is options.roles[0]:
            limits = Limits(**{**{name: getattr(limits, name) for name in limits.__slots__}, "limit": options.limit})
        group, reads = topics.groups[role], topics.read_by(role)
        settings = RoleSettings(
            group=group,
            topics=reads,
            limits=limits,
            # What waits in our own topics is work already accepted: without offsets it is read from its beginning.
            start=options.start if role is Role.JOBS else options.start or Start(From.EARLIEST),
            instance=options.instance,
            delays={topic: delay for topic, delay in topics.delays.items() if topic in reads},
            dead_letters=topics.dead_letters,
            tenant=desk.tenant,
            batched=None if self._traces is None else self._traces.batched,
        )
        return RoleConsumer(
            options.connection,
            settings,
            desk.work(role) if self._traces is None else self._traces.work(desk.work(role), group),
            publisher,
            self._meter,
            desk.oversize(role),
            desk.crashed(role),
            None if self._store is None else StoreFlight(self._store, group),
            holds,
            self._alone,
        )

    def _resume(self, group: str, partition: Partition) -> None:
        for consumer in self._consumers.values():
            if consumer.settings.group == group:
                consumer.resume(partition)

    async def _serve(self, runner: Runner, parts: Sequence[_Part], watching: asyncio.Task[None]) -> int:
        """Waits for a signal, a limit or a fault, and returns the exit code."""
        self._log.info(Event.WORKER_READY, groups=[consumer.settings.group for consumer in self._consumers.values()])
        asked = asyncio.ensure_future(self._asked.wait())
        faults = [asyncio.ensure_future(part.failed()) for part in parts]
        first = self._consumers[self._options.roles[0]]
        limits = [asyncio.ensure_future(first.finished()), asyncio.ensure_future(self._spent(runner))]
        waiting = [asked, *faults, *limits]
        try:
            await asyncio.wait([*waiting, watching], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
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

    async def _stop(
        self, publisher: Publisher, telling: Sequence[_Ending], closing: Sequence[_Ending]
    ) -> tuple[bool, bool]:
        """Whether all jobs were settled and committed, and whether all parts have ended; within the stop budget."""
        loop, budget = asyncio.get_running_loop(), self._options.stop_budget
        grace = min(_GRACE, budget / 4)
        end = loop.time() + budget - grace
        self._log.info(Event.WORKER_DRAINING, budget=budget)
        room = budget - 2 * grace
        drained = await _within(room, [consumer.stop(room) for consumer in self._consumers.values()])
        left = end - loop.time()
        published = await _within(left, [publisher.stop(max(0.1, left - _CUT))])
        clean = drained.well and published.well
        if not clean and self._store is not None:
            self._store.landed()  # not before: it would forget each ack that the publisher still had
        told = await _within(grace / 3, [part(grace / 3) for part in telling])
        closed = await _within(grace / 3, [part(grace / 3) for part in closing])
        return clean, all(parts.ended for parts in (drained, published, told, closed))

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def asked() -> None:
            if self._asked.is_set():
                os._exit(1)
            self._asked.set()

        for number in _SIGNALS:
            loop.add_signal_handler(number, asked)
