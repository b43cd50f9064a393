"""Replay: the same cascades without Kafka; each job is asked once, however often the run is stopped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support import core
from tests.support.core import Scripted, reply

from sluiceway.archive.backlog import Backlog, BadRow, Row
from sluiceway.archive.outcomes import OUTCOMES, OutcomeLog
from sluiceway.core.call import CACHED, Call, Failure, Reply
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.outcome import Result, Review
from sluiceway.core.policy import Policy
from sluiceway.replay.report import Summary, summarize
from sluiceway.replay.run import Bounds, Ended, run

JOBS = 30


def answers(call: Call) -> Reply | Failure:
    """The cheap model doubts every third text; both answer by its length."""
    label = core.LABELS[len(call.request.text) % 4]
    doubts = call.model.name == "cheap" and "doubt" in call.request.text
    return reply(label, 0.3 if doubts else 0.99)


@dataclass
class World:
    """A backlog and the folder of its outcomes."""

    folder: Path
    policy: Policy = field(default_factory=core.policy)
    seen: list[int] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, made: Result | Review | None, spent: int) -> None:  # noqa: ARG002  the protocol's signature
        self.seen.append(spent)

    def write(self, lines: list[str], name: str = "backlog.jsonl") -> Backlog:
        (self.folder / name).write_text("\n".join(lines))
        return Backlog(str(self.folder / name), "triage")

    def tickets(self, name: str = "backlog.jsonl", *, backwards: bool = False) -> Backlog:
        kinds = ["sure", "clear", "doubt"]
        lines = [f'{{"id":"j{n}","input":"{kinds[n % 3]} {"x" * n}"}}' for n in range(JOBS)]
        return self.write(lines[::-1] if backwards else lines, name)

    async def run(self, backlog: Backlog, models: Scripted, out: str = "out", **bounds: Any) -> Ended:
        made, _ = core.runner(self.policy, models)
        with OutcomeLog.open(self.folder / out, policy=self.policy.digest, source=backlog.name) as log:
            return await run(made, backlog.rows(), log, Bounds(**bounds), self, self.stop)

    def lines(self, out: str = "out") -> list[dict[str, Any]]:
        with OutcomeLog.open(self.folder / out, policy=self.policy.digest, source="backlog.jsonl") as log:
            return list(log.lines())

    def summary(self) -> Summary:
        return summarize(self.lines())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_every_row_has_one_outcome_and_the_doubted_ones_are_escalated(world: World) -> None:
    """The reference is asked for the doubted alone; the ledger is the sum of the trails."""
    models = Scripted(answers)
    assert await world.run(world.tickets(), models) is Ended.FINISHED
    summary = world.summary()
    assert summary.answered == {("small", "cheap"): 20, ("frontier", "frontier"): 10}
    assert summary.escalated == {"uncertain": 10}
    assert Counter(call.model.name for call in models.calls) == {"cheap": 30, "frontier": 10}
    steps = [step for line in world.lines() for step in line["trail"]["steps"] if step["step"] == "attempt"]
    assert summary.cost == sum(step["cost_picousd"] for step in steps) > 0
    assert summary.saving is not None
    assert len(world.seen) == JOBS
    assert world.seen[-1] == summary.cost


async def test_the_summary_says_what_a_success_cost_and_how_full_the_context_windows_were(world: World) -> None:
    """All attempts of all jobs stand over the answers; a line without the share, of an older version, is let pass."""
    await world.run(world.tickets(), Scripted(answers))
    told = world.summary().as_json()
    assert told["cost_per_success_usd"] == pytest.approx(told["cost_usd"] / JOBS)
    share = round(125 / 128_000, 6)
    assert told["context_use"] == {"mean": pytest.approx(share), "most": share}
    lines = world.lines()
    for step in lines[0]["trail"]["steps"]:
        step.pop("context_use", None)
    assert summarize(lines).metered < world.summary().metered
    assert Summary().as_json()["context_use"] == {"mean": None, "most": None}
    assert Summary().cost_per_success is None


async def test_the_summary_says_what_share_of_the_input_came_from_prompt_caches(world: World) -> None:
    """By the usages that the models metered, over all kinds of input; kept answers are no calls and are counted."""
    await world.run(world.tickets(), Scripted(answers))
    lines = world.lines()
    assert (world.summary().prompt_cache_hit, world.summary().kept) == (20 / 120, 0)
    for line in lines:
        for step in line["trail"]["steps"]:
            if step["step"] == "attempt":
                step["usage"] |= {"input_cache_write_5m": 30, "input_cache_write_1h": 10}
    calls = JOBS + JOBS // 3
    lines[0]["trail"]["steps"][1] |= {"usage": dict.fromkeys(lines[0]["trail"]["steps"][1]["usage"], 0)}
    lines[0]["trail"]["steps"][1]["endpoint"] = CACHED
    summary = summarize(lines)
    assert summary.as_json()["tokens"] == {
        "input": 100 * (calls - 1),
        "cache_read": 20 * (calls - 1),
        "cache_write": 40 * (calls - 1),
        "output": 5 * (calls - 1),
    }
    assert (summary.as_json()["prompt_cache_hit"], summary.kept) == (20 / 160, 1)
    assert Summary().prompt_cache_hit is None


async def test_going_on_asks_nothing_that_is_answered(world: World) -> None:
    """Neither the second run nor a third calls a model."""
    await world.run(world.tickets(), Scripted(answers))
    before = world.lines()
    for _ in range(2):
        models = Scripted(answers)
        assert await world.run(world.tickets(), models) is Ended.FINISHED
        assert models.calls == []
    assert world.lines() == before


@pytest.mark.parametrize("kept", [0, 1, 13, 29])
async def test_a_run_that_was_cut_anywhere_is_made_whole_without_asking_twice(world: World, kept: int) -> None:
    """What stands in whole lines is not asked again, though the rows come in another order the second time."""
    await world.run(world.tickets(), Scripted(answers), in_flight=4)
    path = world.folder / "out" / OUTCOMES
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    finished = {line["job_id"] for line in world.lines()}
    models = Scripted(answers)
    await world.run(world.tickets(backwards=True), models)
    assert sorted(line["job_id"] for line in world.lines()) == sorted(f"j{n}" for n in range(JOBS))
    assert not finished & {call.job_id for call in models.calls}


async def test_limit_and_max_cost_stop_cleanly(world: World) -> None:
    """So many jobs and no more; so much money and no more than the jobs in flight beyond it."""
    assert await world.run(world.tickets(), Scripted(answers), limit=7, in_flight=4) is Ended.LIMIT
    assert world.summary().jobs == 7
    spent = world.summary().cost
    bound = spent // 2
    assert await world.run(world.tickets(), Scripted(answers), max_cost=bound, in_flight=1) is Ended.MAX_COST
    more = world.summary().cost - spent
    dearest = max(line["cost_picousd"] for line in world.lines())
    assert bound <= more < bound + dearest
    assert await world.run(world.tickets(), Scripted(answers)) is Ended.FINISHED
    assert world.summary().jobs == JOBS


async def test_stopping_finishes_what_is_in_flight_and_takes_no_more(world: World) -> None:
    """As the first Ctrl-C does."""

    def stopping(call: Call) -> Reply | Failure:
        if call.job_id == "j5":
            world.stop.set()
        return answers(call)

    models = Scripted(stopping)
    assert await world.run(world.tickets(), models, in_flight=3) is Ended.INTERRUPTED
    assert {line["job_id"] for line in world.lines()} == {call.job_id for call in models.calls}
    assert world.summary().jobs < JOBS


async def test_bad_rows_are_dead_letters_and_their_neighbours_are_answered(world: World) -> None:
    """Cut JSON, an unknown task, a job over the task's size: one line each, with its reason."""
    big = "x" * 1_000_000
    good, cut, unknown = '{"id":"a","input":"one"}', '{"id', '{"id":"b","task":"nope","input":"x"}'
    backlog = world.write([good, cut, unknown, f'{{"input":"{big}"}}', '{"id":"c","input":"two"}'])
    models = Scripted(answers)
    await world.run(backlog, models)
    assert world.summary().dead_letters == {"undecodable": 1, "unknown_task": 1, "too_large": 1}
    assert [call.job_id for call in models.calls] == ["a", "c"]
    assert {line["origin"] for line in world.lines() if "origin" in line} == {
        f"file:backlog.jsonl:{n}" for n in (2, 3, 4)
    }


