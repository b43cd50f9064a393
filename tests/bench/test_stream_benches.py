"""The stream layer's benches run to their end, few jobs each; what they find is printed, and holds nothing to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sluiceway.core.held import Limits

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apache_kafka")]


def run(bench: str, *arguments: str) -> dict[str, Any]:
    """What the bench says with `--json`; it ends with 1 where a target is not held, and so small none need be."""
    command = [sys.executable, "-m", f"tests.bench.{bench}", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert done.stdout, done.stderr[-3000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_peer_of_the_stream_bench_finishes_its_jobs() -> None:
    found = run("stream", "--rounds", "1", "--jobs", "4000")
    jobs = {peer: each["jobs"] for peer, each in found["peers"].items()}
    assert jobs["faust"] >= 500
    assert jobs["aiokafka"] >= 4000
    assert jobs["bytes"] >= 4000
    # Their laps end when 2,000 results lie on the topic: of those the last, as many as are in flight, may be unacked.
    one, two = 2000 - Limits().jobs, 2000 - 2 * Limits().jobs
    assert min(jobs["core"], jobs["core-nostore"]) >= one
    assert jobs["core-two"] >= two
    assert len(found["ratios"]) == 5


def test_the_memory_bench_weighs_a_worker_twice() -> None:
    found = run("memory", "--first", "2000", "--jobs", "4000")
    assert found["rss_at_first"] > 10_000_000
    assert found["rss_at_last"] > 10_000_000


def test_the_poison_bench_has_an_outcome_of_every_kind() -> None:
    found = run("poison", "--rounds", "1", "--jobs", "600", "--rate", "100")
    assert sorted(found["kinds"]) == ["large", "malformed", "silent", "undecodable"]
    assert all(each["p99_with_ms"] > 0 for each in found["kinds"].values())


def test_the_tenants_bench_times_both_tenants() -> None:
    found = run("tenants", "--rounds", "1", "--seconds", "3")
    assert all(each["p99_ms"] > 0 for each in found["tenants"].values())


def test_the_bulkhead_bench_times_one_model_beside_a_hung_one() -> None:
    found = run("bulkhead", "--rounds", "1", "--seconds", "4", "--rate", "50", "--sick-rate", "20")
    assert found["hung_calls"] >= 5
    assert found["p99_without_ms"] > 50
    assert found["p99_with_ms"] > 50
