"""One role between Kafka and its `Work`: fetch, take, run, publish, settle, commit. It never looks into a job.

It performs what `core.stream` decides. What ends an epoch happens in the rebalance callback itself, before anything
else can run: from then on nothing of that epoch starts, and what finishes late is neither published nor settled. A job
whose partition comes back to us while it still runs joins its running call.

Nothing here waits without a bound. `failed()` says why a role can't go on; the worker then stops, everything unacked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence

from sluiceway.core.errors import Bug, InputError
from sluiceway.core.stream import Order, Partition, Stream, Taken
from sluiceway.kafka.agents import Batch, Intake
from sluiceway.kafka.app import Duties, RoleApp
from sluiceway.kafka.committer import Committer
from sluiceway.kafka.fetch import FetchLoop
from sluiceway.kafka.group import Group, UnansweredError
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.role import RoleSettings, RoleStats
from sluiceway.kafka.security import Connection
from sluiceway.kafka.start import Opening, openings
from sluiceway.kafka.topics import sizes
from sluiceway.ports import Outgoing, Record, Work

__all__ = ["Oversize", "RoleConsumer", "RoleSettings", "RoleStats"]

Oversize = Callable[[Record, Outgoing, TooLarge], Outgoing]
"""What to publish instead of a record that does not fit its topic: a dead letter."""


class _Parts:
    """What exists from start() on."""

    __slots__ = ("app", "committer", "fetch", "group")

    def __init__(self, group: Group, app: RoleApp, fetch: FetchLoop, committer: Committer) -> None:
        self.group = group
        self.app = app
        self.fetch = fetch
        self.committer = committer


class RoleConsumer:
    """Made inside the running loop. `publisher` is started by the caller, and stopped by it after all roles."""

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
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._stream = Stream(settings.limits)
        self._parts: _Parts | None = None
        self._joined = False
        self._stopping = False
        self._opening: asyncio.Task[None] | None = None
        self._running: dict[Taken, asyncio.Task[None] | None] = {}  # None: its outgoing record waits for its ack
        self._detached: dict[tuple[str, int, int], Taken] = {}
        self._swept = False
        self._settled: Counter[str] = Counter()
        self._drains: list[tuple[asyncio.Future[None], list[Partition]]] = []

    def __repr__(self) -> str:
        return f"<RoleConsumer {self.settings.group} running={self._stream.running} queued={self._stream.queued}>"

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connected and joining. Raises InputError where cluster or topics are not there for us."""
        found = await sizes(self._connection, self.settings.topics)
        missing = [name for name, size in found.items() if size is None]
        if missing:
            raise InputError(
                "topics", f"missing on {self._connection.bootstrap}: {', '.join(missing)}. Mend: sluiceway topics apply"
            )
        largest = max(size or 0 for size in found.values())
        group = Group(self._connection, self.settings.group, self.settings.instance, largest)
        await group.start()
        duties = Duties(self._join, self._fetch, self._tick, self._fail)
        app = RoleApp(self.settings.group, self._connection.bootstrap, duties)
        intake = Intake(app, self._take)
        self._parts = _Parts(
            group,
            app,
            FetchLoop(self._stream, group, intake, self.settings, self._meter, self._fail),
            Committer(self._stream, group, self.settings, self._meter, self._fail),
        )
        await app.start()

    async def stop(self, budget: float | None = None) -> bool:
        """Drain, commit, leave the group: True if all that happened within `budget` seconds. Never waits longer.

        After False jobs may still be running, unsettled: the caller exits, and the next owner repeats them.
        """
        parts = self._parts
        if parts is None:
            return True
        budget = self.settings.stop_budget if budget is None else budget
        end = self._loop.time() + budget
        reserve = min(5.0, budget * 0.3)
        self._stopping = True
        self._stream.drain()
        parts.fetch.stop()
        # A publisher that has failed acks nothing any more: then there is nothing to wait for.
        clean = await self._drained(self._stream.partitions(), 0.0 if self._publisher.failed_now else end - reserve)
        clean = await parts.committer.now(end - reserve / 2) and clean
        if self._opening is not None:
            self._opening.cancel()
        self._stream.revoke(self._stream.partitions())
        for task in [task for task in self._running.values() if task is not None]:
            task.cancel()
        clean = await parts.group.stop(max(0.1, (end - self._loop.time()) * 0.7)) and clean
        stop = asyncio.ensure_future(parts.app.stop())
        done, _ = await asyncio.wait([stop], timeout=max(0.1, end - self._loop.time()))
        if not done:
            stop.cancel()
            return False
        return clean and stop.exception() is None

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
        if self._parts is None:
            return False, ["not started"]
        if self._failed.done():
            reasons.append(f"failed: {self._failed.result()}")
        if self._stopping:
            reasons.append("stopping")
        elif not self._joined:
            reasons.append("not yet in the group")
        elif self._opening is not None and not self._opening.done():
            reasons.append("reading offsets")
        if self._parts.committer.failures > 3:
            reasons.append("commits fail")
        reasons.extend(self._publisher.ready()[1])
        return not reasons, reasons

    def stats(self) -> RoleStats:
        now = self._loop.time()
        stream, parts = self._stream, self._parts
        rows = stream.stats(now)
        lag = {}
        for row in rows:
            end = parts.group.end(row.partition) if parts else None
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
        if self._parts is not None and not self._stopping:
            self._parts.group.subscribe(self.settings.topics, self._revoking, self._assigned)

    async def _fetch(self) -> None:
        if self._parts is not None:
            await self._parts.fetch.run()

    async def _tick(self) -> None:
        """Faust's timer."""
        if self._parts is not None:
            self._parts.committer.due()

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
        committed = self._parts is not None and await self._parts.committer.now(end)
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
        if self._parts is None or self._stopping:
            return
        if self._opening is not None:
            self._opening.cancel()
        self._parts.committer.generation = self._parts.group.generation
        self._opening = asyncio.create_task(self._open(self._parts, partitions))

    async def _open(self, parts: _Parts, partitions: list[Partition]) -> None:
        group, generation = parts.group, parts.committer.generation
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
            parts.fetch.wake()
        except Exception as error:  # noqa: BLE001  top of the task
            self._fail(error)

    # -- intake -------------------------------------------------------------------------------------------------

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
                self._publisher.submit(outgoing, self._acked, job)
        except Exception as error:  # noqa: BLE001  top of the task: the worker stops with the record unsettled
            self._give_up(job, error)

    def _acked(self, job: Taken, outgoing: Outgoing, result: TooLarge | None) -> None:
        if result is None:
            self._settle(job)
            return
        if self._oversize is None or result.topic != outgoing.topic:
            self._give_up(
                job, Bug(f"a record of {result.size} bytes does not fit {result.topic} ({result.limit} bytes)")
            )
            return
        assert isinstance(job.record, Record)  # noqa: S101  we made it
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
        if self._parts is not None:
            self._parts.fetch.wake()
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

    # -- the end ------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._stream.drain()
            self._failed.set_result(error)
