"""What an end-to-end test stands on: one cluster with a policy's topics, and real workers on it.

    rig = Rig(bootstrap, folder); await rig.open(policy)
    await rig.publish("sluiceway.jobs", [(key, value, headers), ...])          a bare aiokafka producer, or kcat
    worker = rig.worker("--role", "jobs"); await rig.ready(worker)             a real process of the CLI
    seen = await rig.until(lambda seen: ..., within=60)                        every record of the outgoing topics

`open` and `close` empty the cluster of our topics, so that one broker serves many tests one after another.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from sluiceway.core.policy import Policy
from sluiceway.kafka import embedded, topics
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.policyfile import read_policy
from sluiceway.ports import Headers
from sluiceway.topicmap import TopicMap, topic_map
from tests.support.evidence import Disturbance, Place, Published, read_outcomes
from tests.support.fake_models import JournalEntry
from tests.support.laws import Rates, Report, check
from tests.support.outgoing import (
    OUTCOMES,
    Outgoing,
)
from tests.support.processes import Child, ChildError, sluiceway
from tests.support.topics import Address, Reader, Seen, committed, ends, read_topic

KEYS = {"OPENAI_API_KEY": "sk-canary-openai", "ANTHROPIC_API_KEY": "sk-canary-anthropic"}
SETTINGS = {
    "apache": ("session.timeout.ms=10000", "heartbeat.interval.ms=500", "rebalance.timeout.ms=6000"),
    "embedded": tuple(f"{name}={value}" for name, value in embedded.SETTINGS.items()),
}
"""What every client here sets, by kind of broker: sessions short enough for a test."""

CHEAP, FRONTIER = "cheap-1", "frontier-1"
"""The two usual models' names on the wire."""
CHEAP_PRICE = {"input_mtok": 0.15, "cache_read_mtok": 0.003, "output_mtok": 0.60}
FRONTIER_PRICE = {"input_mtok": 5, "cache_read_mtok": 0.5, "cache_write_mtok": 6.25, "output_mtok": 25}
LABELS = ["billing", "login", "refund", "other"]

Item = tuple[bytes | None, bytes | None, Headers]
"""A record to publish: key, value, headers."""


def models(cheap: str, frontier: str, /, **more: Mapping[str, Any]) -> dict[str, Any]:
    """The two usual models at the URLs of two fakes; `more` adds fields to each by its name."""
    return {
        "cheap": {
            "provider": "openai",
            "base_url": f"{cheap}/v1",
            "model": CHEAP,
            "tier": "small",
            "price": CHEAP_PRICE,
            "params": {"max_tokens": 50},
            **more.get("cheap", {}),
        },
        "frontier": {
            "provider": "anthropic",
            "base_url": frontier,
            "model": FRONTIER,
            "tier": "frontier",
            "price": FRONTIER_PRICE,
            "params": {"max_tokens": 200},
            **more.get("frontier", {}),
        },
    }


def triage(**more: Any) -> dict[str, Any]:
    """A ticket-triage task over the two usual models, with `more` fields."""
    return {
        "ladder": ["cheap", "frontier"],
        "prompt": "Classify this ticket.",
        "labels": LABELS,
        "gate": {"score": "label_logprob", "threshold": 0.85},
    } | more


def job(number: int | str, text: str, task: str = "ticket-triage", **more: Any) -> Item:
    """A record of the jobs topic whose id is `job-NUMBER`, without a key."""
    return None, orjson.dumps({"id": f"job-{number}", "task": task, "input": text, **more}), ()


RATES = {
    CHEAP: Rates.of(CHEAP_PRICE["input_mtok"], CHEAP_PRICE["cache_read_mtok"], CHEAP_PRICE["output_mtok"]),
    FRONTIER: Rates.of(
        FRONTIER_PRICE["input_mtok"],
        FRONTIER_PRICE["cache_read_mtok"],
        FRONTIER_PRICE["output_mtok"],
        FRONTIER_PRICE["cache_write_mtok"],
    ),
}


def billed(entries: Iterable[JournalEntry]) -> int:
    """Pico-dollars of all that the journals' entries were metered: the outside witness of the ledger."""
    return sum(RATES[entry.model].cost(entry.metered) for entry in entries if entry.metered is not None)


