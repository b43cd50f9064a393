"""One world: a seed makes jobs, workers, weather and faults; the run leaves evidence; the laws judge it.

Every event goes into the story, whose digest shows that the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any
from unittest import mock

import orjson
from aiokafka import TopicPartition

from sluiceway.core import plan as plans
from sluiceway.core.cascade import Role
from sluiceway.core.held import Limits, Order
from sluiceway.core.offsets import decode_finished
from sluiceway.core.policy import Policy
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.topicmap import TopicMap, topic_map
from tests.sim import kafka
from tests.sim.broker import Broker, Committed, Weather
from tests.sim.faults import FAULTS
from tests.sim.loop import Process, Stalled, VirtualLoop
from tests.sim.models import Moods, SimModels, truth
from tests.sim.worker import Run, SimStore, SimWorker, run_of
from tests.support import laws
from tests.support.core import CHEAP_PRICE, FRONTIER_PRICE, Letters, load
from tests.support.evidence import Disturbance, Lag, Place, Published, Sample, read_outcomes
from tests.support.topics import Seen

JOBS = 200  # at least
HEAL = 26.0  # seconds: then all faults end
WITHIN = 75.0  # seconds after healing until nothing may be left to do
STORY = 60  # events that a failing world reprints
DEADLINE = 16.0
MAX_BYTES = 6000

_POLICY = f"""
models:
  cheap: {{provider: openai, model: gpt-cheap, tier: small, timeout: 3s, params: {{max_tokens: 50}}}}
  other: {{provider: openai, model: gpt-other, tier: small, timeout: 3s, params: {{max_tokens: 50}}}}
  frontier: {{provider: anthropic, model: claude-frontier, tier: frontier, timeout: 5s, params: {{max_tokens: 60}}}}
tasks:
  triage: &triage
    ladder: [cheap, frontier]
    prompt: Classify this ticket.
    labels: [billing, login, refund, other]
    gate: {{score: label_logprob, threshold: 0.85}}
    deadline: {DEADLINE:.0f}s
    max_bytes: {MAX_BYTES}
    retries: {{tries: 2, first_wait: 300ms, longest_wait: 2s}}
  tag:
    <<: *triage
    ladder: [cheap, other, frontier]
    order: none
"""


@cache
def policy() -> Policy:
    return load(_POLICY.replace("    order: none\n", ""))


@cache
def _compiled(_policy: str) -> dict[str, plans.Plan]:
    return plans.compile_plans(policy(), Letters())


@dataclass(frozen=True, slots=True)
class Setup:
    """How a world's workers are set up."""

    limits: Limits
    idempotent: bool
    workers: int


