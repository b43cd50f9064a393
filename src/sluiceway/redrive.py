"""Redriving: dead letters back to the topics they came from, each opening the next round of its job.

Everything is read twice: first to count, and to see that all can be written to; then to publish. A letter counts as
redriven once the broker has acked it, and goes on record (`core.redriven`) with at most a second's others. What dies
between ack and record goes back once more in the next run: as the same round, so its outcome has the same id.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from sluiceway.core import redrive as deciding
from sluiceway.core import redriven as marks
from sluiceway.core.errors import InputError
from sluiceway.core.redrive import Fate, Filter, Letter, Mark, Tally
from sluiceway.core.redriven import Redriven
from sluiceway.kafka.extent import Extent
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.security import Connection
from sluiceway.kafka.topics import sizes
from sluiceway.kafka.watch import Watch
from sluiceway.ports import Outgoing, Record
from sluiceway.topicmap import PREFIX

_CHUNK = 500  # letters published between two records of what went back
_PATIENCE = 60.0  # seconds without any ack
_STOP = 10.0  # seconds for the acks that are under way when somebody stops it

Watcher = Callable[[int, int], None]
"""Told how many letters went back so far, and how many are to go in all."""


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """What `sluiceway redrive` was asked for. `rate` in letters a second; `max_rounds`: what died in it stays."""

    connection: Connection
    wanted: Filter = field(default_factory=Filter)
    limit: int | None = None
    rate: float | None = None
    max_rounds: int = 3
    dry_run: bool = False
    dead_letters: str = PREFIX + "dead-letters"
    record: str = PREFIX + "redriven"


@dataclass(slots=True)
class Summary:
    """What a redrive came to. `tally` counts what went back (would go, in a dry run) and what stayed, by fate.

    `waiting`: letters that match and were not reached. `unrecorded`: sent, but the next run does not know of it and may
    send it again. `begun`: something may have been published.
    """

    tally: Tally = field(default_factory=Tally)
    too_large: list[str] = field(default_factory=list)
    waiting: int = 0
    unrecorded: int = 0
    begun: bool = False
    interrupted: bool = False
    failure: str | None = None

    @property
    def redriven(self) -> int:
        return self.tally.counts[Fate.REDRIVEN]

    @property
    def whole(self) -> bool:
        """Whether all that was asked for was done."""
        return self.failure is None and not self.interrupted and not self.too_large


def run(options: RedriveOptions, summary: Summary, watcher: Watcher) -> None:
    """`redrive` until it ends or SIGINT or SIGTERM stops it; a second one leaves at once."""
    asyncio.run(_until_asked(options, summary, watcher))


async def _until_asked(options: RedriveOptions, summary: Summary, watcher: Watcher) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    work = asyncio.ensure_future(redrive(options, summary, stop, watcher))

    def asked() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        if not summary.begun:
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
    try:
        await work
    except asyncio.CancelledError:
        summary.interrupted = True


async def redrive(options: RedriveOptions, summary: Summary, stop: asyncio.Event, watcher: Watcher) -> None:
    """Counts in `summary`, which is right whenever this ends; `stop` ends it after the acks that are under way.

    Raises InputError where the cluster or a topic is not there; nothing was published then.
    """
    async with AsyncExitStack() as stack:
        run = await _Run.open(options, stack)
        plan = Tally()
        async with aclosing(run.letters()) as found:
            async for _, letter in found:
                plan.add(run.fate(letter), letter)
                if stop.is_set():
                    summary.interrupted = True
                    return
        wanted = plan.counts[Fate.REDRIVEN]
        total = wanted if options.limit is None else min(wanted, options.limit)
        if options.dry_run or not total:
            summary.tally = plan
            return
        for fate in Fate:
            if fate is not Fate.REDRIVEN:
                summary.tally.counts[fate] = plan.counts[fate]
                summary.tally.kinds |= {fate: plan.kinds[fate]} if fate in plan.kinds else {}
        publisher = await run.publisher(plan.topics(Fate.REDRIVEN), stack)
        sending = _Sending(options, run, publisher, summary, stop)
        summary.begun = True
        try:
            await sending.all(total, lambda done: watcher(done, total))
        except InputError as error:
            summary.failure = error.detail
        finally:
            summary.waiting = total - summary.redriven - len(summary.too_large)


class _Run:
    """The dead letters as they lie there now, and what is on record of earlier redrives and of others at work."""

    def __init__(self, options: RedriveOptions, letters: Extent, watch: Watch) -> None:
        self.id = secrets.token_hex(8)
        self.before: set[Mark] = set()
        self._options = options
        self._extent = letters
        self._watch = watch
        self._mine: set[Mark] = set()

    @classmethod
    async def open(cls, options: RedriveOptions, stack: AsyncExitStack) -> _Run:
        found = await _present(options.connection, (options.dead_letters, options.record))
        watch = Watch(options.connection, [options.record])
        stack.push_async_callback(watch.stop)
        await watch.start()  # before the record is read: whatever another redrive adds from now on is seen
        letters = Extent(options.connection, options.dead_letters, found[options.dead_letters])
        run = cls(options, await stack.enter_async_context(letters), watch)
        async with Extent(options.connection, options.record, found[options.record]) as record:
            async for batch in record.batches():
                for entry in run._entries(batch):
                    run.before |= set(entry.letters)
        return run

    async def publisher(self, targets: set[str], stack: AsyncExitStack) -> Publisher:
        """A started publisher for all of `targets`. Raises InputError where one of them is gone."""
        options = self._options
        missing = [name for name, size in (await sizes(options.connection, targets)).items() if size is None]
        if missing:
            raise InputError(
                "topics",
                f"dead letters came from {', '.join(missing)}, which {options.connection.bootstrap} has not (any more)."
                " Mend: create it again, or choose others with --topic",
            )
        publisher = Publisher(options.connection, [*sorted(targets), options.record])
        stack.push_async_callback(publisher.stop, _STOP)  # first: a start that is cut short leaves connections open
        await publisher.start()
        return publisher

    async def letters(self) -> AsyncGenerator[tuple[Record, Letter | None]]:
        """Each record of the dead letters, to the end as of the first reading."""
        async with aclosing(self._extent.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    mark = Mark(record.partition, record.offset, round(record.timestamp * 1000))
                    yield record, deciding.read(mark, record.value, record.headers)

    def fate(self, letter: Letter | None) -> Fate:
        options = self._options
        never = (options.dead_letters, options.record)
        return deciding.decide(letter, options.wanted, max_rounds=options.max_rounds, before=self.before, never=never)

    async def look(self) -> str | None:
        """Takes in what others have put on record meanwhile; the run that sends the very letters that we do."""
        for entry in self._entries(await self._watch.records(within=0.0)):
            if entry.run != self.id:
                if not self._mine.isdisjoint(entry.letters):
                    return entry.run
                self.before |= set(entry.letters)
        return None

    def went(self, letters: Collection[Mark]) -> Outgoing:
        """The record that these went back."""
        self._mine |= set(letters)
        entry = Redriven(self.id, self._options.dead_letters, time.time(), tuple(letters))
        topic = self._options.record
        return Outgoing(topic, entry.topic.encode(), marks.encode(entry), (("content-type", b"application/json"),))

    def _entries(self, records: Iterable[Record]) -> list[Redriven]:
        found = []
        for record in records:
            try:
                entry = marks.decode(record.value or b"")
            except InputError as error:
                raise InputError(
                    "record",
                    f"{record.topic}[{record.partition}] at {record.offset} is no record of a redrive ({error.detail})."
                    " Mend: use the newest Sluiceway that has redriven here",
                ) from None
            if entry.topic == self._options.dead_letters:
                found.append(entry)
        return found


class _Sending:
    """The letters that go back: chunk by chunk published, acked and put on record."""

    def __init__(
        self, options: RedriveOptions, run: _Run, publisher: Publisher, summary: Summary, stop: asyncio.Event
    ) -> None:
        self._options = options
        self._run = run
        self._publisher = publisher
        self._summary = summary
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()
        self._sent = 0
        rate = options.rate
        self._chunk = _CHUNK if rate is None else min(_CHUNK, max(1, int(rate)))

    async def all(self, total: int, watcher: Callable[[int], None]) -> None:
        chunk: list[tuple[Record, Letter]] = []
        async with aclosing(self._run.letters()) as found:
            async for record, letter in found:
                if letter is None or self._run.fate(letter) is not Fate.REDRIVEN:
                    continue
                chunk.append((record, letter))
                if len(chunk) < self._chunk and self._sent + len(chunk) < total:
                    continue
                await self._send(chunk)
                chunk = []
                watcher(self._summary.redriven)
                if self._ended() or self._sent >= total:
                    return
        if chunk:  # another run has sent some of the rest meanwhile
            await self._send(chunk)
            watcher(self._summary.redriven)

    def _ended(self) -> bool:
        self._summary.interrupted = self._stop.is_set()
        return self._summary.interrupted or self._summary.failure is not None

    async def _send(self, chunk: list[tuple[Record, Letter]]) -> None:
        summary = self._summary
        other = await self._run.look()
        if other is not None:
            summary.failure = f"another redrive (run {other}) sends the same dead letters back. Mend: run one at a time"
            return
        sent: list[tuple[Letter, asyncio.Future[TooLarge | None]]] = []
        for record, letter in chunk:
            if letter.mark in self._run.before:
                continue
            await self._due()
            if self._stop.is_set():
                break
            outgoing = Outgoing(letter.topic, record.key, record.value, deciding.revived(record.headers, letter))
            sent.append((letter, self._publisher.send(outgoing)))
            self._sent += 1
        await self._acked([future for _, future in sent])
        went = []
        for letter, future in sent:
            if not future.done():
                summary.unrecorded += 1
            elif (refused := future.result()) is None:
                went.append(letter)
            else:
                where = f"dead letter {letter.mark.partition}/{letter.mark.offset}"
                summary.too_large.append(f"{where}: {refused.size} bytes; {refused.topic} takes {refused.limit}")
        if not went:
            return
        marked = self._publisher.send(self._run.went([letter.mark for letter in went]))
        await self._acked([marked])
        if not marked.done():
            summary.unrecorded += len(went)
        for letter in went:
            summary.tally.add(Fate.REDRIVEN, letter)
            self._run.before.add(letter.mark)

    async def _due(self) -> None:
        """Returns when the rate allows one more, or the redrive is stopped."""
        if self._options.rate is None:
            return
        wait = self._begin + self._sent / self._options.rate - self._loop.time()
        if wait > 0:
            stopped = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait([stopped], timeout=wait)
            stopped.cancel()

    async def _acked(self, futures: list[asyncio.Future[TooLarge | None]]) -> None:
        """Returns when all are acked, or will not be: the publisher failed, nothing moves, or somebody stops it."""
        failed = asyncio.ensure_future(self._publisher.failed())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            moved, end = self._loop.time(), None
            while left := {future for future in futures if not future.done()}:
                now = self._loop.time()
                if self._stop.is_set():
                    end = end or now + _STOP
                waiting: set[asyncio.Future[Any]] = {failed, *left, *(() if self._stop.is_set() else (stopped,))}
                until = moved + _PATIENCE if end is None else end
                done, _ = await asyncio.wait(
                    waiting, timeout=max(0.0, until - now), return_when=asyncio.FIRST_COMPLETED
                )
                if failed in done:
                    fault = failed.result()
                    self._summary.failure = fault.detail if isinstance(fault, InputError) else repr(fault)
                    return
                if done & left:
                    moved = self._loop.time()
                elif not done:
                    self._summary.failure = f"no ack for {until - moved:.0f} s. Mend: check the cluster, then run again"
                    return
        finally:
            for task in (failed, stopped):
                task.cancel()
            await asyncio.wait((failed, stopped))


async def _present(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """The largest record of each topic, in bytes. Raises InputError where one is missing."""
    found = await sizes(connection, names)
    missing = [name for name, size in found.items() if size is None]
    if missing:
        raise InputError(
            "topics", f"missing on {connection.bootstrap}: {', '.join(missing)}. Mend: sluiceway topics apply"
        )
    return {name: size for name, size in found.items() if size is not None}
