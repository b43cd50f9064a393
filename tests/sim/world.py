"""One world: a seed makes jobs, workers, weather and faults; the run leaves evidence; the laws judge it.

Every event goes into the story, whose digest shows that the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import os
import random
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from aiokafka import TopicPartition

from sluiceway.core.cascade import Role
from sluiceway.core.held import Order
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.topicmap import TopicMap, topic_map
from tests.sim import kafka
from tests.sim.broker import BROKER, Broker, Committed, Weather
from tests.sim.faults import FAULTS
from tests.sim.feed import MAX_BYTES, feed
from tests.sim.judge import judge
from tests.sim.loop import Process, StalledError, VirtualLoop
from tests.sim.marks import run_of
from tests.sim.models import Moods, SimModels
from tests.sim.operator import SimHolds
from tests.sim.setup import DEADLINE, compiled, policy, set_up
from tests.sim.told import Told, line
from tests.sim.watch import Heard, acked, doubted, judge_start, revoking, seeked, was_committed
from tests.sim.worker import Run, SimWorker
from tests.support.evidence import Disturbance, Lag, Place, Published, Sample
from tests.support.topics import Seen

HEAL = 20.0  # seconds: then all faults end
WITHIN = 75.0  # seconds after healing until nothing may be left to do
STORY = 60  # events that a failing world reprints
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  where files cost no disk


class _WorldTime:
    """What `time` is to the clock under test: the wall can jump, the monotonic clock can't."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return self._world.wall()

    def monotonic(self) -> float:
        return self._world.loop.time()


