"""`sluiceway replay` as a process: killed, interrupted and gone on with, with the fake's journal as the witness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from tests.support.fake_process import FakeProcess
from tests.support.processes import Child, run_sluiceway, sluiceway

from sluiceway import demo

JOBS = 240
IN_FLIGHT = 8
KEYS = {"OPENAI_API_KEY": "sk-canary-openai"}
DEMO = Path(demo.__file__).parent


def _world(folder: Path, fake: FakeProcess) -> list[str]:
    """A policy on the fake and a file of tickets; the arguments that replay them."""
    models = {
        name: {
            "provider": "openai",
            "model": f"{name}-1",
            "base_url": f"{fake.url}/v1",
            "tier": name,
            "params": {"max_tokens": 50},
            "price": {"input_mtok": 1, "output_mtok": 2},
        }
        for name in ("cheap", "frontier")
    }
    task = {"ladder": ["cheap", "frontier"], "prompt": "Classify.", "labels": ["billing", "login", "refund", "other"]}
    task["gate"] = {"score": "label_logprob", "threshold": 0.85}
    (folder / "policy.yaml").write_text(yaml.safe_dump({"models": models, "tasks": {"triage": task}}))
    with (folder / "tickets.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f"t{number},ticket number {number} of this test\n" for number in range(JOBS))
    files = [str(folder / "tickets.csv"), "--policy", str(folder / "policy.yaml"), "--out", str(folder / "out")]
    return ["replay", *files, "--in-flight", str(IN_FLIGHT), "--json"]


def _outcomes(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "out" / "outcomes.jsonl").read_bytes().splitlines(keepends=True)]


def _started(arguments: Sequence[str], folder: Path) -> Child:
    return sluiceway(*arguments, log=folder / "replay.log", environment=KEYS).start()


def _asked(fake: FakeProcess) -> Counter[tuple[str, str]]:
    return Counter((entry.model, entry.digest) for entry in fake.entries())


def test_a_killed_replay_finishes_without_asking_twice_but_for_what_was_in_flight(tmp_path: Path) -> None:
    """kill -9 half-way, run again: one outcome a job; the journal shows a second call for jobs in flight alone."""
    with FakeProcess(tmp_path / "journal.jsonl", "labels doubt=20% delay=0.02") as fake:
        arguments = _world(tmp_path, fake)
        child = _started(arguments, tmp_path)
        fake.wait_for(lambda seen: len(seen) >= JOBS // 2)
        child.kill()
        before = (tmp_path / "out" / "outcomes.jsonl").read_bytes().count(b"\n")
        assert 0 < before < JOBS
        done = run_sluiceway(*arguments, environment=KEYS)
        assert done.returncode == 0, done.stderr
        outcomes = _outcomes(tmp_path)
        assert sorted(line["job_id"] for line in outcomes) == sorted(f"t{number}" for number in range(JOBS))
        twice = {pair for pair, count in _asked(fake).items() if count > 1}
        assert len({digest for _, digest in twice}) <= IN_FLIGHT
        assert max(_asked(fake).values()) <= 2
        summary = orjson.loads(done.stdout)
        assert summary["jobs"] == JOBS
        assert summary["cost_picousd"] == sum(line["cost_picousd"] for line in outcomes)

        asked = len(fake.entries())
        again = run_sluiceway(*arguments, environment=KEYS)
        assert orjson.loads(again.stdout) == summary
        assert len(fake.entries()) == asked


def test_ctrl_c_finishes_what_is_in_flight_and_the_next_run_the_rest(tmp_path: Path) -> None:
    """Exit 130 and how to go on; nothing at all is asked twice."""
    with FakeProcess(tmp_path / "journal.jsonl", "labels doubt=20% delay=0.02") as fake:
        arguments = _world(tmp_path, fake)
        child = _started(arguments, tmp_path)
        fake.wait_for(lambda seen: len(seen) >= JOBS // 3)
        child.interrupt()
        assert child.wait(30) == 130, child.tail()
        assert "Run the same command again" in child.tail()
        assert "Traceback" not in child.tail()
        assert 0 < len(_outcomes(tmp_path)) < JOBS
        done = run_sluiceway(*arguments, environment=KEYS)
        assert done.returncode == 0, done.stderr
        assert len(_outcomes(tmp_path)) == JOBS
        assert set(_asked(fake).values()) == {1}


def test_another_policy_does_not_go_on_with_this_ones_outcomes(tmp_path: Path) -> None:
    """The message names the way out, and nothing is called."""
    with FakeProcess(tmp_path / "journal.jsonl", "labels") as fake:
        arguments = _world(tmp_path, fake)
        assert run_sluiceway(*arguments, "--limit", "5", environment=KEYS).returncode == 0
        policy = tmp_path / "policy.yaml"
        policy.write_text(policy.read_text().replace("Classify.", "Classify it."))
        done = run_sluiceway(*arguments, environment=KEYS)
        assert done.returncode == 2
        assert "another --out" in done.stderr
        assert "Traceback" not in done.stderr
        assert sum(_asked(fake).values()) <= 10


@pytest.mark.parametrize("in_flight", ["1", "64"])
def test_the_demos_tickets_are_answered_as_the_record_says(tmp_path: Path, in_flight: str) -> None:
    """gpt-5-mini alone is right on .612 of the 500, the reference on .622; prices times tokens are the ledger."""
    arguments = ["replay", str(DEMO / "tickets.csv.gz"), "--policy", str(DEMO / "policy.yaml"), "--gold", "gold"]
    done = run_sluiceway(*arguments, "--out", str(tmp_path / "out"), "--in-flight", in_flight, "--json")
    assert done.returncode == 0, done.stderr
    told = orjson.loads(done.stdout)
    (held,) = told["gold"]
    assert told["jobs"] == held["gold"] == 500
    assert held["points"][0]["escalated"] == 0
    assert round(held["points"][0]["accuracy"], 3) == 0.612
    assert round(held["reference_alone"]["accuracy"], 3) == 0.622
    assert len(held["points"]) == 10
    (own,) = (point for point in held["points"] if point["policy"])
    assert own["cost_picousd"] == told["cost_picousd"]
    assert round(own["escalated"] * 500) == sum(told["escalated"].values())
    steps = [step for line in _outcomes(tmp_path) for step in line["trail"]["steps"] if step["step"] == "attempt"]
    prices = {"mini": (250_000, 2_000_000), "sonnet": (3_000_000, 15_000_000), "student": (0, 0)}  # picodollars a token
    for step in steps:
        usage, (read, write) = step["usage"], prices[step["model"]]
        assert step["cost_picousd"] == usage["input_uncached"] * read + usage["output_text"] * write
