"""`sluiceway demo`, as a newcomer runs it: a command in a process of its own, on the broker that it brings along."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.processes import wait_until

from sluiceway.core.outcome import Review, decode
from sluiceway.demo.tickets import policy_file, tickets
from sluiceway.demo.workers import environment
from sluiceway.kafka import topics
from sluiceway.kafka.embedded import SETTINGS, EmbeddedBroker
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.kafka.watch import Watch
from sluiceway.policyfile import read_policy
from sluiceway.topicmap import topic_map

COMMAND = [sys.executable, "-m", "sluiceway", "demo"]
MARK = "SLUICEWAY_TEST_RUN"
ENDS = 90.0  # seconds, on a machine that does other things as well
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Started:
    """One demo with its output in files, and everything that it started, known by a mark in the environment."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, MARK: self.mark, "TMPDIR": str(folder), "COLUMNS": "80"}
        self.folder = folder
        self.out = folder / "demo.out"
        self.err = folder / "demo.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.environment
            )

    def said(self, text: str) -> None:
        """Waits until the demo has written `text`."""
        wait_until(lambda: text in self.out.read_text("utf-8"), within=ENDS, what=self.told)

    def told(self) -> str:
        return f"{self.out.read_text('utf-8')}\n{self.err.read_text('utf-8')}"

    def ended(self) -> int:
        return self.process.wait(ENDS)

    def left(self) -> list[str]:
        """What still runs of it, this demo itself included: processes that carry its mark."""
        return marked(self.mark)

    def nothing_left(self) -> None:
        """Of processes nothing, of files nothing."""
        wait_until(lambda: not self.left(), within=10, what=lambda: f"left running: {self.left()}")
        assert [path.name for path in self.folder.glob("sluiceway-demo-*")] == []

    def clear(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def marked(mark: str) -> list[str]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or is not ours to look at
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    begun: list[Started] = []

    def starting(*arguments: str) -> Started:
        folder = tmp_path / str(len(begun))
        folder.mkdir()
        begun.append(Started(folder, *arguments))
        return begun[-1]

    yield starting
    for one in begun:
        one.clear()


@on_linux
def test_the_demo_answers_every_ticket_and_leaves_nothing(start: Callable[..., Started]) -> None:
    """500 tickets, one outcome each, most by the cheap model; figures that agree with each other; no process left."""
    demo = start("--json")
    assert demo.ended() == 0, demo.told()
    demo.nothing_left()
    figures = json.loads(demo.out.read_bytes())
    escalated = sum(figures["escalated"].values())
    assert figures["jobs"] == 500
    assert figures["answered"]["mini"] + figures["answered"]["sonnet"] + figures["reviews"] == 500
    assert (figures["dead_letters"], figures["refused"]) == (0, 0)
    assert escalated == figures["answered"]["sonnet"] + figures["reviews"] < 250
    assert sum(figures["spent_usd"].values()) == pytest.approx(figures["cost_usd"])
    assert figures["saving"] == pytest.approx(1 - figures["cost_picousd"] / figures["reference_cost_picousd"])
    assert (figures["cheap_accuracy"], figures["reference_accuracy"]) == (0.612, 0.622)
    assert figures["accuracy"] > figures["reference_accuracy"]
    assert figures["accuracy_at_third"] > figures["reference_accuracy"]
    assert 0 < figures["p50"] <= figures["p99"]
    assert figures["curve"][0]["accuracy"] == figures["cheap_accuracy"]
    assert figures["curve"][-1]["accuracy"] == figures["reference_accuracy"]


@on_linux
def test_the_demo_ends_with_a_page_that_fits(start: Callable[..., Started]) -> None:
    """Table, curve and caveats within 80 columns, and not a word on stderr."""
    demo = start("--jobs", "40")
    assert demo.ended() == 0, demo.told()
    page = demo.out.read_text("utf-8")
    for part in ("jobs ", "answered by mini", "all-frontier cost", "at 1/3 of cost", "declared, not yet proved"):
        assert part in page
    assert max(len(line) for line in page.splitlines()) <= 80
    assert demo.err.read_text("utf-8") == ""


@on_linux
@pytest.mark.parametrize("stage", ["starting two workers", "tickets through Kafka"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_up(start: Callable[..., Started], stage: str, number: signal.Signals) -> None:
    """Ctrl-C while workers start or tickets flow: the exit code says so, no traceback, nothing is left."""
    demo = start()
    demo.said(stage)
    demo.process.send_signal(number)
    assert demo.ended() == 128 + number
    demo.nothing_left()
    assert "Traceback" not in demo.told()


@on_linux
def test_a_closed_terminal_cleans_up(tmp_path: Path) -> None:
    """The window is closed while the live view is drawn: nothing is left."""
    mark = uuid.uuid4().hex
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal,
        env={**os.environ, MARK: mark, "TMPDIR": str(tmp_path), "TERM": "xterm-256color"},
    )  # fmt: skip
    try:
        os.close(theirs)
        seen = b""
        while b"tickets through Kafka" not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        assert process.wait(ENDS) != 0
        wait_until(lambda: not marked(mark), within=10, what=lambda: f"left running: {marked(mark)}")
        assert list(tmp_path.glob("sluiceway-demo-*")) == []
    finally:
        process.kill()
        process.wait()


@on_linux
def test_a_killed_demo_takes_its_children_along(start: Callable[..., Started]) -> None:
    """kill -9 leaves no broker and no worker behind: the kernel ends them."""
    demo = start()
    demo.said("starting two workers")
    demo.process.kill()
    demo.process.wait()
    wait_until(lambda: not demo.left(), within=10, what=lambda: f"left running: {demo.left()}")


@on_linux
def test_a_worker_that_fails_is_shown_with_its_log(start: Callable[..., Started], tmp_path: Path) -> None:
    """A policy whose models need a key that is not there: exit 1, the worker's own words, nothing left."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "models:\n"
        "  cheap: {provider: openai, model: gpt-5-mini, api_key_env: NO_SUCH_KEY, params: {max_tokens: 20}}\n"
        "  big: {provider: openai, model: gpt-5, api_key_env: NO_SUCH_KEY, params: {max_tokens: 20}}\n"
        "tasks:\n"
        "  triage: {ladder: [cheap, big], prompt: Sort it., labels: [a, b], gate: {score: none}}\n"
    )
    demo = start("--policy", str(policy), "--jobs", "5")
    assert demo.ended() == 1
    demo.nothing_left()
    assert "the worker" in demo.told()
    assert "NO_SUCH_KEY" in demo.told()
    assert "Traceback" not in demo.told()


@on_linux
@pytest.mark.slow
def test_the_demo_runs_on_a_kafka_of_one_s_own(start: Callable[..., Started], apache_kafka: ApacheKafka) -> None:
    """`-b` on a single Apache Kafka: missing topics are made with the replicas it can hold, and it runs there twice."""
    for _ in range(2):
        demo = start("--json", "--jobs", "30", "-b", apache_kafka.bootstrap)
        assert demo.ended() == 0, demo.told()
        demo.nothing_left()
        figures = json.loads(demo.out.read_bytes())
        assert sum(figures["answered"].values()) + figures["reviews"] == 30


async def test_a_replay_decides_as_the_demo_did_through_kafka(start: Callable[..., Started], tmp_path: Path) -> None:
    """On a Kafka of one's own (`-b`), under ids of this run: decisions, answers and ledger are those of `replay`."""
    async with EmbeddedBroker() as broker:
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        connection = read_connection(broker.bootstrap, settings)
        map_ = topic_map(read_policy(policy_file()))
        await topics.apply(connection, topics.declared(replicas=1, partitions=4))
        watch = Watch(connection, [*map_.results.values(), map_.reviews])
        await watch.start()
        options = [part for pair in settings for part in ("-X", pair)]
        demo = start("--json", "-b", broker.bootstrap, *options)
        through_kafka = await _outcomes(watch, demo)
        await watch.stop()
        assert demo.ended() == 0, demo.told()
    folder = tmp_path / "replayed"
    command = [*COMMAND[:-1], "replay", str(policy_file().parent / "tickets.csv.gz"), "--policy", str(policy_file())]
    command += ["--out", str(folder)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=ENDS)
    lines = (folder / "outcomes.jsonl").read_bytes().splitlines()
    replayed = {line["job_id"]: line for line in map(orjson.loads, lines) if "trail" in line}
    assert len(replayed) == 500
    assert {name: _decided(line) for name, line in replayed.items()} == through_kafka
    total = json.loads(demo.out.read_bytes())["cost_picousd"]
    assert sum(line["cost_picousd"] for line in replayed.values()) == total


async def _outcomes(watch: Watch, demo: Started) -> dict[str, Any]:
    """What each ticket came to, by its id without the run's prefix."""
    found: dict[str, Any] = {}
    while len(found) < len(tickets()):
        for record in await watch.records(1.0):
            assert record.value is not None
            if record.topic.endswith("reviews"):
                decode(Review, record.value)
            line = orjson.loads(record.value)
            prefix, _, name = line["job_id"].rpartition("ticket-")
            assert prefix.startswith("demo-")
            found[f"ticket-{name}"] = _decided(line)
        if demo.process.poll() is not None:
            assert demo.process.returncode == 0, demo.told()
    return found


def _decided(line: Mapping[str, Any]) -> Any:
    """All that was decided and paid: not when, nor by which process."""
    steps = [
        (step["model"], step["verdict"], step["reason"], step["answer"], step["score"] and step["score"]["value"],
         step["cost_picousd"], step["usage"], step["prompt"]["digest"])
        for step in line["trail"]["steps"]
        if step["step"] == "attempt"
    ]  # fmt: skip
    known = ("schema", "status", "reason", "answer", "model", "tier", "escalated", "cost_picousd", "policy")
    return steps, {name: line.get(name) for name in known}


def test_connection_settings_reach_the_workers_by_environment() -> None:
    """A password given with -X or -F must not stand on a worker's command line, where all users of a machine see it."""
    connection = Connection({"bootstrap.servers": "kafka:9092", "sasl.username": "me", "sasl.password": "a b"})
    found = environment(connection)
    assert [found["SLUICEWAY_" + name] for name in ("BOOTSTRAP_SERVERS", "SASL_PASSWORD")] == ["kafka:9092", "a b"]