class World:
    """`run()` once. Everything random comes from the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.loop = VirtualLoop()
        self.counts: Counter[str] = Counter()
        self.breaches: dict[str, list[str]] = {}
        self._story: list[tuple[float, str, dict[str, Any]]] = []
        self.dice = {name: Random(f"{seed}/{name}") for name in ("setup", "jobs", "faults", "broker", "models")}
        self.policy = policy()
        self.topics: TopicMap = topic_map(self.policy)
        self.internal = {self.topics.escalations, *self.topics.delays}
        self.holds = SimHolds(self)
        self.heard: dict[tuple[str, Place], Heard] = {}  # acks that a worker's process has seen
        self.seeked_at: dict[tuple[Process, TopicPartition], float] = {}
        self.revoked_at: dict[tuple[Process, str], tuple[float, float]] = {}  # the last two
        self.rounds: dict[str, int] = {}  # job id -> its round, where that is not 0
        self.bad: dict[Place, str] = {}  # what is no job -> why
        self.rebalanced: list[float] = []
        self.bursts: list[tuple[float, list[Place]]] = []  # bad records, one after another
        self.setup = set_up(self.dice["setup"])
        self.jumped = 0.0
        self.thawed_at = -100.0
        self.healed = False
        self.published: list[Published] = []
        self.jobs: dict[str, str] = {}  # id -> text
        self.copies = 0
        self.copying = 0.0
        self.answered: set[Place] = set()
        self.answers: dict[Place, tuple[float, Process]] = {}  # when and by whom first
        self.deadline = DEADLINE
        # One job after another, each of which may take its whole deadline.
        self.ends = HEAL + WITHIN * (1 if self.setup.limits.order is Order.NONE else 2)
        self.outputs: list[Seen] = []
        self.runs: list[Run] = [Run(0, Place("", 0, 0), None, 0.0)]  # type: ignore[arg-type]  # number 0 is nobody's
        self.outgoing: dict[int, Run] = {}  # by number: their records are on the way
        self.retried = 0
        self.redo = 0
        self.samples: list[Sample] = []
        self.lags: list[Lag] = []
        self.workers: dict[str, SimWorker] = {}
        self.state: Path
        self.twice: list[str] = []  # calls that were paid for though their reply was on file
        self.wanted: set[str] = set()  # workers that should be up
        self.fault_names: tuple[str, ...] = ()
        self.disturbance = Disturbance()
        self.broker: Broker
        self.models = SimModels(self.dice["models"], self.note)
        self.committed: dict[TopicPartition, Committed] = {}
        self.lowest: dict[TopicPartition, int] = {}
        self._context: contextvars.Context

    # -- telling ------------------------------------------------------------------------------------------------

    def note(self, kind: str, **facts: Any) -> None:
        self.counts[kind] += 1
        if kind == "rebalance":
            self.rebalanced.append(self.loop.time())
        self._story.append((self.loop.time(), kind, facts))

    def breach(self, law: str, what: str) -> None:
        self._story.append((self.loop.time(), "BREACH", {"law": law, "what": what}))
        self.breaches.setdefault(law, []).append(what)

    def wall(self) -> float:
        return 1_700_000_000.0 + self.jumped + self.loop.time()

    # -- what the broker and the workers tell ----------------------------------------------------------------------

    def began(self, worker: SimWorker, place: Place) -> Run:
        run = Run(len(self.runs), place, worker.process, self.loop.time())
        self.runs.append(run)
        self.holds.judge_start(run)
        judge_start(self, run)
        self._story.append((self.loop.time(), "began", {"run": run.number, "place": place, "by": worker.process.name}))
        return run

    def _appended(self, seen: Seen) -> None:
        if seen.topic in self.topics.jobs:
            return
        run = self.runs[run_of(seen.headers)]
        self._story.append((self.loop.time(), "appended", {"run": run.number, "place": run.place, "to": seen.topic}))
        if run.void:
            self.breach("L3 one outcome", f"{run.place} was published after its epoch had ended (run {run.number})")
        run.appended += 1
        self.outgoing.pop(run.number, None)
        if run.appended > 1 + run.doubts:
            self.breach("L3 one outcome", f"{run.place} was published again after its ack (run {run.number})")
        if run.appended > 1:
            self.retried += 1
        if seen.topic in self.topics.delays:
            self.counts["job_left"] += 1
        if run.place.topic in self.topics.delays:
            self.counts["job_returned"] += 1
        self.answered.add(run.place)
        self.answers.setdefault(run.place, (self.loop.time(), run.process))
        if seen.topic == self.topics.dead_letters:
            run.dead = True
            self.counts["dead_" + (seen.header("sluiceway.reason") or "")] += 1
        if seen.topic not in self.internal:
            self.outputs.append(seen)

    def failed(self, worker: SimWorker, error: BaseException) -> None:
        self.breach("L8 progress", f"{worker.process.name} failed: {error!r}")

    def exited(self, worker: SimWorker, code: int) -> None:
        self.note("exited", worker=worker.process.name, code=code)
        name = worker.process.name
        self.loop.kill(worker.process)
        self._dead(worker)
        if name in self.wanted:
            self.broker.later(0.5, self.start, name)

    # -- what faults do ------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        self.wanted.add(name)
        known = self.workers.get(name)
        if known is not None and not known.process.dead:
            return
        self.note("started", worker=name)
        self.workers[name] = SimWorker(self, name)
        self._context.copy().run(self.workers[name].start)

    def kill(self, name: str) -> bool:
        worker = self.workers.get(name)
        if worker is None or worker.process.dead:
            return False
        self.note("kill", worker=name)
        self.loop.kill(worker.process)
        self._dead(worker)
        return True

    def _crash(self, process: Process) -> None:
        worker = self.workers[process.name]
        if worker.process is process and self.kill(process.name):
            self.note("crash", worker=process.name)
            self.broker.later(0.5, self.start, process.name)

    def _dead(self, worker: SimWorker) -> None:
        worker.active.clear()
        worker.process.died = min(worker.process.died, self.loop.time())
        if worker.store is not None:
            worker.store.die()
        self.disturbance.kills += 1

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> Told:
        begin = time.process_time()
        random.seed(self.seed)
        gc.disable()  # worlds are short; `runs` collects between them
        topics = dict.fromkeys(self.topics.jobs, 4)
        topics |= dict.fromkeys(self.topics.delays, 1)
        topics |= {self.topics.escalations: 2, self.topics.reviews: 1, self.topics.dead_letters: 1}
        topics |= dict.fromkeys(self.topics.results.values(), 2)
        self.broker = Broker(self.loop, self.dice["broker"], topics, self.note)
        self.broker.appended = self._appended
        self.broker.was_committed = partial(was_committed, self)
        self.broker.seeked = partial(seeked, self)
        self.broker.acked = partial(acked, self)
        self.broker.doubted = partial(doubted, self)
        self.broker.revoking = partial(revoking, self)
        self.broker.drops_metadata = self.dice["setup"].random() < 0.15
        self.broker.sticky = self.dice["setup"].random() < 0.5
        # A job of full size whose cheap answer is in doubt does not fit: it becomes a dead letter.
        self.broker.limits |= dict.fromkeys(self.internal, MAX_BYTES)
        self.models.crash = lambda process: self.broker.later(0.05, self._crash, process) and None
        BROKER.append(self.broker)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="sluiceway-sim-", dir=_MEMORY) as state,
                kafka.installed(),
                mock.patch("sluiceway.clock.time", _WorldTime(self)),
                mock.patch("sluiceway.runner.compile_plans", lambda p, _tokens: compiled(p.digest)),
            ):
                self.state = Path(state)
                self.loop.run(self._main())
                for worker in self.workers.values():
                    self._dead(worker)
        except StalledError as error:
            self.breach("L8 progress", str(error))
        finally:
            BROKER.pop()
            gc.enable()
        for fault in self.loop.faults:
            self.breach("L8 progress", fault)
        judge(self)
        lines = [line(*event) for event in self._story]
        digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()
        return Told(
            self.seed,
            {law: found for law, found in self.breaches.items() if found},
            self.counts,
            digest,
            lines[-STORY:] if self.breaches else [],
            len(self.jobs),
            self.fault_names,
            time.process_time() - begin,
        )

    async def _main(self) -> None:
        self._context = contextvars.copy_context()
        dice = self.dice["faults"]
        for number in range(self.setup.workers):
            self.loop.call_later(dice.random() * 2, self.start, f"w{number}")
        feeding = self.loop.create_task(feed(self))
        names = dice.choices(list(FAULTS), k=dice.randint(4, 7))
        self.fault_names = tuple(names)
        for name in names:
            self.loop.call_later(1.0 + dice.random() * (HEAL - 3.0), self._strike, name)
        self.loop.call_later(HEAL, self._heal)
        while self.loop.time() < self.ends:
            self.broker.look_after()
            if int(self.loop.time() * 2) % 2 == 0:
                self._look()
                self.holds.look()
            if self.healed and feeding.done() and self._done():
                break
            await asyncio.sleep(0.5)
        self._look()
        # What was done is committed and nothing runs: a clean stop of all workers must find nothing to lose.
        self.wanted.clear()
        for worker in self.workers.values():
            worker.asked.set()
        end = self.loop.time() + 20
        while self._living() and self.loop.time() < end:  # noqa: ASYNC110  in virtual time a look costs nothing
            await asyncio.sleep(0.5)

    def _running_workers(self) -> list[SimWorker]:
        return [worker for worker in self.workers.values() if not worker.process.dead]

    def _living(self) -> bool:
        return bool(self._running_workers())

    def _strike(self, name: str) -> None:
        self.note("fault_" + name)
        FAULTS[name](self, self.dice["faults"])

    def _heal(self) -> None:
        self.note("healed")
        self.healed = True
        self.jumped = 0.0
        self.broker.weather = Weather.fair()
        self.broker.metadata_limit = 4096
        for name in self.models.moods:
            self.models.moods[name] = Moods(fail=0.0, overloaded=0.0, hang=0.0)
        for worker in self.workers.values():
            if worker.process.frozen:
                self.thawed_at = self.loop.time()
            self.loop.thaw(worker.process)
        for name in list(self.wanted):
            self.start(name)

    def _done(self) -> bool:
        # What ran on through an ended epoch, in a worker that was frozen say, may still come to lie on an internal
        # topic, and wants its reader.
        for worker in self._running_workers():
            if worker.publisher is not None and worker.publisher.unacked:
                return False
            if any(consumer.stats().running for consumer in worker.consumers):
                return False
        for role in Role:
            committed = self.broker.group(self.topics.groups[role]).committed
            for topic in self.topics.read_by(role):
                for partition, log in enumerate(self.broker.topics[topic]):
                    made = committed.get(TopicPartition(topic, partition))
                    if (log.end if made is None else made.offset) < log.end or (made is None and log.records):
                        return False
        return True

    def _look(self) -> None:
        now = self.loop.time()
        for role in Role:
            committed = self.broker.group(self.topics.groups[role]).committed
            for topic in self.topics.read_by(role):
                for partition, log in enumerate(self.broker.topics[topic]):
                    tp = TopicPartition(topic, partition)
                    made = committed.get(tp)
                    at = made.offset if made else self.broker.first[tp]
                    self.lags.append(Lag(now, (topic, partition), at, log.end))
        for worker in self.workers.values():
            if not worker.process.dead:
                for consumer in worker.consumers:
                    self._judge_limits(worker, consumer)
                    for reason, partitions in consumer._stream.pauses().items():
                        self.counts["pause_" + reason] += partitions

    def _judge_limits(self, worker: SimWorker, consumer: RoleConsumer) -> None:
        """Never more open than the limits say, however slow the head is: as many as may run may wait for their acks."""
        limits, stream = self.setup.limits, consumer._stream
        running, handed, queued = stream.running, stream.handed, stream.queued
        if running - handed > limits.jobs or running > 2 * limits.jobs or queued > limits.queue:
            what = f"runs {running}, of which {handed} wait for acks, and queues {queued}"
            self.breach("limits", f"{worker.process.name} {what}: {limits}")
        for row in consumer.stats().partitions:
            if limits.order is Order.PARTITION and stream.running_in([row.partition]) > 1:
                self.breach("order", f"{worker.process.name} has given the turn of {row.partition} away before an ack")
            if row.open > limits.span:
                self.breach("limits", f"{worker.process.name} has {row.open} open of {row.partition}: {limits}")


def run_world(seed: int) -> Told:
    return World(seed).run()
