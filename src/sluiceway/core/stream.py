"""One role's partitions as pure decisions: events in, asks out. No Faust, no aiokafka, no asyncio, no clock.

A driver (`kafka/consumer.py`, or a simulator) tells what happened and does what is asked:

    assign(partition, ...)             -> the partition is held under a new epoch
    wanted()                           -> how many records to fetch from which partition; none where it is paused
    fetched(partition, epoch, ...)     -> records are taken and queued; those of a gone epoch are dropped
    start(now)                         -> the jobs to run now
    hand_over(job)                     -> its one outgoing record is with the publisher: another job may start
    settle(job, now)                   -> that record was acked by the broker
    commit_due(now) / committed / commit_failed
    drain(), revoke(partitions)        -> nothing new starts; the epoch ends, and with it the right to publish

Its rules: an offset is open from its fetch until its settling; at most `Limits` are open; as many jobs as may run may
wait for their acks beside them; a partition that is full is left alone, so that nothing fetched is ever dropped; a job
of a gone epoch changes nothing; only one commit is under way at a time; what is committed is always a watermark, with
the map of what is finished above it.

`Order` is an order of work inside one partition and role: `key` runs the jobs of one key one after another. What may
start of a partition is `core.queue`'s, which partition is next is `core.turns`'; a flood of dead letters holds it
(`core.flood`). A job that processes have died with runs alone (`core.alone`): when it is its turn the process first
finishes what runs, and starts nothing until it is settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sluiceway.core.alone import Alone
from sluiceway.core.commits import Commits
from sluiceway.core.flood import FLOOD, FloodGuard
from sluiceway.core.held import Commit, Held, Limits, Order, Partition, PartitionStats, Pause, Wanted
from sluiceway.core.offsets import OffsetLedger, decode_finished
from sluiceway.core.parked import RECORDS, Parked
from sluiceway.core.queue import Fetched, Queue, Taken, TenantOf, weigh
from sluiceway.core.slots import Slots
from sluiceway.core.turns import jobs_in_turn

__all__ = ["FLOOD", "Commit", "Limits", "Order", "Partition", "PartitionStats", "Pause", "Stream", "Taken", "Wanted"]


class Stream:
    """Mutable state of one role; see the module for its events and asks. `now` is in seconds of any steady clock.

    `delays`: seconds from a record's own time to its start, for retry topics. `suspect` says of a record that it is to
    run alone; `tenant` names a record's tenant; `alone` is of all roles of the process.

    A driver sets `wake`, which brings a `start` soon, and `beside`: how many jobs of ended epochs still run.
    """

    def __init__(
        self,
        limits: Limits,
        delays: Mapping[str, float] | None = None,
        suspect: Callable[[Any], bool] | None = None,
        tenant: TenantOf | None = None,
        alone: Alone | None = None,
    ) -> None:
        self.limits = limits
        self.alone = alone or Alone()
        self.alone.roles.append(self)
        self.wake: Callable[[], object] = lambda: None
        self.beside: Callable[[], int] = lambda: 0
        self.floods: list[Partition] = []  # held since the driver last looked, and emptied this list
        self._delays = delays or {}
        self._suspect = suspect
        self._slots = None if tenant is None or limits.order is Order.PARTITION else Slots(limits.jobs, tenant)
        self._parked = Parked(limits.bytes, limits.queue)
        self.running = 0  # started and not settled
        self.handed = 0  # of these: handed over, they wait for their ack
        self.queued = 0
        self.bytes = 0
        self.taken = 0  # since the start
        self.settled = 0
        self.last_progress = 0.0
        self._epoch = 0
        self._held: dict[Partition, Held] = {}
        self._sharers = 0  # partitions held, but those of retry topics: these are empty most of the time
        self._turn = 0
        self._left = limits.limit
        self._draining = False
        self.commits = Commits(limits)
        self._mean_size = 1024.0

    # -- assignment ---------------------------------------------------------------------------------------------

    def assign(
        self, partition: Partition, committed: int | None, metadata: str | None, start: int, now: float
    ) -> tuple[int, bool]:
        """The new epoch, and whether the metadata could be read (True without any). Fetch from `start`.

        `committed` None: the group has no offset there yet, and one is committed at once.
        """
        if partition in self._held:
            self.revoke([partition])
        finished = decode_finished(start, metadata) if committed == start else ()
        self._epoch += 1
        by_key, delay = self.limits.order is Order.KEY, self._delays.get(partition.topic, 0.0)
        queue = Queue(by_key=by_key, slots=self._slots, delay=delay)
        guard = FloodGuard(self.limits.flood)
        held = Held(partition, self._epoch, OffsetLedger(start, finished or ()), committed, queue, guard)
        held.draining = self._draining
        held.head_since = now
        if committed is not None and committed != start:
            held.committed_changes = -1
        self._held[partition] = held
        self._sharers += not queue.delay
        return self._epoch, finished is not None

    def epoch(self, partition: Partition) -> int | None:
        held = self._held.get(partition)
        return held.epoch if held else None

    def moved(self, partition: Partition, epoch: int, position: int) -> bool:
        """True if a fetch without records went past what is no record (a transaction's marker, a compacted hole)."""
        held = self._held.get(partition)
        return held is not None and held.epoch == epoch and position > held.ledger.position

    def partitions(self) -> list[Partition]:
        return list(self._held)

    def drain(self, partitions: Iterable[Partition] | None = None) -> None:
        """Nothing new starts there (None: anywhere, now and later); what is queued stays open and is forgotten."""
        if partitions is None:
            self._draining = True
            partitions = list(self._held)
        for partition in partitions:
            held = self._held.get(partition)
            if held and not held.draining:
                held.draining = True
                self._forget_queue(held)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """The epochs end: a job of theirs that completes later changes nothing."""
        for partition in partitions:
            held = self._held.pop(partition, None)
            if held:
                self._forget_queue(held)
                held.gone = True
                self._sharers -= not held.queue.delay
                self.running -= held.running
                self.handed -= held.handed
                self.bytes -= held.bytes
                if self._slots is not None:
                    self._slots.end(held.epoch)
        self.alone.revoked(self)

    def owns(self, held: Held) -> bool:
        return self._held.get(held.partition) is held

    def running_in(self, partitions: Iterable[Partition]) -> int:
        return sum(held.running for p in partitions if (held := self._held.get(p)))

    def hold(self, partition: Partition, reason: str) -> None:
        """Stop fetching and starting there until `release` names the same reason; other reasons are kept apart."""
        if held := self._held.get(partition):
            held.reasons.add(reason)

    def release(self, partition: Partition, reason: str) -> None:
        if held := self._held.get(partition):
            held.reasons.discard(reason)
            if reason == FLOOD:
                held.flood.reset()

    def held(self, reason: str) -> list[Partition]:
        """The partitions that are held for this reason."""
        return [held.partition for held in self._held.values() if reason in held.reasons]

    # -- intake -------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many records may be fetched now in all."""
        room = self.limits.queue - self.queued
        if self._left is not None:
            room = min(room, self._left - self.queued)
        bytes_room = self._bytes_room()
        if room <= 0 or bytes_room <= 0 or not self._held:
            return 0
        return min(room, int(bytes_room / self._mean_size) + 1)

    def wanted(self) -> list[Wanted]:
        """What may be fetched from each partition, another one first each time; all together at most `room()`."""
        room = self.room()
        if not room:
            return []
        held_list = list(self._held.values())
        self._turn = (self._turn + 1) % len(held_list)
        wanted = []
        for held in held_list[self._turn :] + held_list[: self._turn]:
            queued, share = len(held.queue), self._queue_share(held)
            # Before its first commit a death would lose what is taken: the next owner may begin at the latest.
            # Refilled at half, so that a busy partition is not fetched for one record at a time.
            if held.committed is None or queued > share // 2 or self._pauses(held):
                continue
            records = min(room, share - queued, self.limits.span - held.ledger.span)
            if held.queue.delay:
                records = min(records, self._parked.ahead(held, len(held_list) - self._sharers))
            if records > 0:
                wanted.append(Wanted(held.partition, held.epoch, records))
        return wanted

    def fetched(
        self,
        partition: Partition,
        epoch: int,
        records: Sequence[Fetched],
        position: int,
        now: float,
        wall: float = 0.0,
    ) -> int:
        """Take a fetched batch; the next fetch reads from `position`. Returns how many were taken.

        A batch of another epoch, or for a partition that drains, is dropped: its offsets stay unread for us. `wall` is
        `now` in seconds since the epoch, for the delays of retry topics.
        """
        held = self._held.get(partition)
        if held is None or held.epoch != epoch or held.draining:
            return 0
        ledger, queue, suspect, delay = held.ledger, held.queue, self._suspect, held.queue.delay
        taken = size = 0
        for record in records:
            if not ledger.take(record.offset):
                continue
            job = Taken(held, record, weigh(record))
            size += job.size
            taken += 1
            if delay:
                # A clock that is ahead of ours makes nobody wait longer than the delay.
                job.due = now + min(delay, record.timestamp + delay - wall)
            job.alone = suspect is not None and suspect(record)
            queue.push(job)
        if ledger.position < position:
            ledger.reach(position)
        held.changes += 1
        if taken:
            held.record_size = size / taken
            self._mean_size += (held.record_size - self._mean_size) * 0.2
            self._parked.bytes += size if delay else 0
            held.bytes += size
            self.bytes += size
            self.queued += taken
            self.taken += taken
            self.last_progress = now
        return taken

    def start(self, now: float) -> list[Taken]:
        """The jobs to run now, fairly from all partitions; each is running until it is settled.

        `Limits.burst` of them at most: where it is so many, there may be more to start in a moment.
        """
        jobs = self.limits.jobs
        room = min(jobs - self.running + self.handed, 2 * jobs - self.running, self.limits.burst)
        if self._left is not None:
            room = min(room, self._left)
        if room <= 0 or not self.queued or self.alone.running is not None:
            return []
        share = 1 if self.limits.order is Order.PARTITION else self._share(jobs)
        started: list[Taken] = []
        if not self.alone.waiting:
            if self._slots is not None:
                self._slots.look(self.queued, now)
            started = jobs_in_turn(self._held.values(), room, share, now, self.alone)
        if self.alone.waiting and not started:
            started = self.alone.start(self)
        if self._delays:
            self._parked.bytes -= sum(job.size for job in started if job.held.queue.delay)
        self.running += len(started)
        self.queued -= len(started)
        if self._left is not None:
            self._left -= len(started)
        if started:
            self.last_progress = now
        return started

    def next_due(self) -> float | None:
        """When a job of a retry topic may start, None where none waits for its time."""
        dues = [held.queue.due() for held in self._held.values() if held.queue.delay and not held.reasons]
        return min((due for due in dues if due is not None), default=None)

    def hand_over(self, job: Taken) -> bool:
        """True if the job's slot is free for another; False if its epoch has gone, or its partition works in order."""
        held = job.held
        if held.gone or job.handed or self.limits.order is Order.PARTITION:
            return False
        job.handed = True
        held.handed += 1
        self.handed += 1
        self._leave(job)
        return True

    def settle(self, job: Taken, now: float, *, dead: bool = False) -> bool:
        """True if the job's offset is settled; False if its epoch has gone or it was settled before.

        `dead`: its one outgoing record was a dead letter. A flood of them holds the partition.
        """
        held = job.held
        if held.gone or not held.ledger.settle(job.record.offset):
            return False
        self._stop(job)
        held.changes += 1
        self.settled += 1
        self.last_progress = now
        held.queue.settled(job)
        self._ended(job)
        if held.flood.settled(dead) and FLOOD not in held.reasons:
            held.reasons.add(FLOOD)
            self.floods.append(held.partition)
        return True

    def abandon(self, job: Taken) -> None:
        """The job runs no more and was not settled: its offset stays open, and a later owner repeats it."""
        if not job.held.gone:
            self._stop(job)
        self._ended(job)

    def _stop(self, job: Taken) -> None:
        job.held.stop(job)
        self.running -= 1
        self.bytes -= job.size
        self.handed -= job.handed
        if self.alone.waiting:
            self.alone.tell(self)

    def _ended(self, job: Taken) -> None:
        if not job.handed:
            self._leave(job)
        self.alone.ended(job, self)

    def _leave(self, job: Taken) -> None:
        if self._slots is not None:
            self._slots.leave(job.held.epoch, job.record.offset)

    @property
    def exhausted(self) -> bool:
        """`Limits.limit` jobs were started and all of them are settled."""
        return self._left == 0 and self.running == 0

    # -- commit -------------------------------------------------------------------------------------------------

    def commit_due(self, now: float, *, force: bool = False) -> list[Commit]:
        """What to commit now; empty while a commit is under way, too early, or when nothing changed."""
        return self.commits.due(self._held.values(), self.settled, now, force=force)

    def committed(self, commits: Iterable[Commit], now: float) -> None:
        """The broker has acked them."""
        self.commits.acked(now)
        for commit in commits:
            held = self._held.get(commit.partition)
            if held and held.epoch == commit.epoch:
                if held.committed is None:
                    self.wake()
                held.committed = commit.offset
                held.committed_changes = commit.changes

    def commit_failed(self, now: float, retry_after: float = 0.0) -> None:
        """It did not happen, or nobody knows. It is made again not before `retry_after` seconds."""
        self.commits.failed(now, retry_after)

    def shrink_metadata(self) -> int:
        """The broker refused the text for its size: from now on half of it. Returns the new limit; 0 means none."""
        self.commits.metadata_chars //= 2
        return self.commits.metadata_chars

    # -- looking ------------------------------------------------------------------------------------------------

    def pauses(self) -> Counter[str]:
        """How many partitions are paused for each reason."""
        counts: Counter[str] = Counter()
        for held in self._held.values():
            counts.update(self._pauses(held))
        return counts

    def stats(self, now: float) -> list[PartitionStats]:
        return [held.stats(now, tuple(self._pauses(held))) for held in self._held.values()]

    def _pauses(self, held: Held) -> list[str]:
        full = self.queued >= self.limits.queue or len(held.queue) >= self._queue_share(held)
        return held.pauses(self.limits, jobs=full, size=self._bytes_room() <= 0)

    def _share(self, limit: int) -> int:
        """What one of n partitions may hold of a limit: 2 / (n + 1), so that a stuck one leaves room to the others."""
        return max(1, min(limit, 2 * limit // (self._sharers + 1)))

    def _queue_share(self, held: Held) -> int:
        share = self._share(self.limits.queue)
        return min(share, RECORDS) if held.queue.delay else share

    def _bytes_room(self) -> int:
        return self.limits.bytes - self.bytes + self._parked.excess

    def _forget_queue(self, held: Held) -> None:
        dropped = held.queue.clear() + self.alone.forget(held)
        self.queued -= len(dropped)
        size = sum(job.size for job in dropped)
        self._parked.bytes -= size if held.queue.delay else 0
        held.bytes -= size
        self.bytes -= size
