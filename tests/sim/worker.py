"""A worker process of a world: the real roles, publisher, pool, runner, desk and journal, as `worker.py` joins them."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sluiceway.archive.flight import StoreFlight
from sluiceway.clock import WallClock
from sluiceway.core.alone import Alone
from sluiceway.core.cascade import Role
from sluiceway.core.leave import Leaving
from sluiceway.kafka.consumer import Crashed, RoleConsumer
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.role import RoleSettings
from sluiceway.kafka.security import read_connection
from sluiceway.kafka.start import From, Start
from sluiceway.ports import Outgoing, Record, Work
from sluiceway.runner import Runner
from sluiceway.work import Desk
from tests.sim import models
from tests.sim.judge import RATES
from tests.sim.loop import PROCESS, Process
from tests.sim.marks import FROM, remaining, tagged
from tests.sim.store import SimJournal, SimStore
from tests.sim.watch import judge_void
from tests.support.evidence import Place

if TYPE_CHECKING:
    from tests.sim.world import World

_STOP = 8.0  # seconds of a stop's budget
_CONNECTIONS = {
    idempotent: read_connection("sim:9092", [f"enable.idempotence={str(idempotent).lower()}"])
    for idempotent in (True, False)
}


@dataclass(slots=True)
class Run:
    """One run of a record's work in one process. `void`: its epoch had ended when it was done."""

    number: int
    place: Place
    process: Process
    at: float
    void: bool = False
    appended: int = 0
    doubts: int = 0  # how often nobody knew whether its record had arrived
    dead: bool = False


