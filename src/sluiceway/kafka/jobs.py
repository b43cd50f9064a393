"""The jobs of one role that run: one task each, from its start to the settling of its offset.

A job is settled by the broker's ack of its one outgoing record, never before. One whose epoch has ended runs on
detached, and nothing of it counts: unless its partition comes back, then it is that epoch's job.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sluiceway.core.errors import Bug
from sluiceway.core.stream import Order, Partition, Stream, Taken
from sluiceway.kafka.meter import Meter
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.role import Holds, RoleSettings
from sluiceway.ports import Flight, Outgoing, Record, Work

Oversize = Callable[[Record, Outgoing, TooLarge], Outgoing]
"""What to publish instead of a record that does not fit its topic: a dead letter."""

Crashed = Callable[[Record], Outgoing]
"""What to publish instead of a job that processes die of: a dead letter."""

Place = tuple[Partition, int, float]
"""A record's partition, offset and time: a topic made anew counts its offsets from nothing again."""


class RunningJobs:
    """`fail` is told what ends the role; `wake` that there may be room for more."""

    def __init__(
        self,
        stream: Stream,
        work: Work,
        publisher: Publisher,
        settings: RoleSettings,
        meter: Meter,
        flight: Flight,
        holds: Holds,
        oversize: Oversize | None,
        crashed: Crashed | None,
        fail: Callable[[BaseException], None],
        wake: Callable[[], None],
    ) -> None:
        self._stream = stream
        stream.wake, stream.beside = self._sweep_soon, lambda: len(self._detached)
        self._work = work
        self._publisher = publisher
        self._settings = settings
        self._meter = meter
        self._flight = flight
        self._holds = holds
        self._oversize = oversize
        self._crashed = crashed
        self._fail = fail
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self._running: dict[Taken, asyncio.Task[None] | None] = {}  # None: its outgoing record waits for its ack
        self._detached: dict[Place, Taken] = {}
        self._swept = False
        self._settled: Counter[str] = Counter()
        self._drains: list[tuple[asyncio.Future[None], list[Partition]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._shut = False  # a last commit is made: what ends now would not be in it
        self._late = 0  # jobs that ended since then
        self._quiet: asyncio.Future[None] | None = None

    @property
    def detached(self) -> int:
        """Jobs of ended epochs that still run."""
        return len(self._detached)

    @property
    def unacked(self) -> int:
        """Jobs whose outgoing record waits for its ack."""
        return sum(task is None for task in self._running.values())

    def cancel(self) -> None:
        """Nothing runs on; what was not settled stays so."""
        if self._timer is not None:
            self._timer.cancel()
        for task in [task for task in self._running.values() if task is not None]:
            task.cancel()

    async def shut(self, until: float) -> None:
        """Nothing that ends from now to `part` is published. Returns when all that was is acked, or at `until`."""
        self._shut = True
        if self.unacked:
            self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=max(0.0, until - self._loop.time()))
            self._quiet = None

    def part(self) -> int:
        """How many jobs of ended epochs count for nothing: those that ended since `shut`, and those that still run.

        These are detached, or cancelled where an order of work forbids them to go on.
        """
        late, self._late, self._shut = self._late, 0, False
        if not self._loop.is_running():
            return 0  # a revoke that is closed with its loop: nobody is there to be told
        gone = [job for job in self._running if job.held.gone]
        for job in gone:
            task = self._running[job]
            if self._settings.limits.order is not Order.NONE and task is not None:
                task.cancel()
                assert isinstance(job.record, Record)  # noqa: S101  we made it
                self._flight.drop(job.record)
                del self._running[job]
            else:
                self._detached[_place(job)] = job
        self._sweep_soon()  # whoever waits for a partition to be drained waits no more
        return late + len(gone)

    def start(self, now: float) -> None:
        running, flight = self._running, self._flight
        jobs = self._stream.start(now)
        if len(jobs) == self._settings.limits.burst:
            self._sweep_soon()
        for job in jobs:
            if self._detached:
                joined = self._detached.pop(_place(job), None)
                if joined is not None:
                    joined.held = job.held  # it came back while its call still runs
                    joined.size = job.size
                    joined.handed = False
                    if running[joined] is None:
                        self._hand_over(joined)
                    continue
            record = job.record
            assert isinstance(record, Record)  # noqa: S101  we made it
            published = flight.was_published(record)
            if not published and not self._condemned(record):
                flight.take(record, alone=job.alone)
            running[job] = self._loop.create_task(self._run(job, published=published))
        if self._settings.delays:
            self._wait_for_the_next(now)

    def _wait_for_the_next(self, now: float) -> None:
        """A job of a retry topic is started when it is due."""
        if self._timer is not None:
            self._timer.cancel()
        due = self._stream.next_due()
        # One that is due and was not started waits for room: what settles starts it.
        self._timer = None if due is None or due <= now else self._loop.call_at(due, self._sweep)

    def _condemned(self, record: Record) -> bool:
        return self._crashed is not None and self._flight.condemned(record)

    async def _run(self, job: Taken, *, published: bool) -> None:
        """`published`: its outgoing record was, by an earlier run or in an earlier epoch."""
        record = job.record
        assert isinstance(record, Record)  # noqa: S101  we made it
        try:
            flight = self._flight
            if published:
                flight.publish(record)
                self._settle(job)
                return
            outgoing: Outgoing | None
            if self._crashed is not None and flight.condemned(record):
                outgoing = self._crashed(record)
            else:
                flight.begin(record)
                outgoing = await self._work(record)
            if job.held.gone or self._shut:
                self._late += not job.held.gone
                flight.drop(record)
                self._drop(job)
                return
            self._running[job] = None
            if outgoing is None:
                flight.drop(record)
                self._settle(job)
            else:
                if outgoing.topic != self._settings.dead_letters:  # a flood of those is to hold its partition in time
                    self._hand_over(job)
                self._publisher.submit(outgoing, self._acked, job)
        except Exception as error:  # noqa: BLE001  top of the task: the worker stops with the record unsettled
            self._flight.blame(record)
            self._give_up(job, error)

    def _hand_over(self, job: Taken) -> None:
        """Its slot is another's from now on: an ack takes as long as the brokers like."""
        if self._stream.hand_over(job):
            self._sweep_soon()

    def _acked(self, job: Taken, outgoing: Outgoing, result: TooLarge | None) -> None:
        assert isinstance(job.record, Record)  # noqa: S101  we made it
        if result is None:
            self._flight.publish(job.record)
            self._settle(job, dead=outgoing.topic == self._settings.dead_letters)
            return
        if self._oversize is None or result.topic != outgoing.topic:
            self._give_up(
                job, Bug(f"a record of {result.size} bytes does not fit {result.topic} ({result.limit} bytes)")
            )
            return
        instead = self._oversize(job.record, outgoing, result)
        if instead.topic == outgoing.topic:
            self._give_up(
                job, Bug(f"a record of {result.size} bytes does not fit {result.topic}, nor does what replaces it")
            )
            return
        self._publisher.submit(instead, self._acked, job)

    def _give_up(self, job: Taken, error: BaseException) -> None:
        """The role ends with this job unsettled."""
        self._stream.abandon(job)
        self._drop(job)
        self._fail(error)
        self._sweep()

    def _settle(self, job: Taken, *, dead: bool = False) -> None:
        if self._stream.settle(job, self._loop.time(), dead=dead):
            self._settled[job.held.partition.topic] += 1
            del self._running[job]
        else:
            self._drop(job)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._swept:
            self._swept = True
            self._loop.call_soon(self._sweep)

    def _drop(self, job: Taken) -> None:
        """A job of an ended epoch is done: nothing of it counts."""
        self._running.pop(job, None)
        self._detached.pop(_place(job), None)
        if self._stream.alone.waiting:
            self._stream.alone.tell(self._stream)

    def _sweep(self) -> None:
        """Once for all that was handed over or settled in one turn of the loop."""
        self._swept = False
        for topic, count in self._settled.items():
            self._meter.settled(self._settings.group, topic, count)
        self._settled.clear()
        for partition in self._stream.floods:
            self._holds.flooded(self._settings.group, partition)
            self._meter.notice(
                "flood", group=self._settings.group, topic=partition.topic, partition=partition.partition
            )
        self._stream.floods.clear()
        self.start(self._loop.time())
        self._wake()
        for future, partitions in self._drains:
            if not future.done() and not self._stream.running_in(partitions):
                future.set_result(None)
        if self._quiet is not None and not self._quiet.done() and not self.unacked:
            self._quiet.set_result(None)
        if self._stream.exhausted and not self.finished.done():
            self.finished.set_result(None)

    async def drained(self, partitions: list[Partition], until: float) -> bool:
        """True if nothing runs there any more before `until`."""
        if not self._stream.running_in(partitions):
            return True
        future: asyncio.Future[None] = self._loop.create_future()
        entry = (future, partitions)
        self._drains.append(entry)
        try:
            await asyncio.wait([future], timeout=max(0.0, until - self._loop.time()))
        finally:
            self._drains.remove(entry)
        return future.done()


def _place(job: Taken) -> Place:
    return job.held.partition, job.record.offset, job.record.timestamp
