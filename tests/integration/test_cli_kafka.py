"""The verbs that speak Kafka, as processes on a real broker: topics, publish and tail."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support import rig
from tests.support.processes import run_sluiceway
from tests.support.rig import Rig
from tests.support.topics import Address, publish, read_topic

JOBS = "sluiceway.jobs"


async def cli(*arguments: str, within: float = 90) -> Any:
    return await asyncio.to_thread(run_sluiceway, *arguments, within=within)


@pytest.fixture
async def cluster(any_rig: Rig) -> Address:
    """A cluster with our topics, empty, with two partitions each."""
    await any_rig.open(rig.models("http://127.0.0.1:1", "http://127.0.0.1:1"), {"triage": rig.triage()}, partitions=2)
    return any_rig.bootstrap


async def test_topics_are_as_declared_once_they_are_applied(cluster: Address) -> None:
    """Applying again changes nothing; what differs is told and exits 1."""
    sized = ("-b", cluster, "--replicas", "1", "--partitions")
    done = await cli("topics", "check", *sized, "3", "--json")
    assert done.returncode == 1
    assert {one["field"] for one in orjson.loads(done.stdout)["differences"]} == {"partitions"}
    done = await cli("topics", "apply", *sized, "3", "--dry-run")
    assert "partitions -> 3 (was 2)" in done.stdout
    if cluster.kind == "apache":  # the embedded broker can't add partitions
        assert (await cli("topics", "apply", *sized, "3")).returncode == 0
        done = await cli("topics", "check", *sized, "3")
        assert (done.returncode, done.stderr) == (0, "")
    done = await cli("topics", "apply", *sized, "2", "--json")
    assert orjson.loads(done.stdout)["differences"] == []


async def test_what_is_published_is_counted_by_acks_and_read_as_jobs(cluster: Address, tmp_path: Path) -> None:
    """Rows that are no jobs are told and exit 1; the others are on the topic under their ids."""
    path = tmp_path / "tickets.jsonl.gz"
    rows = [orjson.dumps({"id": f"p{number}", "input": f"text {number}", "tenant": "acme"}) for number in range(500)]
    path.write_bytes(gzip.compress(b"\n".join([*rows, b'{"cut', b'{"nothing": 1}'])))
    done = await cli("publish", str(path), "--task", "triage", "-b", cluster, "--json")
    assert done.returncode == 1
    assert orjson.loads(done.stdout) == {"topic": JOBS, "acked": 500, "unacked": 0, "refused": 2}
    assert "file:tickets.jsonl.gz:501" in done.stderr
    seen = await read_topic(cluster, JOBS)
    published = {orjson.loads(record.value)["id"]: record for record in seen if record.value is not None}
    assert len(published) == len(seen) == 500
    assert orjson.loads(published["p7"].value or b"") == {
        "id": "p7",
        "input": "text 7",
        "tenant": "acme",
        "task": "triage",
    }
    assert published["p7"].key == b"p7"
    done = await cli("publish", str(path), "--task", "triage", "-b", cluster, "--limit", "3")
    assert (done.returncode, done.stdout) == (0, f"3 acked by {JOBS}, 0 not acked, 0 rows refused\n")


async def test_a_topic_that_is_not_there_is_named_with_the_mend(cluster: Address, tmp_path: Path) -> None:
    """Nothing is created by asking for it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "x"}\n')
    done = await cli("publish", str(path), "--task", "t", "-b", cluster, "--topic", "sluiceway.nowhere")
    assert done.returncode == 2
    assert "sluiceway topics apply" in done.stderr
    done = await cli("tail", "-b", cluster, "--shadow")
    assert done.returncode == 2
    assert "sluiceway.shadow.results. Mend: sluiceway topics apply" in done.stderr


async def test_tail_shows_what_stands_there_and_takes_nothing(cluster: Address) -> None:
    """From the beginning, so many records; as JSON they are the records' own bytes; twice the same."""
    result = {
        "schema": "sluiceway.result/1",
        "job_id": "tail-1",
        "task": "triage",
        "status": "answered",
        "finished_at": 1_700_000_000.0,
        "trail": {"steps": []},
        "cost_picousd": 162_750_000,
        "answer": {"label": "billing"},
        "tier": "small",
        "model": "cheap",
        "score": 0.95,
    }
    stood = [orjson.dumps(result), orjson.dumps({**result, "job_id": "tail-2"})]
    await publish(cluster, "sluiceway.results", stood)
    for _ in range(2):
        done = await cli("tail", "-b", cluster, "--from", "earliest", "--limit", "2", "--json")
        assert done.returncode == 0, done.stderr
        assert sorted(line.encode() for line in done.stdout.splitlines()) == sorted(stood)
    done = await cli("tail", "results", "-b", cluster, "--from", "2023-01-01", "--limit", "2")
    (line,) = (line for line in done.stdout.splitlines() if "tail-1" in line)
    for part in ("triage", "small/cheap", "billing", "0.950", "$0.00016275"):
        assert part in line
