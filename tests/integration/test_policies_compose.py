"""What `docker compose up` would do, without a container engine: the very command lines of the profile `recorded`, as
processes, against an Apache Kafka as empty as compose's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.apache_kafka import ApacheKafka
from tests.support.processes import Child, run_sluiceway, sluiceway
from tests.support.topics import Reader

from sluiceway.worker import STOP_BUDGET

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
OUTCOMES = ("sluiceway.results", "sluiceway.reviews", "sluiceway.dead-letters")


def _command(name: str) -> list[str]:
    """The service's command line; /app is the checkout, as in the image."""
    return [re.sub("^/app/", f"{ROOT}/", word) for word in SERVICES[name]["command"]]


@pytest.fixture
def kafka(apache_kafka: ApacheKafka, tmp_path: Path) -> Iterator[ApacheKafka]:
    """A broker of this test's own, with nothing in it; the shared one has said that it can run here."""
    assert apache_kafka.running
    with ApacheKafka(tmp_path / "kafka", properties={"auto.create.topics.enable": "false"}) as kafka:
        yield kafka


def _worker(name: str, kafka: ApacheKafka, folder: Path) -> Child:
    # In compose each worker has a machine of its own, here they share one: the port of the probes is a free one.
    environment = {"SLUICEWAY_BOOTSTRAP_SERVERS": kafka.bootstrap}
    return sluiceway(
        *_command(name), "--metrics-port", "0", log=folder / f"{name}.log", environment=environment, name=name
    )


def _page(worker: Child, path: str) -> str:
    port = worker.wait_for_event("worker_started")["port"]
    return worker.wait_for_http(f"http://127.0.0.1:{port}{path}").decode()


@pytest.mark.slow
async def test_the_composed_command_lines_answer_every_ticket_with_no_key(kafka: ApacheKafka, tmp_path: Path) -> None:
    """Topics applied, 500 tickets published, one outcome each; the probes answer, and SIGTERM ends both with 0."""
    environment = {"SLUICEWAY_BOOTSTRAP_SERVERS": kafka.bootstrap}
    for name in ("topics", "publisher"):
        done = await asyncio.to_thread(run_sluiceway, *_command(name), environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    workers = [_worker(name, kafka, tmp_path) for name in ("worker", "escalation-worker")]
    try:
        for worker in workers:
            worker.start()
        async with Reader(kafka.bootstrap, *OUTCOMES) as reader:
            await reader.until(lambda records: len(records) >= 500, within=90.0)
            outcomes = [json.loads(record.value or b"") for record in reader.seen]
        pages = {worker.name: await asyncio.to_thread(_page, worker, "/metrics") for worker in workers}
        for worker in workers:
            assert await asyncio.to_thread(_page, worker, "/livez")
            worker.terminate()
        codes = [await asyncio.to_thread(worker.wait, STOP_BUDGET + 5) for worker in workers]
    finally:
        for worker in workers:
            await asyncio.to_thread(worker.stop)

    assert len({outcome["job_id"] for outcome in outcomes}) == len(outcomes) == 500
    results = [outcome for outcome in outcomes if outcome["schema"] == "sluiceway.result/1"]
    reviews = [outcome for outcome in outcomes if outcome["schema"] == "sluiceway.review/1"]
    assert {(outcome["tier"], outcome["escalated"]) for outcome in results} == {
        ("small", None),
        ("frontier", "uncertain"),
    }
    # Twice the recorded frontier thinks aloud instead of answering: a person decides.
    assert [outcome["reason"] for outcome in reviews] == ["unsettled"] * 2
    assert len(results) + len(reviews) == 500
    assert codes == [0, 0]
    answered = re.findall(
        r'^sluiceway_jobs_total\{outcome="answered",task="bank-triage"\} (\S+)$', "\n".join(pages.values()), re.M
    )
    assert sum(map(float, answered)) == len(results)