class _WorldTime:
    """What `time` is to the clock under test: the wall can jump, the monotonic clock can't."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return self._world.wall()

    def monotonic(self) -> float:
        return self._world.loop.time()


@dataclass(slots=True)
class Told:
    """What a world came to."""

    seed: int
    breaches: dict[str, list[str]]
    counts: Counter[str]
    digest: str
    story: list[str]
    jobs: int
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not any(self.breaches.values())

    def __str__(self) -> str:
        lines = [f"world {self.seed}: {self.jobs} jobs, faults: {', '.join(self.faults)}"]
        lines += [f"  ... {line}" for line in self.story]
        lines += [f"BROKEN {law}: {'; '.join(found[:5])}" for law, found in self.breaches.items() if found]
        lines.append(f"again: python -m tests.sim --worlds 1 --seed {self.seed}")
        return "\n".join(lines)


class World:
    """`run()` once. Everything random comes from the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.loop = VirtualLoop()
        self.counts: Counter[str] = Counter()
        self.breaches: dict[str, list[str]] = {}
        self._story: list[tuple[float, str, dict[str, Any]]] = []
        self._dice = {name: Random(f"{seed}/{name}") for name in ("setup", "jobs", "faults", "broker", "models")}
        self.policy = policy()
        self.topics: TopicMap = topic_map(self.policy)
        self.setup = self._set_up(self._dice["setup"])
        self.jumped = 0.0
        self.thawed_at = -100.0
        self.healed = False
        self.lost_calls = 0
        self.published: list[Published] = []
        self.jobs: dict[str, str] = {}  # id -> text
        self.copies = 0
        self.copying = 0.0
        self.answered: set[Place] = set()
        self.answers: dict[Place, tuple[float, Process]] = {}  # when and by whom first
        self.deadline = DEADLINE + 0.5
        self.outputs: list[Seen] = []
        self.runs: list[Run] = [Run(0, Place("", 0, 0), None)]  # type: ignore[arg-type]  # number 0 is nobody's
        self.retried = 0
        self.redo = 0
        self.samples: list[Sample] = []
        self.lags: list[Lag] = []
        self.workers: dict[str, SimWorker] = {}
        self.stores: dict[str, SimStore] = {}
        self.wanted: set[str] = set()  # workers that should be up
        self.fault_names: tuple[str, ...] = ()
        self.disturbance = Disturbance()
        self.broker: Broker
        self.models = SimModels(self._dice["models"], self.note)
        self._committed: dict[TopicPartition, int] = {}
        self._lowest: dict[TopicPartition, int] = {}
        self._context: contextvars.Context

    def _set_up(self, dice: Random) -> Setup:
        limits = Limits(
            jobs=dice.choice((8, 30, 100)),
            queue=dice.choice((6, 40, 200)),
            bytes=dice.choice((3_000, 64 << 20, 64 << 20)),
            span=dice.choice((12, 60, 10_000)),
            commit_interval=dice.choice((0.3, 1.0, 2.0)),
            commit_count=dice.choice((10, 10_000)),
            metadata_chars=dice.choice((40, 120, 4000, 4000)),
            order=dice.choice((Order.NONE, Order.NONE, Order.NONE, Order.KEY, Order.PARTITION)),
        )
        if limits.order is Order.PARTITION:
            # One after another is slow: give each partition little to wait for.
            limits = replace(limits, jobs=100, queue=200, bytes=64 << 20)
        return Setup(limits, dice.random() < 0.5, 2)

    # -- telling ------------------------------------------------------------------------------------------------

    def note(self, kind: str, **facts: Any) -> None:
        self.counts[kind] += 1
        self._story.append((self.loop.time(), kind, facts))

    def breach(self, law: str, what: str) -> None:
        self._story.append((self.loop.time(), "BREACH", {"law": law, "what": what}))
        self.breaches.setdefault(law, []).append(what)

    def wall(self) -> float:
        return 1_700_000_000.0 + self.jumped + self.loop.time()

    # -- what the broker and the workers tell ----------------------------------------------------------------------

    def began(self, worker: SimWorker, place: Place) -> Run:
        run = Run(len(self.runs), place, worker.process)
        self.runs.append(run)
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
        if run.appended > 1:
            self.retried += 1
        self.answered.add(run.place)
        self.answers.setdefault(run.place, (self.loop.time(), run.process))
        if seen.topic == self.topics.dead_letters:
            run.dead = True
        if seen.topic != self.topics.escalations:
            self.outputs.append(seen)

    def _was_committed(self, group: str, tp: TopicPartition, made: Committed) -> None:
        """L4 at the moment of each commit: the offset, and the map above it."""
        log = self.broker.log(tp)
        low = self._lowest.get(tp, 0)
        while low < len(log.offsets) and Place(tp[0], tp[1], log.offsets[low]) in self.answered:
            low += 1
        self._lowest[tp] = low
        if low < len(log.offsets) and log.offsets[low] < made.offset:
            self.samples.append(Sample(self.loop.time(), {(tp[0], tp[1]): made.offset}, frozenset(self.answered)))
            self.breach("L4 no early commit", f"{group} committed {made.offset} of {tp}, {log.offsets[low]} is open")
        before = self._committed.get(tp)
        self._committed[tp] = made.offset
        if before is not None and made.offset < before:
            self.breach("L3 one outcome", f"{group} went back from {before} to {made.offset} of {tp}")
        self._map_told(tp, made, log.offsets[low:])
        if made.offset > log.end:
            self.breach("L4 no early commit", f"{group} committed {made.offset} of {tp}, which ends at {log.end}")
        for first, last in decode_finished(made.offset, made.metadata) or ():
            for offset in log.offsets[low:]:
                if first <= offset < last and Place(tp[0], tp[1], offset) not in self.answered:
                    self.breach("L4 no early commit", f"{group}'s map at {made.offset} of {tp} holds {offset}, open")

    def _map_told(self, tp: TopicPartition, made: Committed, above: list[int]) -> None:
        """L3: what was finished above the watermark long ago goes with the commit, where there is room for it."""
        tidy = not {"freeze", "pause", "small_metadata", "kill_all"} & set(self.fault_names)
        if made.metadata or self.broker.drops_metadata or self.setup.limits.metadata_chars < 1000 or not tidy:
            return
        for offset in above:
            at, by = self.answers.get(Place(tp[0], tp[1], offset), (1e9, None))
            if offset > made.offset and by is not None and not by.dead and self.loop.time() - at > 8.0:
                self.breach("L3 one outcome", f"the commit of {made.offset} of {tp} does not tell that {offset} is done")

    def seeked(self, tp: TopicPartition, group: str) -> None:
        """A new owner begins: what it will redo, though it was done or is being published, is allowed for."""
        made = self.broker.group(group).committed.get(tp)
        offset, finished = (made.offset, decode_finished(made.offset, made.metadata) or ()) if made else (0, ())
        log = self.broker.log(tp)
        open_ = {at for at in log.offsets if at >= offset and not any(a <= at < b for a, b in finished)}
        redone = {at for at in open_ if Place(tp[0], tp[1], at) in self.answered}
        for run in self.runs:
            place = run.place
            if run.outgoing and not run.appended and (place.topic, place.partition) == tp and place.offset in open_:
                redone.add(place.offset)
        self.redo += len(redone)
        # A worker that was frozen, or thrown out and not told yet, goes on with what it has for a moment.
        for worker in self.workers.values():
            if worker.process.dead or worker.process is kafka.PROCESS.get():
                continue
            for consumer in worker.consumers:
                if tp in consumer._stream.partitions():
                    self.redo += consumer._stream.running + self.setup.limits.jobs

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
        self.workers[name] = SimWorker(self, name, self.stores.setdefault(name, SimStore()))
        self._context.copy().run(self.workers[name].start)

    def kill(self, name: str) -> bool:
        worker = self.workers.get(name)
        if worker is None or worker.process.dead:
            return False
        self.note("kill", worker=name)
        self.loop.kill(worker.process)
        self._dead(worker)
        return True

    def _dead(self, worker: SimWorker) -> None:
        worker.active.clear()
        self.disturbance.kills += 1

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> Told:
        random.seed(self.seed)
        topics = {topic: 4 for topic in self.topics.jobs}
        topics |= {self.topics.escalations: 2, self.topics.reviews: 1, self.topics.dead_letters: 1}
        topics |= dict.fromkeys(self.topics.results.values(), 2)
        self.broker = Broker(self.loop, self._dice["broker"], topics, self.note)
        self.broker.appended = self._appended
        self.broker.was_committed = self._was_committed
        self.broker.seeked = self.seeked
        self.broker.drops_metadata = self._dice["setup"].random() < 0.15
        self.broker.sticky = self._dice["setup"].random() < 0.5
        # A job of full size whose cheap answer is in doubt does not fit: it becomes a dead letter.
        self.broker.limits[self.topics.escalations] = MAX_BYTES
        kafka.BROKER.append(self.broker)
        try:
            with (
                kafka.installed(),
                mock.patch("sluiceway.clock.time", _WorldTime(self)),
                mock.patch("sluiceway.runner.compile_plans", lambda p, _tokens: _compiled(p.digest)),
            ):
                self.loop.run(self._main())
        except Stalled as error:
            self.breach("L8 progress", str(error))
        finally:
            kafka.BROKER.pop()
        for fault in self.loop.faults:
            self.breach("L8 progress", fault)
        self._judge()
        lines = [_line(*event) for event in self._story]
        digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()
        return Told(
            self.seed,
            {law: found for law, found in self.breaches.items() if found},
            self.counts,
            digest,
            lines[-STORY:] if self.breaches else [],
            len(self.jobs),
            self.fault_names,
        )

    async def _main(self) -> None:
        self._context = contextvars.copy_context()
        dice = self._dice["faults"]
        for number in range(self.setup.workers):
            self.loop.call_later(dice.random() * 2, self.start, f"w{number}")
        feeding = self.loop.create_task(self._feed())
        names = dice.choices(list(FAULTS), k=dice.randint(3, 6))
        self.fault_names = tuple(names)
        for name in names:
            self.loop.call_later(1.0 + dice.random() * (HEAL - 4.0), self._strike, name)
        self.loop.call_later(HEAL, self._heal)
        while self.loop.time() < HEAL + WITHIN:
            self.broker.look_after()
            if int(self.loop.time() * 2) % 2 == 0:
                self._look()
            if self.healed and feeding.done() and self._done():
                break
            await asyncio.sleep(0.5)
        self._look()
        # What was done is committed and nothing runs: a clean stop of all workers must find nothing to lose.
        self.wanted.clear()
        for worker in self.workers.values():
            worker.asked.set()
        end = self.loop.time() + 20
        while any(not worker.process.dead for worker in self.workers.values()) and self.loop.time() < end:
            await asyncio.sleep(0.5)

    def _strike(self, name: str) -> None:
        self.note("fault_" + name)
        FAULTS[name](self, self._dice["faults"])

    def _heal(self) -> None:
        self.note("healed")
        self.healed = True
        self.broker.weather = Weather()
        self.broker.metadata_limit = 4096
        for name in self.models.moods:
            self.models.moods[name] = Moods(fail=0.0, overloaded=0.0, hang=0.0)
        for worker in self.workers.values():
            self.loop.thaw(worker.process)
        for name in list(self.wanted):
            self.start(name)

    async def _feed(self) -> None:
        """Publishes the world's jobs in bursts, some of them bad, some of them twice."""
        dice = self._dice["jobs"]
        count = JOBS + dice.randint(0, 20)
        topic = self.topics.jobs[0]
        keys = [b"a", b"b", b"c", b"d", b"e"] if self.setup.limits.order is Order.KEY else []
        number = 0
        while number < count:
            for _ in range(dice.choice((1, 5, 20, 40))):
                if number >= count:
                    break
                job_id, value = self._job(dice, number)
                number += 1
                copies = 1
                if dice.random() < self.copying:
                    copies = 2
                    self.note("published_twice")
                for _ in range(copies):
                    key = dice.choice(keys) if keys else dice.choice((None, job_id.encode()))
                    place = self.broker.append(topic, dice.randrange(4), key, value, (), self.wall())
                    if value is None:
                        self.answered.add(place)
                    else:
                        self.published.append(Published(job_id if job_id in self.jobs else None, place))
            await asyncio.sleep(dice.random() * 2.2)

    def _job(self, dice: Random, number: int) -> tuple[str, bytes | None]:
        job_id = f"j{number}"
        throw = dice.random()
        text = f"ticket {number} of world {self.seed}"
        if throw < 0.004:
            text += " POISON"
            self.note("job_poison")
        elif throw < 0.008:
            text += " SILENCE"
            self.note("job_silence")
        elif throw < 0.016:
            text += " x" * 2900  # fits the task's limit, and not the escalations topic once it has a trail
            self.note("job_big")
        elif throw < 0.02:
            self.note("job_undecodable")
            return f"bad-{number}", b'{"id": "j' + str(number).encode()
        elif throw < 0.024:
            self.note("job_unknown_task")
            return f"bad-{number}", orjson.dumps({"id": f"bad-{number}", "task": "nobody", "input": "?"})
        elif throw < 0.028:
            self.note("job_too_large")
            return f"bad-{number}", orjson.dumps({"id": f"bad-{number}", "task": "triage", "input": "y" * MAX_BYTES})
        elif throw < 0.034:
            self.note("job_tombstone")
            return f"none-{number}", None
        self.jobs[job_id] = text
        return job_id, orjson.dumps({"id": job_id, "task": dice.choice(("triage", "triage", "tag")), "input": text})

    def _done(self) -> bool:
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
        """Never more open than the limits say, however slow the head is."""
        limits, stats = self.setup.limits, consumer.stats()
        if stats.running > limits.jobs or stats.queued > limits.queue:
            self.breach("limits", f"{worker.process.name} runs {stats.running} and queues {stats.queued}: {limits}")
        for row in stats.partitions:
            if row.open > limits.span:
                self.breach("limits", f"{worker.process.name} has {row.open} open of {row.partition}: {limits}")

    # -- the laws ------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        outcomes = read_outcomes(self.outputs)
        self.disturbance.kills, self.disturbance.in_flight = 1, self.redo
        for law, found in {
            "L1 no loss": laws.no_loss(self.published, outcomes),
            "L2 no invention": laws.no_invention(self.published, outcomes),
            "L3 one outcome": laws.one_outcome(
                outcomes,
                self.disturbance,
                jobs=len(self.jobs),
                published_again=len(self.published) - len({p.job_id or p.place for p in self.published}) + self.retried,
                may_differ=len(outcomes),
            ),
            "L4 no early commit": laws.no_early_commit(self.published, self.samples),
            "L8 progress": laws.progress(self.lags, HEAL + WITHIN),
        }.items():
            for what in found:
                self.breach(law, what)
        self._judge_retries()
        self._judge_answers()
        self._judge_money(outcomes)
        self.note("redone", allowed=self.redo)

    def _judge_retries(self) -> None:
        """A record goes out again only where the broker left its first copy in doubt."""
        doubts = sum(self.counts[kind] for kind in ("produce_ack_lost", "produce_timeout", "produce_out_of_step"))
        if self.retried and not doubts:
            self.breach("L3 one outcome", f"{self.retried} records were sent again after their ack")

    def _judge_answers(self) -> None:
        """L3: an accepted answer is the one of its own job."""
        for seen in self.outputs:
            if seen.topic in self.topics.results.values():
                body = orjson.loads(seen.value or b"")
                if body["status"] == "answered" and body["answer"]["label"] != truth(self.jobs[body["job_id"]]):
                    self.breach("L3 one outcome", f"{body['job_id']} has another job's answer")

    def _judge_money(self, outcomes: list[Any]) -> None:
        rates = {"cheap": _rates(CHEAP_PRICE), "other": _rates(CHEAP_PRICE), "frontier": _rates(FRONTIER_PRICE)}
        # A dead letter tells of its attempts in a header, without what they cost.
        done = {run.number for run in self.runs if run.appended and not run.dead}
        lost = {
            response
            for response, run in self.models.made_in.items()
            if run not in done or response in self.models.undelivered
        }
        for what in laws.money(outcomes, self.models.entries, rates, lost=lost, lost_allowed=len(lost)):
            self.breach("L6 money", what)
        for store in self.stores.values():
            for what in store.twice:
                self.breach("L6 money", f"paid twice for {what}")
        for what in self.models.unrecorded:
            self.breach("L6 money", f"{what} was called and is not on record")
        for what in self.models.late:
            self.breach("L7 amplification", what)
        self._judge_amplification()

    def _judge_amplification(self) -> None:
        """L7, by process and model: no more second tries than the retry budget allows, which earns a little by time."""
        for (process, name), calls in self.models.called.items():
            first: set[str] = set()
            again: list[float] = []
            for at, job in calls:
                if job in first:
                    again.append(at)
                first.add(job)
            if not again:
                continue
            span = again[-1] - calls[0][0]
            # 10 in hand, a fifth of each first call, and a tenth of what may be kept each second.
            most = max(10.0, 0.2 * 2 * self.setup.limits.jobs)
            restarts = self.counts["started"]
            allowed = restarts * most + 0.2 * len(calls) + most * 0.1 * span
            for what in laws.amplification(len(calls), len(first), int(allowed) + self.redo):
                self.breach("L7 amplification", f"{process} at {name}: {what}")


def _rates(price: Any) -> laws.Rates:
    write = price.cache_write_mtok
    return laws.Rates.of(
        float(price.input_mtok),
        float(price.cache_read_mtok if price.cache_read_mtok is not None else price.input_mtok),
        float(price.output_mtok),
        None if write is None else float(write),
    )


def _line(at: float, kind: str, facts: dict[str, Any]) -> str:
    return f"{at:8.3f} {kind} " + " ".join(f"{name}={value}" for name, value in facts.items())


Plant = Callable[[], Any]


def run_world(seed: int) -> Told:
    return World(seed).run()


__all__ = ["Told", "World", "field", "run_world"]
