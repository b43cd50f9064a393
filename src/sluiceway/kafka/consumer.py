"""One role between Kafka and its `Work`: fetch, take, run, publish, settle, commit. It never looks into a job.

It performs what `core.stream` decides. What ends an epoch happens in the rebalance callback itself, before anything
else can run: from then on nothing of that epoch starts, and what finishes late is neither published nor settled. A job
whose partition comes back to us while it still runs joins its running call.

Nothing here waits without a bound. `failed()` says why a role can't go on; the worker then stops, everything unacked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

from aiokafka import ConsumerRecord

from sluiceway.core.errors import Bug, InputError
from sluiceway.core.stream import Commit, Limits, Order, Partition, PartitionStats, Stream, Taken
from sluiceway.kafka.agents import Batch, Intake
from sluiceway.kafka.app import Duties, RoleApp
from sluiceway.kafka.group import Committed, Group, OutOfRangeError, UnansweredError
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.security import Connection
from sluiceway.kafka.start import Opening, Start, openings
from sluiceway.kafka.topics import sizes
from sluiceway.ports import Outgoing, Record, Work

Oversize = Callable[[Record, Outgoing, TooLarge], Outgoing]
"""What to publish instead of a record that does not fit its topic: a dead letter."""


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """Budgets and intervals in seconds. `start` is for a group without offsets only; `instance` is a static member's.

    `revoke_budget`: the whole group waits while we drain. `stop_budget` is the default of `stop()`: nobody waits.
    """

    group: str
    topics: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    start: Start | None = None
    instance: str | None = None
    revoke_budget: float = 3.0
    stop_budget: float = 25.0
    commit_timeout: float = 10.0
    retry_pause: float = 0.5


@dataclass(frozen=True, slots=True)
class RoleStats:
    """`detached`: jobs of ended epochs that still run. `lag` in records, `last_commit` in seconds ago (None: never)."""

    running: int
    queued: int
    detached: int
    taken: int
    settled: int
    lag: dict[Partition, int]
    partitions: list[PartitionStats]
    pauses: Counter[str]
    last_commit: float | None
    idle: float  # seconds since anything was taken, started or settled

    @property
    def watermark_age(self) -> float:
        return max((row.watermark_age for row in self.partitions), default=0.0)


class RoleConsumer:
    """`publisher` is started by the caller, and stopped by it after all roles."""

    def __init__(
        self,
        connection: Connection,
        settings: RoleSettings,
        work: Work,
        publisher: Publisher,
        meter: Meter | None = None,
        oversize: Oversize | None = None,
    ) -> None:
        self.settings = settings
        self._connection = connection
        self._work = work
        self._publisher = publisher
        self._meter: Meter = meter or NoMeter()
        self._oversize = oversize
        self._stream = Stream(settings.limits)
        self._group: Group | None = None
        self._app: RoleApp | None = None
        self._intake: Intake | None = None
        self._generation = -1
        self._joined = False
        self._stopping = False
        self._opening: asyncio.Task[None] | None = None
        self._commit: asyncio.Task[None] | None = None
        self._commit_failures = 0
        self._running: dict[Taken, asyncio.Task[None] | None] = {}  # None: its outgoing record waits for its ack
        self._detached: dict[tuple[str, int, int], Taken] = {}
        self._nudge: asyncio.Future[None] | None = None
        self._nudged = False
        self._swept = False
        self._settled: Counter[str] = Counter()
        self._drains: list[tuple[asyncio.Future[None], list[Partition]]] = []

    def __repr__(self) -> str:
        return f"<RoleConsumer {self.settings.group} running={self._stream.running} queued={self._stream.queued}>"

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connected and joining. Raises InputError where cluster or topics are not there for us."""
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        found = await sizes(self._connection, self.settings.topics)
        missing = [name for name, size in found.items() if size is None]
        if missing:
            raise InputError(
                "topics", f"missing on {self._connection.bootstrap}: {', '.join(missing)}. Mend: sluiceway topics apply"
            )
        largest = max(size or 0 for size in found.values())
        group = Group(self._connection, self.settings.group, self.settings.instance, largest)
        await group.start()
        self._group = group
        app = RoleApp(
            self.settings.group, self._connection.bootstrap, Duties(self._join, self._fetch, self._tick, self._fail)
        )
        self._app = app
        self._intake = Intake(app, self._take)
        await app.start()

    async def stop(self, budget: float | None = None) -> bool:
        """Drain, commit, leave the group: True if all that happened within `budget` seconds. Never waits longer.

        After False jobs may still be running, unsettled: the caller exits, and the next owner repeats them.
        """
        budget = self.settings.stop_budget if budget is None else budget
        end = self._loop.time() + budget
        reserve = min(5.0, budget * 0.3)
        self._stopping = True
        self._stream.drain()
        self._wake()
        everything = self._stream.partitions()
        clean = await self._drained(everything, end - reserve)
        clean = await self._commit_now(end - reserve / 2) and clean
        if self._opening is not None:
            self._opening.cancel()
        self._stream.revoke(self._stream.partitions())
        for task in [task for task in self._running.values() if task is not None]:
            task.cancel()
        if self._group is not None:
            clean = await self._group.stop(max(0.1, (end - self._loop.time()) * 0.7)) and clean
        if self._app is not None:
            stop = asyncio.ensure_future(self._app.stop())
            done, _ = await asyncio.wait([stop], timeout=max(0.1, end - self._loop.time()))
            if not done:
                stop.cancel()
                clean = False
            elif stop.exception() is not None:
                clean = False
        return clean

    async def failed(self) -> BaseException:
        """Waits until the role can't go on, and returns why: an InputError for the operator, anything else a fault."""
        return await asyncio.shield(self._failed)

    async def finished(self) -> None:
        """Waits until `Limits.limit` jobs were taken and all of them are settled. For ever without a limit."""
        await asyncio.shield(self._finished)

    # -- looking ------------------------------------------------------------------------------------------------

    def ready(self) -> tuple[bool, list[str]]:
        """True while the role takes jobs; else the reasons why not."""
        reasons = []
        if self._app is None:
            return False, ["not started"]
        if self._failed.done():
            reasons.append(f"failed: {self._failed.result()}")
        if self._stopping:
            reasons.append("stopping")
        elif not self._joined:
            reasons.append("not yet in the group")
        elif self._opening is not None and not self._opening.done():
            reasons.append("reading offsets")
        if self._commit_failures > 3:
            reasons.append("commits fail")
        reasons.extend(self._publisher.ready()[1])
        return not reasons, reasons

    def stats(self) -> RoleStats:
        now = self._loop.time()
        stream, group = self._stream, self._group
        rows = stream.stats(now)
        lag = {}
        for row in rows:
            end = group.end(row.partition) if group else None
            if end is not None:
                lag[row.partition] = max(0, end - row.watermark)
        return RoleStats(
            running=stream.running,
            queued=stream.queued,
            detached=len(self._detached),
            taken=stream.taken,
            settled=stream.settled,
            lag=lag,
            partitions=rows,
            pauses=stream.pauses(),
            last_commit=None if stream.last_commit is None else now - stream.last_commit,
            idle=now - stream.last_progress,
        )

    # -- membership ---------------------------------------------------------------------------------------------

    def _join(self) -> None:
        if self._group is not None and not self._stopping:
            self._group.subscribe(self.settings.topics, self._revoking, self._assigned)

    def _revoking(self, partitions: list[Partition]) -> Coroutine[None, None, None]:
        # Called in the rebalance callback itself: no record of these can be taken or started any more.
        self._stream.drain(self._stream.partitions())
        if self._opening is not None:
            self._opening.cancel()
        return self._revoked(partitions)

    async def _revoked(self, partitions: list[Partition]) -> None:
        begin = self._loop.time()
        end = begin + self.settings.revoke_budget
        held = self._stream.partitions()
        drained = await self._drained(held, begin + self.settings.revoke_budget * 0.7)
        committed = await self._commit_now(end)
        self._stream.revoke(held)
        left = self._part()
        if partitions:
            self._meter.notice(
                "revoked",
                group=self.settings.group,
                partitions=len(partitions),
                unfinished=left,
                drained=int(drained),
                committed=int(committed),
                seconds=round(self._loop.time() - begin, 3),
            )

    def _part(self) -> int:
        """What still runs of ended epochs: detached, or cancelled where an order of work forbids it to go on."""
        gone = [job for job in self._running if job.held.gone]
        for job in gone:
            task = self._running[job]
            if self.settings.limits.order is not Order.NONE and task is not None:
                task.cancel()
                del self._running[job]
            else:
                partition = job.held.partition
                self._detached[partition.topic, partition.partition, job.record.offset] = job
        return len(gone)

    def _assigned(self, partitions: list[Partition]) -> None:
        self._joined = True
        assert self._group is not None  # noqa: S101  its own callback
        self._generation = self._group.generation
        if self._opening is not None:
            self._opening.cancel()
        self._opening = asyncio.ensure_future(self._open(partitions, self._generation))

    async def _open(self, partitions: list[Partition], generation: int) -> None:
        group = self._group
        assert group is not None  # noqa: S101  assigned by it
        try:
            found: list[Opening] | None = None
            while found is None:
                try:
                    found = await openings(group, partitions, self.settings.start)
                except UnansweredError as error:
                    self._meter.notice("offsets_unread", group=self.settings.group, error=str(error))
                    await asyncio.sleep(self.settings.retry_pause)
            if generation != group.generation or self._stopping:
                return
            now = self._loop.time()
            for opening in found:
                group.seek(opening.partition, opening.offset)
                _, readable = self._stream.assign(
                    opening.partition, opening.committed, opening.metadata, opening.offset, now
                )
                if not readable:
                    self._meter.notice(
                        "commit_map_unreadable", topic=opening.partition.topic, partition=opening.partition.partition
                    )
            self._meter.notice("assigned", group=self.settings.group, partitions=len(partitions), generation=generation)
            self._wake()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  top of the task
            self._fail(error)

    # -- intake -------------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """The fetch loop, in Faust's Fetcher service."""
        try:
            assert self._group is not None and self._intake is not None  # noqa: S101, PT018  set before the app starts
            while not self._stopping:
                batches = await self._fetched(self._group)
                if batches:
                    await self._intake.put(batches)
                else:
                    await self._something()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  top of the task
            self._fail(error)

    async def _fetched(self, group: Group) -> list[Batch]:
        batches = []
        for partition, epoch, count in self._stream.wanted():
            try:
                records, position = await group.fetch(partition, count)
            except UnansweredError as error:
                self._meter.notice("fetch_retried", topic=partition.topic, error=str(error))
                await asyncio.sleep(self.settings.retry_pause)
                continue
            except OutOfRangeError as error:
                self._fail(
                    InputError(
                        "offset_expired",
                        f"{error}: this offset is not in the topic (deleted by retention, or the topic was recreated)."
                        " Records were never read. Mend: set the group's offset with kafka-consumer-groups"
                        " --reset-offsets, knowing that they are lost",
                    )
                )
                return []
            if position is not None and (records or self._stream.moved(partition, epoch, position)):
                batches.append(Batch(partition, epoch, [_record(record) for record in records], position))
        return batches

    async def _something(self) -> None:
        """Waits until something arrived, room was made, or half a second has passed."""
        if self._nudged:
            self._nudged = False
            await asyncio.sleep(0)
            return
        assert self._group is not None  # noqa: S101  set before the app starts
        arrival = self._group.arrival()
        self._nudge = self._loop.create_future()
        try:
            await asyncio.wait([arrival, self._nudge], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if arrival.done() and arrival.exception() is not None:
                self._group_broken(arrival.exception())
                await asyncio.sleep(self.settings.retry_pause)
        finally:
            arrival.cancel()
            self._nudge = None
            self._nudged = False

    def _group_broken(self, error: BaseException | None) -> None:
        """aiokafka's coordination has met an error that it does not mend by itself."""
        self._meter.notice("group_error", group=self.settings.group, error=repr(error))
        if not getattr(error, "retriable", False):
            self._fail(
                InputError(
                    "group",
                    f"group {self.settings.group}: {error!r}. Mend: check the principal's rights on the group, and that"
                    " no second worker runs under the same --instance name",
                )
            )

    def _wake(self) -> None:
        self._nudged = True
        if self._nudge is not None and not self._nudge.done():
            self._nudge.set_result(None)

    def _take(self, batches: Sequence[Batch]) -> None:
        """The agent's part."""
        now = self._loop.time()
        for batch in batches:
            taken = self._stream.fetched(batch.partition, batch.epoch, batch.records, batch.position, now)
            if taken:
                self._meter.taken(self.settings.group, batch.partition.topic, taken)
        self._start_jobs(now)

    def _start_jobs(self, now: float) -> None:
        running = self._running
        for job in self._stream.start(now):
            if self._detached:
                partition = job.held.partition
                joined = self._detached.pop((partition.topic, partition.partition, job.record.offset), None)
                if joined is not None:
                    joined.held = job.held  # it came back while its call still runs
                    joined.size = job.size
                    continue
            task = self._loop.create_task(self._run(job))
            running[job] = task

    # -- one job ------------------------------------------------------------------------------------------------

    async def _run(self, job: Taken) -> None:
        record = job.record
        assert isinstance(record, Record)  # noqa: S101  we made it
        try:
            outgoing = await self._work(record)
            if job.held.gone:
                self._drop(job)
                return
            self._running[job] = None
            if outgoing is None:
                self._settle(job)
            else:
                self._publisher.publish(outgoing, lambda result: self._acked(job, outgoing, result))
        except Exception as error:  # noqa: BLE001  top of the task: the worker stops with the record unsettled
            self._fail(error)

    def _acked(self, job: Taken, outgoing: Outgoing, result: TooLarge | None) -> None:
        if result is None:
            self._settle(job)
            return
        if self._oversize is None or result.topic != outgoing.topic:
            self._fail(Bug(f"a record of {result.size} bytes does not fit {result.topic} ({result.limit} bytes)"))
            return
        assert isinstance(job.record, Record)  # noqa: S101  we made it
        instead = self._oversize(job.record, outgoing, result)
        if instead.topic == outgoing.topic:
            self._fail(Bug(f"a record of {result.size} bytes does not fit {result.topic}, nor does what replaces it"))
            return
        self._publisher.publish(instead, lambda again: self._acked(job, instead, again))

    def _settle(self, job: Taken) -> None:
        if self._stream.settle(job, self._loop.time()):
            self._settled[job.held.partition.topic] += 1
            del self._running[job]
        else:
            self._drop(job)
        if not self._swept:
            self._swept = True
            self._loop.call_soon(self._sweep)

    def _drop(self, job: Taken) -> None:
        """A job of an ended epoch is done: nothing of it counts."""
        self._running.pop(job, None)
        partition = job.held.partition
        self._detached.pop((partition.topic, partition.partition, job.record.offset), None)

    def _sweep(self) -> None:
        """Once for all that was settled in one turn of the loop."""
        self._swept = False
        for topic, count in self._settled.items():
            self._meter.settled(self.settings.group, topic, count)
        self._settled.clear()
        self._start_jobs(self._loop.time())
        self._wake()
        for future, partitions in self._drains:
            if not future.done() and not self._stream.running_in(partitions):
                future.set_result(None)
        if self._stream.exhausted and not self._finished.done():
            self._finished.set_result(None)

    async def _drained(self, partitions: list[Partition], until: float) -> bool:
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

    # -- commit -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Faust's timer."""
        if self._commit is None or self._commit.done():
            self._commit_due(force=False)

    def _commit_due(self, *, force: bool) -> None:
        commits = self._stream.commit_due(self._loop.time(), force=force)
        if commits:
            self._commit = asyncio.ensure_future(self._committing(commits, self._generation))

    async def _commit_now(self, until: float) -> bool:
        """Everything that is settled is committed before `until`, or False."""
        while (left := until - self._loop.time()) > 0:
            if self._commit is not None and not self._commit.done():
                await asyncio.wait([self._commit], timeout=left)
                continue
            if self._failed.done():
                return False
            self._commit_due(force=True)
            if self._commit is None or self._commit.done():
                return True  # nothing to commit
            await asyncio.wait([self._commit], timeout=left)
            if self._commit.done() and self._commit_failures:
                await asyncio.sleep(min(0.1, max(0.0, until - self._loop.time())))
        if self._commit is not None and not self._commit.done():
            self._commit.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._commit
            self._stream.commit_failed(self._loop.time())
        return False

    async def _committing(self, commits: Sequence[Commit], generation: int) -> None:
        assert self._group is not None  # noqa: S101  nothing is held before it is there
        try:
            outcome = await self._group.commit(commits, generation, self.settings.commit_timeout)
        except InputError as error:
            self._stream.commit_failed(self._loop.time())
            self._fail(error)
            return
        now = self._loop.time()
        if outcome is Committed.DONE:
            self._commit_failures = 0
            self._stream.committed(commits, now)
            return
        self._commit_failures += 1
        self._stream.commit_failed(now, self.settings.retry_pause)
        if outcome is Committed.TOO_LARGE:
            limit = self._stream.shrink_metadata()
            self._meter.notice("commit_metadata_refused", group=self.settings.group, limit=limit)
        else:
            self._meter.notice("commit_retried", group=self.settings.group, outcome=outcome.value)

    # -- the end ------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._stream.drain()
            self._failed.set_result(error)


def _record(record: ConsumerRecord) -> Record:
    return Record(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp / 1000,
        record.key,
        record.value,
        record.headers,
    )


def topics_of(settings: Iterable[RoleSettings]) -> tuple[str, ...]:
    """All topics that the roles read."""
    return tuple(dict.fromkeys(topic for role in settings for topic in role.topics))
