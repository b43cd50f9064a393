"""One role's partitions as pure decisions: events in, asks out. No Faust, no aiokafka, no asyncio, no clock.

A driver (`kafka/consumer.py`, or a simulator) tells what happened and does what is asked:

    assign(partition, ...)             -> the partition is held under a new epoch
    wanted()                           -> how many records to fetch from which partition; none where it is paused
    fetched(partition, epoch, ...)     -> records are taken and queued; those of a gone epoch are dropped
    start(now)                         -> the jobs to run now
    settle(job, now)                   -> the job's one outgoing record was acked by the broker
    commit_due(now) / committed / commit_failed
    drain(), revoke(partitions)        -> nothing new starts; the epoch ends, and with it the right to publish

Its rules: an offset is open from its fetch until its settling; at most `Limits` are open; a partition that is full is
left alone, so that nothing fetched is ever dropped; a job of a gone epoch changes nothing; only one commit is under way
at a time; what is committed is always a watermark, with the map of what is finished above it.

`Order` is an order of work inside one partition and role: `key` runs the jobs of one key one after another.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from sluiceway.core.held import (
    Commit,
    Fetched,
    Held,
    Limits,
    Order,
    Partition,
    PartitionStats,
    Pause,
    Taken,
    Wanted,
)
from sluiceway.core.offsets import OffsetLedger, decode_finished, encode_finished

__all__ = ["Commit", "Limits", "Order", "Partition", "PartitionStats", "Pause", "Stream", "Taken", "Wanted"]


class Stream:
    """Mutable state of one role; see the module for its events and asks. `now` is in seconds of any steady clock."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running = 0
        self.queued = 0
        self.bytes = 0
        self.taken = 0  # since the start
        self.settled = 0
        self.last_progress = 0.0
        self.last_commit: float | None = None
        self._epoch = 0
        self._held: dict[Partition, Held] = {}
        self._turn = 0
        self._left = limits.limit
        self._draining = False
        self._committing = False
        self._commit_from = 0.0
        self._settled_at_commit = 0
        self._metadata_chars = limits.metadata_chars
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
        held = Held(partition, self._epoch, OffsetLedger(start, finished or ()), committed)
        held.draining = self._draining
        held.head_since = now
        if committed is not None and committed != start:
            held.committed_changes = -1
        self._held[partition] = held
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
                self.running -= held.running
                self.bytes -= held.bytes

    def running_in(self, partitions: Iterable[Partition]) -> int:
        return sum(held.running for p in partitions if (held := self._held.get(p)))

    def hold(self, partition: Partition, reason: str) -> None:
        """Stop fetching and starting there until `release` names the same reason; other reasons are kept apart."""
        if held := self._held.get(partition):
            held.reasons.add(reason)

    def release(self, partition: Partition, reason: str) -> None:
        if held := self._held.get(partition):
            held.reasons.discard(reason)

    # -- intake -------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many records may be fetched now in all."""
        room = self.limits.queue - self.queued
        if self._left is not None:
            room = min(room, self._left - self.queued)
        bytes_room = self.limits.bytes - self.bytes
        if room <= 0 or bytes_room <= 0 or not self._held:
            return 0
        return min(room, int(bytes_room / self._mean_size) + 1)

    def wanted(self) -> list[Wanted]:
        """What may be fetched from each partition, another one first each time; all together at most `room()`."""
        room = self.room()
        if not room:
            return []
        share = self._share(self.limits.queue)
        held_list = list(self._held.values())
        self._turn = (self._turn + 1) % len(held_list)
        wanted = []
        for held in held_list[self._turn :] + held_list[: self._turn]:
            queued = len(held.queue) + held.waiting
            # Refilled at half, so that a busy partition is not fetched for one record at a time.
            if queued > share // 2 or self._pauses(held):
                continue
            records = min(room, share - queued, self.limits.span - held.ledger.span)
            if records > 0:
                wanted.append(Wanted(held.partition, held.epoch, records))
        return wanted

    def fetched(self, partition: Partition, epoch: int, records: Sequence[Fetched], position: int, now: float) -> int:
        """Take a fetched batch; the next fetch reads from `position`. Returns how many were taken.

        A batch of another epoch, or for a partition that drains, is dropped: its offsets stay unread for us.
        """
        held = self._held.get(partition)
        if held is None or held.epoch != epoch or held.draining:
            return 0
        ledger, queue, lines = held.ledger, held.queue, held.lines
        by_key = self.limits.order is Order.KEY
        taken = size = waiting = 0
        for record in records:
            if not ledger.take(record.offset):
                continue
            value, key = record.value, record.key
            bytes_ = 100 + (len(value) if value else 0) + (len(key) if key else 0)
            if record.headers:
                bytes_ += sum(len(name) + len(content or b"") for name, content in record.headers)
            job = Taken(held, record, bytes_)
            size += bytes_
            taken += 1
            if by_key and key is not None:
                line = lines.get(key)
                if line is not None:
                    line.append(job)
                    waiting += 1
                    continue
                lines[key] = deque()
            queue.append(job)
        if ledger.position < position:
            ledger.reach(position)
        held.changes += 1
        if taken:
            self._mean_size += (size / taken - self._mean_size) * 0.2
            held.waiting += waiting
            held.bytes += size
            self.bytes += size
            self.queued += taken
            self.taken += taken
            self.last_progress = now
        return taken

    def start(self, now: float) -> list[Taken]:
        """The jobs to run now, fairly from all partitions; each is running until it is settled."""
        room = self.limits.jobs - self.running
        if self._left is not None:
            room = min(room, self._left)
        if room <= 0 or not self.queued:
            return []
        share = 1 if self.limits.order is Order.PARTITION else self._share(self.limits.jobs)
        jobs: list[Taken] = []
        while room > 0:
            ready = [h for h in self._held.values() if h.queue and h.running < share and not h.reasons]
            if not ready:
                break
            portion = max(1, room // len(ready))
            for held in ready:
                count = min(portion, room, len(held.queue), share - held.running)
                jobs.extend(held.queue.popleft() for _ in range(count))
                held.running += count
                room -= count
        self.running += len(jobs)
        self.queued -= len(jobs)
        if self._left is not None:
            self._left -= len(jobs)
        if jobs:
            self.last_progress = now
        return jobs

    def settle(self, job: Taken, now: float) -> bool:
        """True if the job's offset is settled; False if its epoch has gone or it was settled before."""
        held = job.held
        if held.gone or not held.ledger.settle(job.record.offset):
            return False
        held.running -= 1
        held.bytes -= job.size
        held.changes += 1
        self.running -= 1
        self.bytes -= job.size
        self.settled += 1
        self.last_progress = now
        if held.lines and job.record.key is not None:
            line = held.lines.get(job.record.key)
            if line:
                held.waiting -= 1
                held.queue.append(line.popleft())
            elif line is not None:
                del held.lines[job.record.key]
        return True

    def abandon(self, job: Taken) -> None:
        """The job runs no more and was not settled: its offset stays open, and a later owner repeats it."""
        held = job.held
        if not held.gone:
            held.running -= 1
            held.bytes -= job.size
            self.running -= 1
            self.bytes -= job.size

    @property
    def exhausted(self) -> bool:
        """`Limits.limit` jobs were started and all of them are settled."""
        return self._left == 0 and self.running == 0

    # -- commit -------------------------------------------------------------------------------------------------

    def commit_due(self, now: float, *, force: bool = False) -> list[Commit]:
        """What to commit now; empty while a commit is under way, too early, or when nothing changed.

        A partition without an offset in the group comes at once. After a commit that failed, not before its time.
        """
        if self._committing:
            return []
        changed = [held for held in self._held.values() if held.changes != held.committed_changes]
        if not changed:
            return []
        due = (
            force
            or (self.settled - self._settled_at_commit >= self.limits.commit_count and now >= self._commit_from)
            or now >= self._commit_from + self.limits.commit_interval
            or (now >= self._commit_from and any(held.committed is None for held in changed))
        )
        if not due:
            return []
        commits = []
        for held in changed:
            offset = held.ledger.watermark
            text, left_out = encode_finished(offset, held.ledger.finished(), self._metadata_chars)
            held.map_full = left_out > 0 or len(text) > self._metadata_chars * 9 // 10
            commits.append(Commit(held.partition, held.epoch, offset, text, held.changes))
        self._committing = True
        self._settled_at_commit = self.settled
        return commits

    def committed(self, commits: Iterable[Commit], now: float) -> None:
        """The broker has acked them."""
        self._committing = False
        self._commit_from = self.last_commit = now
        for commit in commits:
            held = self._held.get(commit.partition)
            if held and held.epoch == commit.epoch:
                held.committed = commit.offset
                held.committed_changes = commit.changes

    def commit_failed(self, now: float, retry_after: float = 0.0) -> None:
        """It did not happen, or nobody knows. It is made again not before `retry_after` seconds."""
        self._committing = False
        self._commit_from = now + retry_after - self.limits.commit_interval

    def shrink_metadata(self) -> int:
        """The broker refused the text for its size: from now on half of it. Returns the new limit; 0 means none."""
        self._metadata_chars //= 2
        return self._metadata_chars

    # -- looking ------------------------------------------------------------------------------------------------

    def pauses(self) -> Counter[str]:
        """How many partitions are paused for each reason."""
        counts: Counter[str] = Counter()
        for held in self._held.values():
            counts.update(self._pauses(held))
        return counts

    def stats(self, now: float) -> list[PartitionStats]:
        rows = []
        for held in self._held.values():
            watermark = held.ledger.watermark
            if watermark != held.head or not held.ledger.open:
                held.head, held.head_since = watermark, now
            rows.append(
                PartitionStats(
                    held.partition,
                    held.epoch,
                    watermark,
                    held.ledger.position,
                    held.committed,
                    held.ledger.open,
                    now - held.head_since,
                    tuple(self._pauses(held)),
                )
            )
        return rows

    def _pauses(self, held: Held) -> list[str]:
        reasons: list[str] = []
        if held.draining:
            reasons.append(Pause.DRAIN)
        if held.reasons:
            reasons.append(Pause.HELD)
        if self.queued >= self.limits.queue or len(held.queue) + held.waiting >= self._share(self.limits.queue):
            reasons.append(Pause.JOBS)
        if self.bytes >= self.limits.bytes:
            reasons.append(Pause.BYTES)
        if held.ledger.span >= self.limits.span:
            reasons.append(Pause.SPAN)
        if held.map_full and held.ledger.open:
            reasons.append(Pause.MAP)
        return reasons

    def _share(self, limit: int) -> int:
        """What one of n partitions may hold of a limit: 2 / (n + 1), so that a stuck one leaves room to the others."""
        return max(1, 2 * limit // (len(self._held) + 1))

    def _forget_queue(self, held: Held) -> None:
        dropped = [*held.queue, *(job for line in held.lines.values() for job in line)]
        held.queue.clear()
        held.lines.clear()
        held.waiting = 0
        self.queued -= len(dropped)
        size = sum(job.size for job in dropped)
        held.bytes -= size
        self.bytes -= size
