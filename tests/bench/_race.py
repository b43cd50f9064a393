"""What the stream benches stand on: one real Apache Kafka with its topics filled, and peers that take turns on it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from sluiceway.kafka import topics
from sluiceway.kafka.security import read_connection
from sluiceway.policyfile import read_policy
from sluiceway.topicmap import topic_map
from tests.bench._stream_ours import MODEL, POLICY
from tests.support.apache_kafka import ApacheKafka
from tests.support.tickets import bank_tickets
from tests.support.topics import group_offsets, publish

ROOT = Path(__file__).parents[2]
JOBS, RESULTS = "sluiceway.jobs", "sluiceway.results"
TEXTS = 5000  # distinct ones, taken in turn
LABELS = ("billing", "login", "refund", "delivery", "card lost", "limits", "fees", "other")
_PROPERTIES = {
    # Members that start together join together: two workers meet in one generation.
    "group.initial.rebalance.delay.ms": "3000",
    "log.retention.check.interval.ms": "2000",
}
_STEP = 50_000  # jobs published at a time
_HELD = 90.0  # seconds a peer may take to hold its first job
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Lap:
    """What one peer did in its turn: `cpu` and `broker_cpu` in seconds, `workers` processes together."""

    jobs: int
    seconds: float
    cpu: float
    broker_cpu: float
    workers: int = 1

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / max(self.seconds, 1e-9)

    @property
    def per_cpu(self) -> float:
        """Jobs a CPU-second of the peer's own."""
        return self.jobs / max(self.cpu, 1e-9)


class Peer:
    """A child process that speaks as `_turn.py` says. Its stderr goes to a file that a failure quotes."""

    def __init__(self, module: str, kind: str, settings: Mapping[str, Any], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", f"tests.bench.{module}", kind, json.dumps(dict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def held(self) -> None:
        """Returns when it holds its first job. It is ended where that takes too long."""
        clock = threading.Timer(_HELD, self._child.kill)
        clock.start()
        try:
            assert self._read() == "held"
        finally:
            clock.cancel()

    def go(self) -> None:
        self._tell("go")

    def stop(self) -> dict[str, float]:
        self._tell("stop")
        told: dict[str, float] = json.loads(self._read())
        self._child.wait(30)
        return told

    def kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.communicate()

    def _tell(self, word: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{word}\n")
        self._child.stdin.flush()

    def _read(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            said = line.rpartition("@")[2] if "@" in line else ""
            if said:
                return said.strip()
        end = self._log.read_text("utf-8", "replace")[-3000:]
        raise SystemExit(f"a peer ended with {self._child.wait()}; its log ends:\n{end}")


class Track:
    """The broker, filled with jobs, and the files that a worker needs. `track()` makes and ends it."""

    def __init__(self, kafka: ApacheKafka, folder: Path) -> None:
        self.kafka = kafka
        self.folder = folder
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY)
        self.recording = folder / "recording.jsonl"
        self.texts = bank_tickets(TEXTS)
        rows = ({"text": text, MODEL: LABELS[number % len(LABELS)]} for number, text in enumerate(self.texts))
        self.recording.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        self._numbers = count()

    async def make(
        self, partitions: int, *, jobs: Mapping[str, str] | None = None, results: Mapping[str, str] | None = None
    ) -> None:
        """Makes the topics of the policy; `jobs` and `results` are more configuration of those."""
        mapped = topic_map(read_policy(self.policy))
        more = {topic: {"config": dict(config)} for topic, config in ((JOBS, jobs), (RESULTS, results)) if config}
        declared = topics.declared(overrides={**mapped.overrides(), **more}, replicas=1, partitions=partitions)
        await topics.apply(read_connection(self.kafka.bootstrap, []), declared)

    async def fill(self, jobs: int) -> None:
        """Publishes so many jobs more."""
        for first in range(0, jobs, _STEP):
            pairs = [
                (b"%d" % number, orjson.dumps({"id": f"job-{number}", "task": "ticket-triage", "input": text}))
                for number in range(first, min(jobs, first + _STEP))
                for text in (self.texts[number % TEXTS],)
            ]
            await publish(self.kafka.bootstrap, JOBS, pairs, options={"max_batch_size": 1 << 17})

    def settings(self, **more: Any) -> dict[str, Any]:
        """A peer's, under a group of its own."""
        return {
            "bootstrap": self.kafka.bootstrap,
            "jobs": JOBS,
            "results": RESULTS,
            "group": f"bench-{next(self._numbers)}",
            "policy": str(self.policy),
            "recording": str(self.recording),
            **more,
        }

    def log(self) -> Path:
        return self.folder / f"peer-{next(self._numbers)}.log"

    async def lap(self, module: str, kind: str, each: Sequence[Mapping[str, Any]], jobs: int, within: float) -> Lap:
        """Lets one process for each of `each` run until `jobs` more results lie on the topic and are committed."""
        peers = [Peer(module, kind, settings, self.log()) for settings in each]
        try:
            for peer in peers:
                await asyncio.to_thread(peer.held)
            async with Ends(self.kafka.bootstrap) as ends:
                before = await ends.total(RESULTS)
                broker = cpu_of(self.broker)
                for peer in peers:
                    peer.go()
                await ends.until(RESULTS, before + jobs, within)
                broker = cpu_of(self.broker) - broker
            await self._committed(each[0]["group"])
            told = [await asyncio.to_thread(peer.stop) for peer in peers]
        finally:
            for peer in peers:
                peer.kill()
        return Lap(
            jobs=int(sum(each["jobs"] for each in told)),
            seconds=max(each["ended"] for each in told) - min(each["began"] for each in told),
            cpu=sum(each["cpu"] for each in told),
            broker_cpu=broker,
            workers=len(peers),
        )

    async def _committed(self, group: str) -> None:
        """Returns when the group has committed something: a loop that never commits would be no peer."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        try:
            end = time.monotonic() + 20
            while not sum(at.offset for at in (await group_offsets(admin, group)).values()):
                if time.monotonic() > end:
                    raise SystemExit(f"{group} has committed nothing in 20 s")
                await asyncio.sleep(0.1)  # the pace of a poll: a commit has no signal
        finally:
            await admin.close()

    @property
    def broker(self) -> int:
        assert self.kafka._child is not None
        return self.kafka._child.pid


@contextmanager
def track(folder: Path) -> Iterator[Track]:
    kafka = ApacheKafka(folder / "kafka", peak=True, properties=_PROPERTIES)
    try:
        yield Track(kafka.start(), folder)
    finally:
        kafka.stop()


class Ends:
    """The ends of topics, watched from outside any group."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def total(self, topic: str) -> int:
        """How many records were ever written to the topic."""
        await self._consumer._client._wait_on_metadata(topic)
        numbers = self._consumer.partitions_for_topic(topic) or ()
        ends = await self._consumer.end_offsets([TopicPartition(topic, number) for number in numbers])
        return sum(ends.values())

    async def until(self, topic: str, total: int, within: float) -> None:
        end = time.monotonic() + within
        while (found := await self.total(topic)) < total:
            if time.monotonic() > end:
                raise SystemExit(f"{topic} holds {found:,} of {total:,} records after {within:.0f} s")
            await asyncio.sleep(0.05)  # the pace of a poll: a topic's end has no signal


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and all its threads so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_of(pid: int) -> int:
    """Resident bytes of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def conditions() -> dict[str, Any]:
    """What a figure is worth depends on them."""
    return {"cores": os.cpu_count(), "load": [round(load, 2) for load in os.getloadavg()]}
