"""What a row plays on: one broker, a policy's topics, two fake models, real workers and the watch over them.

async with stage.scene("1") as scene:
    await scene.publish(tickets(3_000)); scene.worker(); ...; await scene.caught_up(60)
    return await scene.finding("1", "kill -9 at random")
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from sluiceway.core.stream import Limits
from tests.faults.finding import Finding
from tests.faults.watch import Watch
from tests.support.evidence import Disturbance, Outcome, Place, Published, read_outcomes
from tests.support.fake_journal import JournalEntry
from tests.support.fake_process import ROOT, FakeProcess
from tests.support.laws import amplification, check, lost_jobs, progress, silence
from tests.support.outgoing import ESCALATIONS, JOBS, OUTCOMES, RESULTS, body
from tests.support.processes import Child, ChildError, wait_until
from tests.support.rig import KEYS, RATES, Item, Rig, job
from tests.support.tickets import bank_tickets

CANARY = "canary-4929-1234-5678"  # personal data in some jobs' text: it may stand in no log, header or reason
SESSION = 6.0  # seconds
REVOKE = 3.0  # seconds a revoke may take
CONNECTION = (f"session.timeout.ms={SESSION * 1000:.0f}", "heartbeat.interval.ms=500", "rebalance.timeout.ms=6000")

Job = tuple[str | None, Item]
"""A record to publish and the id that can be read from it, None where none can."""


def tickets(count: int, *, first: int = 0, key: Callable[[int], bytes] | None = None) -> list[Job]:
    """`count` jobs with distinct texts, some of which hold the canary."""
    texts = bank_tickets(first + count)[first:]
    made: list[Job] = []
    for n, text in enumerate(texts, start=first):
        _, value, headers = job(n, f"{text} My card is {CANARY}." if n % 50 == 0 else text)
        made.append((f"job-{n}", (None if key is None else key(n), value, headers)))
    return made


class Scene:
    """Made by `Stage.scene`. `parallel` is how many calls one worker may have open: what is in flight at a kill."""

    def __init__(
        self,
        rig: Rig,
        watch: Watch,
        cheap: FakeProcess,
        frontier: FakeProcess,
        seed: int,
        parallel: int,
        sick: FakeProcess | None = None,
    ) -> None:
        self.rig = rig
        self.watch = watch
        self.cheap = cheap
        self.frontier = frontier
        self.sick = sick
        self.seed = seed
        self.parallel = parallel
        self.published: list[Published] = []
        self.killed_at: list[float] = []  # seconds since the epoch
        self.lost_calls = 0  # beyond those in flight at kills and revokes: the row says why
        self.may_end: set[Child] = set()  # workers whose exit code is the row's business
        self.began = time.monotonic()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def publish(self, jobs: Sequence[Job], *, topic: str = JOBS) -> None:
        """Returns when the broker has acked them all."""
        places = await self.rig.publish(topic, [item for _, item in jobs])
        self._note(topic, jobs, places)

    async def feed(self, jobs: Sequence[Job], *, over: float) -> None:
        """Publishes at an even pace for `over` seconds."""
        producer = AIOKafkaProducer(**self.rig.connection.producer(), acks="all", enable_idempotence=True)
        await producer.start()
        began, sent = time.monotonic(), 0
        try:
            while sent < len(jobs):
                due = min(len(jobs), 1 + int(len(jobs) * (time.monotonic() - began) / over))
                part = jobs[sent:due]
                acks = [await producer.send(JOBS, value, key=key, headers=list(h)) for _, (key, value, h) in part]
                places = [(ack.partition, ack.offset) for ack in await asyncio.gather(*acks)]
                self._note(JOBS, part, places)
                sent = max(sent, due)
                await asyncio.sleep(0.2)
        finally:
            await producer.stop()

    def _note(self, topic: str, jobs: Sequence[Job], places: Iterable[tuple[int, int]]) -> None:
        for (id_, _), (partition, offset) in zip(jobs, places, strict=True):
            self.published.append(Published(id_, Place(topic, partition, offset)))
            ends = self.watch.jobs_ends
            ends[topic, partition] = max(ends.get((topic, partition), 0), offset + 1)

    @property
    def ids(self) -> set[str]:
        return {job.job_id for job in self.published if job.job_id is not None}

    def answered(self) -> int:
        """How many jobs have an outcome so far."""
        return len(self.rig.out.ids(*OUTCOMES)) + len(self.rig.out[OUTCOMES[2]])

    # -- workers -------------------------------------------------------------------------------------------------------

    def worker(
        self,
        *arguments: str,
        plants: Sequence[str] = (),
        bootstrap: str | None = None,
        pairs: Sequence[str] | None = None,
    ) -> Child:
        """A started worker. `plants`: see tests/faults/planted.py; `bootstrap` and `pairs`: its own -b and -X."""
        rig = self.rig
        name = f"worker-{len(rig.workers) + 1}"
        program = [str(Path(sys.executable).parent / "sluiceway")]
        if plants:
            program = [sys.executable, "-m", "tests.faults.planted", *plants, "--"]
        connected = [
            "-b",
            bootstrap or rig.bootstrap,
            *(part for pair in (pairs or rig.pairs) for part in ("-X", pair)),
        ]
        command = [*program, "work", "--policy", str(rig.policy_file), "--metrics-port", "0", *connected]
        command += ["--from", "earliest", "--state", str(rig.folder / "state"), *arguments]
        child = Child(command, log=rig.folder / f"{name}.log", environment=KEYS, cwd=ROOT, name=name)
        rig.workers.append(child)
        return child.start()

    async def ready(self, *workers: Child, within: float = 60.0) -> list[str]:
        return await self.rig.ready(*workers, within=within)

    async def kill(self, worker: Child) -> None:
        await asyncio.to_thread(worker.kill)
        self.killed_at.append(time.time())

    async def stopped(self, *workers: Child, within: float = 35.0) -> list[int]:
        """The exit codes of these (none named: all that run) after a SIGTERM to each, once it can take one."""
        for worker in workers or [w for w in self.rig.workers if w.running]:
            await asyncio.to_thread(worker.wait_for_event, "worker_started", within=60)
        return await self.rig.stopped(*(workers or [w for w in self.rig.workers if w.running]), within=within)

    async def busy(self, calls: int, *, within: float = 60.0) -> int:
        """How many calls the cheap model has open, once they are that many."""

        def look() -> int | None:
            open_ = int(self.cheap.counters()["in_flight"])
            return open_ if open_ >= calls else None

        return await asyncio.to_thread(wait_until, look, within=within, what=f"{calls} calls open")

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def until(self, enough: Callable[[], object], *, within: float, what: str) -> None:
        """As `Watch.until`; ChildError at once where a worker has failed meanwhile."""

        def looked() -> object:
            for worker in self.rig.workers:
                if worker.returncode not in (None, 0, -signal.SIGKILL) and worker not in self.may_end:
                    raise ChildError(f"{worker.name} ended with {worker.returncode}:\n{worker.tail()}")
            return enough()

        await self.watch.until(looked, within=within, what=what)

    async def share(self, part: float, count: int, *, within: float = 300.0) -> None:
        """Returns once that part of `count` jobs has its outcome."""
        await self.until(lambda: self.answered() >= part * count, within=within, what=f"{part:.0%} of {count} answered")

    async def caught_up(self, within: float) -> str | None:
        """None once both groups have lag 0; else what is left after `within` seconds, for the laws to judge."""
        try:
            async with asyncio.timeout(within):
                await self.watch.look()  # one that was begun before may be of a time before a fault
                await self.watch.look()
            await self.until(lambda: not self.watch.behind(), within=within, what="lag 0")
        except TimeoutError as late:
            return str(late)
        return None

    # -- judging -------------------------------------------------------------------------------------------------------

    def notices(self, notice: str) -> list[dict[str, Any]]:
        """What all runs of all workers have logged of that kind."""
        return [event for event in self._events() if event.get("notice") == notice]

    def _events(self) -> Iterator[dict[str, Any]]:
        for worker in self.rig.workers:
            for line in worker.log.read_text("utf-8", "replace").splitlines():
                if line.startswith("{"):
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue  # cut by a kill

    def entries(self) -> list[JournalEntry]:
        return [
            *self.cheap.entries(),
            *self.frontier.entries(),
            *(self.sick.entries() if self.sick is not None else ()),
        ]

    def outcomes(self) -> list[Outcome]:
        return read_outcomes(record for topic in self._outcome_topics for record in self.rig.out[topic])

    @property
    def _outcome_topics(self) -> list[str]:
        """With the results topics that tasks have of their own."""
        return [*OUTCOMES, *(topic for topic in self.rig.map.written if topic.startswith(f"{RESULTS}."))]

    def standstill(self) -> float:
        """The longest time, from the first to the last outgoing record, in which none was written."""
        written = (ESCALATIONS, *self._outcome_topics)
        times = sorted(record.timestamp for topic in written for record in self.rig.out[topic])
        return max((later - earlier for earlier, later in pairwise(times)), default=0) / 1000

    async def finding(
        self,
        row: str,
        fault: str,
        *,
        idle_within: float,
        recovery: float | None = None,
        may_differ: int = 0,
        notes: Sequence[str] = (),
        asked: dict[str, str | None] | None = None,
    ) -> Finding:
        """Every law that the evidence suffices for. Call it with lag 0 and all workers stopped."""
        await self.watch.look()  # what was published by the last worker to stop
        # For whoever wants to know more with --keep: every look, a line each.
        looks = ({"at": look.at, "committed": sorted(look.committed.items())} for look in self.watch.looks)
        (self.rig.folder / "looks.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
        outcomes, entries = self.outcomes(), self.entries()
        revoked = [notice for notice in self.notices("revoked") if notice["unfinished"] or not notice["drained"]]
        unfinished = sum(notice["unfinished"] for notice in revoked)
        disturbance = Disturbance(
            kills=len(self.killed_at),
            revokes=len(revoked),
            in_flight=Limits().jobs,
            per_commit=self._most_in_a_commit(),
        )
        report = check(
            self.published,
            outcomes,
            seed=self.seed,
            disturbance=disturbance,
            entries=entries,
            rates=RATES,
            lost_allowed=len(self.killed_at) * Limits().jobs + unfinished + self.lost_calls,
            may_differ=may_differ,
            worst_recovery=self.standstill() if recovery is None else recovery,
        )
        report.breaches["L4 no early commit"] = self.watch.early_commits(self.published)
        escalated = {record.value for record in self.rig.out[ESCALATIONS]}
        planned = len(self.published) + len(escalated)
        report.breaches["L7 amplification"] = amplification(len(entries), planned, disturbance.redo)
        report.breaches["L8 progress"] = progress(self.watch.lags(), idle_within)
        report.breaches["L9 silence"] = silence([*KEYS.values(), CANARY], self._said())
        facts = [
            f"{len(self.watch.looks)} looks at the commits, {disturbance.revokes} revokes with work left, "
            f"{disturbance.redo} duplicates allowed{self._repeated()}"
        ]
        lost = len(lost_jobs(self.published, outcomes))
        seconds = time.monotonic() - self.began
        return Finding(row, fault, report, lost, seconds, [*facts, *notes], dict(asked or {}))

    def _repeated(self) -> str:
        """How long before the next kill the first records of those jobs were written that have two."""
        first: dict[str, float] = {}
        ages: list[float] = []
        for topic in (RESULTS, *OUTCOMES[1:2]):
            for record in self.rig.out[topic]:
                id_, at = body(record)["job_id"], record.timestamp / 1000
                if id_ in first:
                    ages += [min((kill - first[id_] for kill in self.killed_at if kill >= first[id_]), default=-1.0)]
                first.setdefault(id_, at)
        if not ages:
            return ""
        ages.sort()
        median = ages[len(ages) // 2]
        return f"; repeated jobs were first written {median:.3f} s before a kill (median), {ages[-1]:.3f} s at most"

    def _most_in_a_commit(self) -> int:
        """The most outgoing records written in one commit interval, of all workers together."""
        interval = max(1, int(Limits().commit_interval * 1000))
        times = [record.timestamp // interval for topic in self.rig.map.written for record in self.rig.out[topic]]
        return max(Counter(times).values(), default=0)

    def _said(self) -> dict[str, bytes]:
        said = {worker.name: worker.log.read_bytes() for worker in self.rig.workers}
        for topic in self.rig.map.written:
            headers = [value or b"" for record in self.rig.out[topic] for _, value in record.headers]
            said[f"headers of {topic}"] = b"\n".join(headers)
        return said