class Notes:
    """The role's meter: notices become transitions to count and lines of the story."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    def taken(self, group: str, topic: str, count: int) -> None:
        pass

    def settled(self, group: str, topic: str, count: int) -> None:
        pass

    def notice(self, event: str, **fields: str | int | float) -> None:
        self._world.note("notice_" + event, worker=self._name, **fields)


class _Finished:
    def finished(self, record: object, *, known: int) -> None:
        pass


class SimWorker:
    """One process from its start to its end. `asked` is its SIGTERM."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.store: SimStore | None = None
        self.process = Process(name)
        self.consumers: list[RoleConsumer] = []
        self.active: dict[Place, Run] = {}
        self.keys: Counter[tuple[str, int, bytes]] = Counter()
        self.asked = asyncio.Event()
        self.began = world.loop.time()
        self.publisher: Publisher | None = None
        self.context = contextvars.copy_context()

    def start(self) -> None:
        self.context.run(PROCESS.set, self.process)
        self.world.loop.create_task(self._life(), context=self.context)

    async def _life(self) -> None:
        code = 1
        try:
            code = await self._work()
        except Exception as error:  # noqa: BLE001  top of the process
            self.world.breach("L8 progress", f"{self.process.name} fell over: {error!r}")
        self.world.exited(self, code)

    async def _work(self) -> int:
        world = self.world
        topics, setup = world.topics, world.setup
        connection = _CONNECTIONS[setup.idempotent]
        notes = Notes(world, self.process.name)
        clock = WallClock()
        if setup.state:
            self.store = SimStore(world.state / self.process.name, clock.now, world.twice.append)
            for _ in self.store.lost:
                world.note("call_lost")
        store = self.store
        pool = models.pool(world.policy, world.models, clock, store.on_record if store else lambda _: True)
        runner = Runner(
            world.policy,
            pool,
            clock=clock,
            tokens=models.Bytes(),
            meter=_Finished(),
            secret=b"a secret of sixteen",
            journal=SimJournal(store) if store else None,
            leaving=Leaving(tuple(sorted(set(topics.delays.values()))), setup.crowd),
        )
        self.publisher = publisher = Publisher(connection, topics.written, meter=notes)
        await publisher.start()
        desk = Desk(runner, topics, "sim", lambda *_: world.note("dead_letter"), lambda _: None)
        alone = Alone()
        for role in Role:
            settings = RoleSettings(
                group=topics.groups[role],
                topics=topics.read_by(role),
                limits=setup.limits,
                start=Start(From.EARLIEST),
                stop_budget=_STOP,
                commit_timeout=2.0,
                delays=topics.delays,
                dead_letters=topics.dead_letters,
                tenant=desk.tenant,
                wall=world.wall,
            )
            instead = desk.oversize(role)
            consumer = RoleConsumer(
                connection,
                settings,
                self._watched(desk.work(role), len(self.consumers)),
                publisher,
                notes,
                lambda record, outgoing, limit, instead=instead: tagged(
                    instead(record, outgoing, limit), dict(outgoing.headers)[FROM] or b""
                ),
                crashed=self._crashed(desk.crashed(role)),
                flight=StoreFlight(store, settings.group) if store else None,
                holds=world.holds,
                alone=alone,
            )
            self.consumers.append(consumer)
        for consumer in self.consumers:
            await consumer.start()
        asked = asyncio.ensure_future(self.asked.wait())
        faults = [asyncio.ensure_future(part.failed()) for part in (*self.consumers, publisher)]
        done, _ = await asyncio.wait([asked, *faults], return_when=asyncio.FIRST_COMPLETED)
        code = 0
        for fault in faults:
            if fault in done:
                code = 1
                world.failed(self, fault.result())
            fault.cancel()
        asked.cancel()
        begin = world.loop.time()
        clean = await asyncio.gather(*(consumer.stop(_STOP) for consumer in self.consumers), return_exceptions=True)
        await publisher.stop(2.0)
        paid = sum(RATES[name].cost(metered) for name, metered in world.models.paid[self.process])
        if paid != runner.spent:
            world.breach("L6 money", f"{self.process.name} has counted {runner.spent} of {paid} pico-dollars")
        if store:
            store.close()
        took = world.loop.time() - begin
        if took > _STOP + 4.0 and not self.process.frozen and world.loop.time() - world.thawed_at > _STOP + 6.0:
            world.breach("L8 progress", f"{self.process.name} took {took:.1f} s to stop")
        world.note("stopped_clean" if clean == [True, True] else "stopped_unclean", worker=self.process.name)
        return code

    def _crashed(self, instead: Crashed) -> Crashed:
        """The dead letter of a job that processes died of, as a run of its own."""
        world = self.world

        def crashed(record: Record) -> Outgoing:
            run = world.began(self, Place(record.topic, record.partition, record.offset))
            world.outgoing[run.number] = run
            return tagged(instead(record), str(run.number).encode())

        return crashed

    def _watched(self, work: Work, number: int) -> Work:
        """The work, with its runs told to the world and its outgoing record marked with where it comes from."""
        world, process = self.world, self.process
        by_key = world.setup.limits.order.value == "key"

        async def run(record: Record) -> Outgoing | None:
            place = Place(record.topic, record.partition, record.offset)
            it = world.began(self, place)
            begin, thaws = it.at, process.thaws
            models.RUN.set(models.Begun(it.number, it.at))
            key = (record.topic, record.partition, record.key or b"")
            left = remaining(record.value) if record.topic in world.internal else world.deadline
            delay = world.topics.delays.get(record.topic, 0.0)
            if delay and not world.counts["fault_clock_jump"] and world.wall() < record.timestamp + delay - 0.01:
                world.breach("delay", f"{place} began {record.timestamp + delay - world.wall():.1f} s too early")
            if place in self.active:
                world.breach("L3 one outcome", f"{place} was started twice at once in {process.name}")
            self.active[place] = it
            if by_key and record.key is not None:
                if self.keys[key]:
                    world.breach("order", f"two jobs of key {record.key!r} ran at once in {process.name}")
                self.keys[key] += 1
            try:
                outgoing = await work(record)
            finally:
                if self.active.get(place) is it:
                    del self.active[place]
                if by_key and record.key is not None:
                    self.keys[key] -= 1
            took = world.loop.time() - begin
            if thaws == process.thaws:
                if took > left + 0.5:
                    world.breach("L8 progress", f"{place} took {took:.1f} s, {left:.1f} s were left of its deadline")
                if outgoing is not None and outgoing.topic in world.internal:
                    spent = took + world.topics.delays.get(outgoing.topic, 0.0)
                    if remaining(outgoing.value) > max(0.0, left - spent) + 0.05:
                        world.breach("L8 progress", f"{place} handed on more of its deadline than was left")
            if outgoing is None:
                world.answered.add(place)
                return None
            stream = self.consumers[number]._stream
            it.void = stream.epoch((record.topic, record.partition)) is None  # type: ignore[arg-type]  # an equal pair
            if not it.void:
                world.outgoing[it.number] = it
            elif thaws == process.thaws and not self.asked.is_set():
                judge_void(world, it, self.consumers[number].settings.group)
            return tagged(outgoing, str(it.number).encode())

        return run
