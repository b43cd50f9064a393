"""A simulated Kafka cluster: topics with gaps, and one coordinator a group that rebalances eagerly.

It keeps everything and forgets nothing when a process dies: its own callbacks belong to no process. What goes wrong is
a throw of the seeded dice, under the `Weather` of the moment; every throw that counts is told to the world.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from aiokafka import TopicPartition

from tests.sim.loop import Process, VirtualLoop
from tests.support.evidence import Place
from tests.support.topics import Seen

SESSION = 6.0  # seconds without a heartbeat until a member is thrown out
HEARTBEAT = 0.5
REBALANCE = 8.0  # seconds that a rebalance waits for its members

Note = Callable[..., None]
Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(slots=True)
class Weather:
    """What is likely now, each a probability: a little of all, until the world heals."""

    commit_error: float = 0.02
    commit_lost: float = 0.02  # applied, and the answer never comes
    produce_error: float = 0.01
    produce_lost: float = 0.01  # appended, and the ack never comes
    out_of_step: float = 0.002
    fetch_error: float = 0.02
    offsets_error: float = 0.02
    refetch: float = 0.02  # records come again below the position
    gap: float = 0.03
    agent_late: float = 0.005  # the agent takes a fetched batch seconds after it was handed over
    paused_until: float = 0.0

    @classmethod
    def fair(cls) -> Weather:
        return cls(*[0.0] * 11)


class Log:
    """One partition: records in rising offsets, holes between them, an end."""

    __slots__ = ("end", "offsets", "records")

    def __init__(self, first: int) -> None:
        self.end = first
        self.offsets: list[int] = []
        self.records: list[Seen] = []


class Committed(NamedTuple):
    offset: int
    metadata: str


class Sent(NamedTuple):
    """Who sent a commit, and when its offsets were told to him to be committed."""

    process: Process
    at: float


@dataclass(slots=True)
class Member:
    """One consumer of a group, as the coordinator sees it. `told` resolves when it must come to a rebalance."""

    name: str
    alive: Callable[[], bool]
    subscribed: Sequence[str]
    joined: asyncio.Future[tuple[int, list[TopicPartition]]] | None = None
    told: asyncio.Future[str] | None = None
    heard: float = 0.0


@dataclass(slots=True)
class Coordinator:
    """One group: its members, generation and committed offsets."""

    members: dict[str, Member] = field(default_factory=dict)
    generation: int = 0
    rebalancing: bool = False
    since: float = 0.0
    committed: dict[TopicPartition, Committed] = field(default_factory=dict)
    owners: dict[TopicPartition, str] = field(default_factory=dict)


class Broker:
    """`note(kind, **facts)` hears of all that matters; `appended` and `was_committed` are the laws' ears."""

    def __init__(self, loop: VirtualLoop, dice: Random, topics: Mapping[str, int], note: Note) -> None:
        self.loop = loop
        self.dice = dice
        self.note = note
        self.weather = Weather()
        self.limits: dict[str, int] = {}
        self.metadata_limit = 4096
        self.drops_metadata = self.sticky = False
        # Offsets rarely begin at 0.
        self.topics = {
            name: [Log(self.dice.choice((0, 0, 1, 1000))) for _ in range(count)] for name, count in topics.items()
        }
        self.first = {TopicPartition(t, n): log.end for t, logs in self.topics.items() for n, log in enumerate(logs)}
        self.groups: dict[str, Coordinator] = {}
        self.appended: Callable[[Seen], None] = lambda _: None
        self.was_committed: Callable[[str, TopicPartition, Committed, Sent], None] = lambda *_: None
        self.seeked: Callable[[TopicPartition, str], None] = lambda *_: None
        self.acked: Callable[[Process, Headers], None] = lambda *_: None
        self.doubted: Callable[[Headers], None] = lambda _: None
        self.revoking: Callable[[Process, str], None] = lambda *_: None
        self._waiters: list[tuple[Callable[[], Container[TopicPartition]], asyncio.Future[None]]] = []
        self._announced: set[TopicPartition] = set()
        self._numbers = 0
        self._context = contextvars.copy_context()

    def number(self) -> int:
        """A new one each time."""
        self._numbers += 1
        return self._numbers

    # -- time ---------------------------------------------------------------------------------------------------

    def later(self, seconds: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """In the cluster's own context: it happens whatever becomes of the process that asked."""
        return self.loop.call_at(self.loop.time() + seconds, callback, *args, context=self._context)

    def latency(self) -> float:
        """Seconds until a request arrives: a broker that is paused takes none before it goes on."""
        flight = 0.002 + self.dice.random() * 0.01
        return max(0.0, self.weather.paused_until - self.loop.time()) + flight

    def wall(self) -> float:
        """The cluster's own clock, which nothing sets."""
        return 1_700_000_000.0 + self.loop.time()

    async def travel(self) -> None:
        await asyncio.sleep(self.latency())

    # -- log ----------------------------------------------------------------------------------------------------

    def log(self, tp: TopicPartition) -> Log:
        return self.topics[tp[0]][tp[1]]

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes | None], ...],
        timestamp: float,
    ) -> Place:
        log = self.topics[topic][partition]
        seen = Seen(topic, partition, log.end, key, value, headers, int(timestamp * 1000))
        log.offsets.append(log.end)
        log.records.append(seen)
        log.end += 1
        if self.weather.gap and self.dice.random() < self.weather.gap:
            log.end += self.dice.randint(1, 3)
            self.note("gap")
        self.appended(seen)
        self.announce(TopicPartition(topic, partition), 0.001 + self.dice.random() * 0.005)
        return Place(topic, partition, seen.offset)

    def mark(self, topic: str, partition: int) -> None:
        """A transaction's marker: the partition goes on by an offset that is no record."""
        self.topics[topic][partition].end += 1
        self.note("marker")
        self.announce(TopicPartition(topic, partition), 0.002)

    def read(self, tp: TopicPartition, position: int, most: int) -> tuple[list[Seen], int]:
        """At most `most` records from `position` on, and the position after them."""
        log = self.log(tp)
        at = bisect_left(log.offsets, position)
        found = log.records[at : at + most]
        if at + most < len(log.records):
            return found, found[-1].offset + 1 if found else position
        return found, log.end

    def arrival(self, assigned: Callable[[], Container[TopicPartition]]) -> asyncio.Future[None]:
        """Done when something may be read of a partition that is assigned by then."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._waiters.append((assigned, future))
        return future

    def announce(self, tp: TopicPartition, seconds: float) -> None:
        """Who waits for the partition hears of it by then; of much that comes at once it hears once."""
        if tp not in self._announced:
            self._announced.add(tp)
            self.later(seconds, self._arrived, tp)

    def _arrived(self, tp: TopicPartition) -> None:
        self._announced.discard(tp)
        waiting, self._waiters = self._waiters, []
        for assigned, future in waiting:
            if future.done():
                continue
            if tp in assigned():
                future.set_result(None)
            else:
                self._waiters.append((assigned, future))

    # -- groups -------------------------------------------------------------------------------------------------

    def group(self, name: str) -> Coordinator:
        return self.groups.setdefault(name, Coordinator())

    def join(self, group: str, member: Member) -> asyncio.Future[tuple[int, list[TopicPartition]]]:
        """Resolves with generation and partitions once all members have come, or have been given up."""
        it = self.group(group)
        it.members[member.name] = member
        member.heard = self.loop.time()
        joined = member.joined = self.loop.create_future()
        member.told = None
        self._rebalance(group)
        self._look(group)
        return joined

    def leave(self, group: str, name: str, why: str) -> None:
        it = self.group(group)
        member = it.members.pop(name, None)
        if member is None:
            return
        self.note("left", group=group, member=name, why=why)
        if member.told is not None and not member.told.done():
            member.told.set_result("unknown")
        if member.joined is not None and not member.joined.done():
            member.joined.cancel()
        if it.members:
            self._rebalance(group)
            self._look(group)

    def heartbeat(self, group: str, member: Member) -> asyncio.Future[str]:
        """Resolves when the member must join again: `rebalance`, or `unknown` where it was thrown out."""
        it = self.group(group)
        member.told = self.loop.create_future()
        if it.members.get(member.name) is not member:
            member.told.set_result("unknown")
        elif it.rebalancing and member.joined is None:
            self.later(self.dice.random() * HEARTBEAT, _resolve, member.told, "rebalance")
        return member.told

    def look_after(self) -> None:
        """Throws out who was not heard of; to be called every half second or so."""
        now = self.loop.time()
        for group, it in self.groups.items():
            for member in list(it.members.values()):
                if member.alive():
                    member.heard = now
                elif now - member.heard > SESSION:
                    self.leave(group, member.name, "session")
            self._look(group)

    def _rebalance(self, group: str) -> None:
        it = self.group(group)
        if it.rebalancing:
            return
        it.rebalancing = True
        it.since = self.loop.time()
        self.note("rebalance", group=group, members=len(it.members))
        for member in it.members.values():
            if member.told is not None and not member.told.done():
                self.later(self.dice.random() * HEARTBEAT, _resolve, member.told, "rebalance")

    def _look(self, group: str) -> None:
        it = self.group(group)
        if not it.rebalancing:
            return
        late = [member for member in it.members.values() if member.joined is None]
        if late and self.loop.time() - it.since < REBALANCE:
            return
        for member in late:
            it.members.pop(member.name)
            self.note("left", group=group, member=member.name, why="rebalance")
            if member.told is not None:
                _resolve(member.told, "unknown")
        it.rebalancing = False
        it.generation += 1
        names = list(it.members)
        if not names:
            return
        topics = sorted({topic for member in it.members.values() for topic in member.subscribed})
        shares: dict[str, list[TopicPartition]] = {name: [] for name in names}
        every = [TopicPartition(topic, n) for topic in topics for n in range(len(self.topics[topic]))]
        most = -(-len(every) // len(names))
        turn = self.dice.randrange(len(names))
        for number, tp in enumerate(every):
            # Sticky in half of the worlds, else each rebalance may move everything.
            owner = it.owners.get(tp, "") if self.sticky else ""
            if owner not in shares or len(shares[owner]) >= most:
                owner = names[(turn + number) % len(names)]
            shares[owner].append(tp)
            it.owners[tp] = owner
        for name, member in it.members.items():
            # Taken away at once: a rebalance that begins before the answer arrives must not think it has come again.
            joined, member.joined = member.joined, None
            if joined is not None:
                self.later(self.latency(), _resolve, joined, (it.generation, shares[name]))

    def commit(
        self, group: str, name: str, generation: int, offsets: Mapping[TopicPartition, tuple[int, str]], sent: Sent
    ) -> str:
        """What Kafka answers: `ok`, `unknown_member`, `illegal_generation` or `metadata_too_large`."""
        it = self.group(group)
        if name not in it.members:
            return "unknown_member"
        if generation != it.generation:
            return "illegal_generation"
        if any(len(metadata) > self.metadata_limit for _, metadata in offsets.values()):
            return "metadata_too_large"
        for tp, (offset, metadata) in offsets.items():
            made = Committed(offset, "" if self.drops_metadata else metadata)
            it.committed[tp] = made
            self.was_committed(group, tp, made, sent)
        return "ok"


BROKER: list[Broker] = []
"""The cluster of the world that runs."""


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)