async def test_an_id_that_stands_there_twice_is_asked_once(world: World) -> None:
    """A job's outcome is known by its id, not by its line; another round is another outcome."""
    row = '{"id":"a","input":"one"}'
    models = Scripted(answers)
    await world.run(world.write([row, row, row.replace("}", ',"round":1}')]), models, in_flight=8)
    assert [call.job_id for call in models.calls] == ["a", "a"]
    assert [(line["job_id"], line["round"]) for line in world.lines()] == [("a", 0), ("a", 1)]


async def test_an_id_that_tenants_and_tasks_share_is_as_many_jobs(world: World) -> None:
    """Each has its outcome, an answer or a dead letter, and going on asks none of them again."""
    models = Scripted(answers)
    owners: list[dict[str, str]] = [{}, {"tenant": "a"}, {"tenant": "b"}, {"tenant": "a", "task": "x"}, {"task": "y"}]
    backlog = world.write([orjson.dumps({"id": "17", "input": "sure", **owner}).decode() for owner in owners])
    for _ in range(2):
        await world.run(backlog, models)
        found = Counter((line["tenant"], line["task"]) for line in world.lines())
        assert found == Counter((owner.get("tenant"), owner.get("task", "triage")) for owner in owners)
    assert len(models.calls) == 3


async def test_the_file_a_job_stands_in_decides_nothing(world: World) -> None:
    """Origins differ between a file and a topic; answers, reasons and costs do not."""

    def decisions(out: str) -> list[Any]:
        names = ("job_id", "answer", "model", "escalated", "cost_picousd", "reference_cost_picousd", "reason")
        path = world.folder / out / OUTCOMES
        trees = map(orjson.loads, path.read_bytes().splitlines())
        return sorted([tree[name] for name in names] for tree in trees)

    await world.run(world.tickets(), Scripted(answers))
    await world.run(world.tickets("other.jsonl"), Scripted(answers), out="other", in_flight=2)
    assert decisions("out") == decisions("other")


async def test_what_was_read_before_a_file_breaks_off_is_finished(world: World) -> None:
    """Then the run fails with where it broke, and can be gone on with once the file is whole."""
    backlog = world.tickets()
    made, _ = core.runner(world.policy, Scripted(answers))

    def breaking() -> Iterator[Row | BadRow]:
        rows = backlog.rows()
        for _ in range(5):
            yield next(rows)
        raise InputError("backlog", "it breaks off after row 5")

    with OutcomeLog.open(world.folder / "out", policy=world.policy.digest, source="backlog.jsonl") as log:
        with pytest.raises(InputError, match="breaks off"):
            await run(made, breaking(), log, Bounds(in_flight=2), world, world.stop)
        assert len(log.finished) == 5


async def test_a_bug_stops_the_run_and_is_not_an_outcome(world: World) -> None:
    """Ours is not theirs: nothing is written for the job."""

    def broken(call: Call) -> Reply | Failure:
        if call.job_id == "j3":
            raise Bug("of the test's making")
        return answers(call)

    with pytest.raises(Bug):
        await world.run(world.tickets(), Scripted(broken), in_flight=1)
    assert [line["job_id"] for line in world.lines()] == ["j0", "j1", "j2"]
