"""One role between Kafka and its `Work`: fetch, take, run, publish, settle, commit. It never looks into a job.

It performs what `core.stream` decides. What ends an epoch happens in the rebalance callback itself, before anything
else can run: from then on nothing of that epoch starts, and what finishes late is neither published nor settled. A job
whose partition comes back to us while it still runs joins its running call.

Nothing here waits without a bound. `failed()` says why a role can't go on; the worker then stops, everything unacked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence

from sluiceway.core.alone import Alone
from sluiceway.core.errors import InputError
from sluiceway.core.stream import FLOOD, Partition, Stream
from sluiceway.kafka.agents import Batch, Intake
from sluiceway.kafka.app import Duties, RoleApp
from sluiceway.kafka.committer import Committer
from sluiceway.kafka.fetch import FetchLoop
from sluiceway.kafka.group import Group, UnansweredError
from sluiceway.kafka.jobs import Crashed, Oversize, RunningJobs
from sluiceway.kafka.meter import Meter, NoMeter
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.role import Holds, NoHolds, RoleSettings, RoleStats
from sluiceway.kafka.security import Connection
from sluiceway.kafka.start import Opening, openings
from sluiceway.kafka.topics import sizes
from sluiceway.ports import Flight, NoFlight, Work

__all__ = ["Crashed", "Oversize", "RoleConsumer", "RoleSettings", "RoleStats"]

_TWIN_WINDOW = 60.0  # seconds


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
        crashed: Crashed | None = None,
        flight: Flight | None = None,
        holds: Holds | None = None,
        alone: Alone | None = None,
    ) -> None:
        self.settings = settings
        self._connection = connection
        self._publisher = publisher
        self._meter: Meter = meter or NoMeter()
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._flight: Flight = flight or NoFlight()
        self._holds: Holds = holds or NoHolds()
        self._stream = Stream(
            settings.limits, settings.delays, None if flight is None else flight.suspect, settings.tenant, alone
        )
        self._parts: _Parts | None = None
        self._joined = False
        self._first_joined = 0.0
        self._thrown_out: list[float] = []  # when we were no member any more though we had not left
        self._stopping = False
        self._opening: asyncio.Task[None] | None = None
        self._jobs = RunningJobs(
            self._stream,
            work,
            publisher,
            settings,
            self._meter,
            self._flight,
            self._holds,
            oversize,
            crashed,
            self._fail,
            self._wake,
        )

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
            Committer(self._stream, group, self.settings, self._meter, self._flight, self._fail),
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
        clean = await self._jobs.drained(
            self._stream.partitions(), 0.0 if self._publisher.failed_now else end - reserve
        )
        await self._jobs.shut(end - reserve * 0.75)
        clean = await parts.committer.now(end - reserve / 2) and clean
        if self._opening is not None:
            self._opening.cancel()
        self._stream.revoke(self._stream.partitions())
        self._jobs.cancel()
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
        await asyncio.shield(self._jobs.finished)

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
        for topic, partition in self._stream.held(FLOOD):
            reasons.append(f"{topic}[{partition}] is held for its dead letters: look, then sluiceway resume")
        reasons.extend(self._publisher.ready()[1])
        return not reasons, reasons

    def resume(self, partition: Partition) -> None:
        """An operator has looked: a partition that was held for its dead letters goes on."""
        self._stream.release(partition, FLOOD)
        self._jobs.start(self._loop.time())
        self._wake()

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
            unacked=self._jobs.unacked,
            queued=stream.queued,
            detached=self._jobs.detached,
            taken=stream.taken,
            settled=stream.settled,
            lag=lag,
            partitions=rows,
            pauses=stream.pauses(),
            last_commit=None if stream.commits.last is None else now - stream.commits.last,
            commit_age=stream.commits.age(now),
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
        if self.settings.instance is not None:
            self._suspect_a_twin()
        # Called in the rebalance callback itself: no record of these can be taken or started any more.
        self._stream.drain(self._stream.partitions())
        if self._opening is not None:
            self._opening.cancel()
            # Until Python 3.12 `wait_for`, ours or aiokafka's, may swallow that: then it looks whether it is over.
            self._opening = None
        return self._revoked(partitions)

    def _suspect_a_twin(self) -> None:
        """Two live members of one name take it from each other each second, and nobody is told; the newer one stops."""
        if self._parts is None or self._parts.group.generation != -1 or not self._joined:
            return  # an ordinary rebalance: we are still a member
        now = self._loop.time()
        self._thrown_out = [*(at for at in self._thrown_out if now - at < _TWIN_WINDOW), now]
        newer = now - self._first_joined < _TWIN_WINDOW
        if len(self._thrown_out) >= (2 if newer else 8):
            self._fail(
                InputError(
                    "instance",
                    f"group {self.settings.group}: another live worker runs as --instance {self.settings.instance}, and"
                    " the two take its partitions from each other. Mend: give each worker a name of its own",
                )
            )

    async def _revoked(self, partitions: list[Partition]) -> None:
        begin = self._loop.time()
        end = begin + self.settings.revoke_budget
        held = self._stream.partitions()
        drained = committed = False
        try:
            drained = await self._jobs.drained(held, begin + self.settings.revoke_budget * 0.7)
            await self._jobs.shut(begin + self.settings.revoke_budget * 0.8)
            committed = self._parts is not None and await self._parts.committer.now(end)
        except Exception as error:  # noqa: BLE001  top of the task: aiokafka would log it and go on
            self._fail(error)
        finally:  # without it all that ends in the next epoch would be dropped
            self._stream.revoke(held)
            left = self._jobs.part()
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

    def _assigned(self, partitions: list[Partition]) -> None:
        if not self._joined:
            self._first_joined = self._loop.time()
        self._joined = True
        if self._parts is None or self._stopping:
            return
        if self._opening is not None:
            self._opening.cancel()
        self._parts.committer.generation = self._parts.group.generation
        self._opening = asyncio.create_task(self._open(self._parts, partitions))

    async def _open(self, parts: _Parts, partitions: list[Partition]) -> None:
        group, generation = parts.group, parts.committer.generation

        def over() -> bool:
            return self._opening is not asyncio.current_task() or generation != group.generation or self._stopping

        try:
            found: list[Opening] | None = None
            while found is None:
                try:
                    found = await openings(group, partitions, self.settings.start, self.settings.delays)
                except UnansweredError as error:
                    self._meter.notice("offsets_unread", group=self.settings.group, error=str(error))
                    await asyncio.sleep(self.settings.retry_pause)
            if over():
                return
            held = await self._holds.known(self.settings.group)
            if over():
                return
            now = self._loop.time()
            for opening in found:
                group.seek(opening.partition, opening.offset)
                _, readable = self._stream.assign(
                    opening.partition, opening.committed, opening.metadata, opening.offset, now
                )
                if opening.partition in held:
                    self._stream.hold(opening.partition, FLOOD)
                if not readable:
                    self._meter.notice(
                        "commit_map_unreadable", topic=opening.partition.topic, partition=opening.partition.partition
                    )
            counts = Counter(partition.topic for partition in partitions)
            self._meter.notice(
                "assigned",
                group=self.settings.group,
                generation=generation,
                partitions=len(partitions),
                topics=" ".join(f"{topic}:{count}" for topic, count in sorted(counts.items())),
            )
            parts.fetch.wake()
        except Exception as error:  # noqa: BLE001  top of the task
            self._fail(error)

    # -- intake -------------------------------------------------------------------------------------------------

    def _take(self, batches: Sequence[Batch]) -> None:
        """The agent's part."""
        now = self._loop.time()
        wall = self.settings.wall() if self.settings.delays else 0.0
        for batch in batches:
            taken = self._stream.fetched(batch.partition, batch.epoch, batch.records, batch.position, now, wall)
            if taken:
                self._meter.taken(self.settings.group, batch.partition.topic, taken)
        self._jobs.start(now)

    def _wake(self) -> None:
        if self._parts is not None:
            self._parts.fetch.wake()

    # -- the end ------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._stream.drain()
            self._failed.set_result(error)