class Rig:
    """`pairs` are what -X takes, for the workers and for the rig's own clients. Close it: its workers end with it."""

    def __init__(self, bootstrap: Address, folder: Path, *, pairs: Sequence[str] | None = None) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.pairs = tuple(SETTINGS[bootstrap.kind] if pairs is None else pairs)
        self.connection: Connection = read_connection(bootstrap, self.pairs)
        self.options = self.connection.security()
        self.workers: list[Child] = []
        self.out = Outgoing()
        self._names: set[str] = set()
        self._reader: Reader | None = None

    @property
    def policy_file(self) -> Path:
        return self.folder / "policy.yaml"

    @cached_property
    def policy(self) -> Policy:
        return read_policy(self.policy_file)

    @cached_property
    def map(self) -> TopicMap:
        return topic_map(self.policy)

    def write(self, models: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
        """Writes the policy."""
        self.policy_file.write_text(yaml.safe_dump({"models": dict(models), "tasks": dict(tasks)}, sort_keys=False))

    async def open(
        self,
        models: Mapping[str, Any],
        tasks: Mapping[str, Any],
        *,
        partitions: int = 4,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes the policy and makes its topics, empty. `overrides` as for `topics.declared`."""
        self.write(models, tasks)
        wanted = {**self.map.overrides()}
        for name, fields in (overrides or {}).items():
            wanted[name] = {**wanted.get(name, {}), **fields}
        declared = topics.declared(overrides=wanted, replicas=1, partitions=partitions)
        self._names = {topic.name for topic in declared}
        self._declared = declared
        await self._remove()
        await self.apply()

    async def apply(self) -> None:
        """Makes what is missing of the topics, as `sluiceway topics apply` does."""
        await topics.apply(self.connection, self._declared)

    async def _remove(self) -> None:
        """Deletes our topics, and what an earlier test left; a group's offsets go with their topics."""
        async with self.admin() as admin:
            present = {
                name for name in await admin.list_topics() if name in self._names or name.startswith("sluiceway.")
            }
            if present:
                await admin.delete_topics(sorted(present))
            for _ in range(500):  # a deletion has no signal; creating what is not yet gone would fail
                if not present & set(await admin.list_topics()):
                    break
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(**self.connection.client())
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def close(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self.workers))
        if self._reader is not None:
            await self._reader.__aexit__()
        if self._names:
            await self._remove()

    # -- in --------------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, items: Iterable[Item], *, largest: int = 4 << 20) -> list[tuple[int, int]]:
        """Publishes with a bare aiokafka producer; the (partition, offset) of each, as the broker acked it."""
        producer = AIOKafkaProducer(**self.connection.producer(), acks="all", max_request_size=largest)
        await producer.start()
        try:
            futures = [
                await producer.send(topic, value, key=key, headers=list(headers)) for key, value, headers in items
            ]
            return [(sent.partition, sent.offset) for sent in await asyncio.gather(*futures)]
        finally:
            await producer.stop()

    async def publish_lines(self, topic: str, values: Sequence[bytes]) -> str:
        """Publishes one record a line by kcat where it is installed, else bare; returns which."""
        kcat = shutil.which("kcat")
        if kcat is None:
            await self.publish(topic, [(None, value, ()) for value in values])
            return "aiokafka"
        file = self.folder / f"{topic}.lines"
        file.write_bytes(b"".join(value + b"\n" for value in values))
        # Its own default spreads over partitions in runs; acks as a careful user would set them.
        command = [kcat, "-P", "-b", self.bootstrap, "-t", topic, "-X", "acks=all", "-l", str(file)]
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0, "kcat failed; its error stands above"
        return "kcat"

    # -- workers ---------------------------------------------------------------------------------------------------

    def worker(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        connected: Sequence[str] | None = None,
        start: str | None = "earliest",
    ) -> Child:
        """A started worker. `connected`: the options of its connection, the rig's own as -b and -X where None."""
        name = f"worker-{len(self.workers) + 1}"
        if connected is None:
            connected = ["-b", self.bootstrap, *(part for pair in self.pairs for part in ("-X", pair))]
        opening = [] if start is None else ["--from", start]
        command = ["work", "--policy", str(self.policy_file), "--metrics-port", "0", *connected, *opening, *arguments]
        child = sluiceway(
            *command, log=self.folder / f"{name}.log", environment={**KEYS, **(environment or {})}, name=name
        )
        self.workers.append(child)
        return child.start()

    async def ready(self, *workers: Child, within: float = 40.0) -> list[str]:
        """The URL of each worker's probes, once it is in its group and takes jobs."""
        return await asyncio.gather(*(asyncio.to_thread(_ready, worker, within) for worker in workers))

    async def stopped(self, *workers: Child, within: float = 40.0) -> list[int]:
        """The exit codes, after a SIGTERM to each."""
        for worker in workers:
            worker.terminate()
        return await asyncio.gather(*(asyncio.to_thread(worker.wait, within) for worker in workers))

    # -- out -------------------------------------------------------------------------------------------------------

    async def until(self, enough: Callable[[Outgoing], bool], *, within: float) -> Outgoing:
        """Reads the outgoing topics until `enough` holds of all that was read. TimeoutError says what is there.

        ChildError at once where a worker has failed meanwhile (one that was killed by a test has not).
        """

        def looked(records: list[Seen]) -> bool:
            for worker in self.workers:
                if worker.returncode not in (None, 0, -signal.SIGKILL):
                    raise ChildError(f"{worker.name} ended with {worker.returncode}:\n{worker.tail()}")
            return enough(self.out.read(records))

        reader = await self._reading()
        try:
            await reader.until(looked, within=within)
        except TimeoutError:
            logs = "\n".join(f"--- {worker.name}\n{worker.tail(15)}" for worker in self.workers)
            counts = {topic: len(records) for topic, records in self.out.by_topic.items()}
            raise TimeoutError(
                f"not within {within} s; read so far: {counts}; the workers' logs end:\n{logs}"
            ) from None
        return self.out

    async def settled(self, within: float = 20.0) -> Outgoing:
        """All that is on the outgoing topics, once nothing is left of what the two roles read: both groups' lag is 0.

        The embedded broker does not tell a group's offsets; there it is what is on the topics now.
        """
        deadline = time.monotonic() + within
        while self.bootstrap.kind == "apache" and (left := await self._left()):
            assert time.monotonic() < deadline, f"after {within} s uncommitted: {left}"
            await asyncio.sleep(0.05)  # the pace of a poll: an offset's commit has no other signal
        return await self.by_now()

    async def by_now(self) -> Outgoing:
        """All that is on the outgoing topics now."""
        reader = await self._reading()
        await reader.read()
        return self.out.read(reader.seen)

    async def report(
        self,
        *,
        seed: int = 0,
        entries: Sequence[JournalEntry] = (),
        disturbance: Disturbance | None = None,
        lost_allowed: int | None = None,
        id_of: Callable[[Any], Any] = lambda tree: tree["id"],
    ) -> Report:
        """The laws, held against what lies in the topics that workers read and write.

        `id_of`: a job's id in its JSON.
        """
        records = await read_topic(self.bootstrap, *self.map.jobs, options=self.options)
        published = [
            Published(_id(record, id_of), Place(record.topic, record.partition, record.offset))
            for record in records
            if record.value is not None
        ]
        outcomes = read_outcomes(record for topic in OUTCOMES for record in self.out[topic])
        rates = RATES if entries else None
        report = check(
            published,
            outcomes,
            seed=seed,
            disturbance=disturbance,
            entries=entries,
            rates=rates,
            lost_allowed=lost_allowed,
        )
        print(report)
        return report

    async def _left(self) -> dict[str, int]:
        """Records beyond the committed offset, by partition, of what both roles' groups read."""
        left = {}
        for role, group in self.map.groups.items():
            for topic in self.map.read_by(role):
                done = await committed(self.bootstrap, group, topic, options=self.options)
                for number, end in (await ends(self.bootstrap, topic, options=self.options)).items():
                    behind = end - (done[number].offset if number in done else 0)
                    if behind > 0:
                        left[f"{group} {topic}/{number}"] = behind
        return left

    async def _reading(self) -> Reader:
        if self._reader is None:
            self._reader = await Reader(self.bootstrap, *self.map.written, options=self.options).__aenter__()
        return self._reader


def _id(record: Seen, id_of: Callable[[Any], Any]) -> str | None:
    try:
        return str(id_of(orjson.loads(record.value or b"")))
    except (ValueError, TypeError, KeyError):
        return None


def _ready(worker: Child, within: float) -> str:
    started = worker.wait_for_event("worker_started", within=within)
    url = f"http://127.0.0.1:{started['port']}"
    worker.wait_for_http(f"{url}/readyz", within=within)
    return url


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, from Prometheus's text format."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total
