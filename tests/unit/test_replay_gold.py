"""Held against gold: ten thresholds that say what the recorded attempts say, and `unknown` where nobody knows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import core
from tests.support.core import Scripted, reply

from sluiceway.archive.backlog import Backlog
from sluiceway.archive.outcomes import OutcomeLog
from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.errors import InputError
from sluiceway.core.policy import Policy
from sluiceway.replay import gold
from sluiceway.replay.gold import THRESHOLDS, Held, Judged, points
from sluiceway.replay.run import Bounds, run

JUDGED = st.builds(
    Judged,
    score=st.none() | st.floats(0, 1),
    cheap_right=st.booleans(),
    cheap_cost=st.integers(0, 10**9),
    reference_right=st.none() | st.booleans(),
    reference_cost=st.integers(0, 10**10),
)


@settings(deadline=None)
@given(st.lists(JUDGED, min_size=1, max_size=60), st.none() | st.floats(0, 1))
def test_ten_thresholds_that_rise_and_escalate_more(judged: list[Judged], own: float | None) -> None:
    """Ten different ones, the policy's among them; a higher one accepts no more, and each point is what it counts."""
    found = points(judged, own)
    lines = [point.threshold for point in found]
    assert len(set(lines)) == len(lines) == THRESHOLDS
    assert lines == sorted(lines)
    assert [point.threshold for point in found if point.policy] == ([] if own is None else [own])
    assert [point.escalated for point in found] == sorted(point.escalated for point in found)
    for point in found:
        accepted = [job for job in judged if job.score is not None and job.score >= point.threshold]
        unknown = [job for job in judged if job not in accepted and job.reference_right is None]
        assert point.escalated == pytest.approx(1 - len(accepted) / len(judged))
        assert point.unknown == pytest.approx(len(unknown) / len(judged))
        assert (point.accuracy is None) == (len(unknown) == len(judged))


def test_no_jobs_make_no_points() -> None:
    """Nothing is claimed of nothing."""
    assert points([], 0.5) == ()


@pytest.mark.parametrize(
    ("task", "written", "same", "other"),
    [
        ({}, "billing", {"label": "billing"}, {"label": "login"}),
        ({}, " billing ", {"label": "billing"}, {"label": "other"}),
        (
            {"labels": None, "tags": ["oil", "trade"]},
            "trade; oil",
            {"tags": ["oil", "trade"]},
            {"tags": ["oil"]},
        ),
        ({"labels": None, "tags": ["oil", "trade"]}, '["oil"]', {"tags": ["oil"]}, {"tags": []}),
        (
            {"labels": None, "output": "s.json", "agree_on": ["sum"], "gate": {"score": "none"}},
            '{"sum": 3, "note": "x"}',
            {"sum": 3, "note": "y"},
            {"sum": 4, "note": "x"},
        ),
    ],
)
def test_a_gold_cell_is_compared_as_the_task_compares(
    task: dict[str, Any], written: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    """A label, tags in any order, the fields of agree_on."""
    schema = '{"type":"object","properties":{"sum":{"type":"integer"},"note":{"type":"string"}}}'
    plan = core.plan(task, files={"s.json": schema})
    wanted = gold.gold_answer(plan, written)
    assert plan.reader.compare(same) == wanted
    assert plan.reader.compare(other) != wanted


ROWS = ("text,label", "one,billing", "doubt two,login", "three,login", "blind,refund", "no gold,")


def answers(call: Call) -> Reply | Failure:
    """Cheap says billing, surely but where it doubts; the frontier says login; of `blind` both give no answer."""
    if "blind" in call.request.text:
        return Reply("?", core.USAGE)
    if call.model.name == "cheap":
        return reply("billing", 0.3 if "doubt" in call.request.text else 0.99)
    return reply("login")


def held(
    folder: Path, policy: Policy, models: Scripted, rows: str = "\n".join(ROWS), name: str = "a.csv"
) -> list[Held]:
    """A replay of these rows, held against gold."""
    (folder / name).write_text(rows)
    backlog = Backlog(str(folder / name), "triage")
    runner, _ = core.runner(policy, models)

    class Nobody:
        def done(self, *_: object) -> None: ...

    async def both() -> list[Held]:
        with OutcomeLog.open(folder / "out", policy=policy.digest, source=backlog.name) as log:
            await run(runner, backlog.rows(), log, Bounds(), Nobody(), asyncio.Event())
            return await gold.hold(backlog, "label", runner.plans, models, log.lines())

    return asyncio.run(both())


def test_a_reference_that_was_never_asked_is_unknown(tmp_path: Path) -> None:
    """A real model is not paid to fill in a table; a job without any answer is wrong, not left out."""
    models = Scripted(answers)
    (one,) = held(tmp_path, core.policy(), models)
    assert (one.gold, one.answered, one.right, one.evaluated, one.left_out) == (4, 3, 2, 0, 0)
    by_threshold = {point.threshold: point for point in one.points}
    assert by_threshold[0.0].accuracy == pytest.approx(1 / 4)
    assert by_threshold[0.85].accuracy == pytest.approx(2 / 4)
    assert by_threshold[0.85].policy
    assert one.reference_alone is not None
    assert one.reference_alone.unknown == pytest.approx(2 / 4)
    assert len([call for call in models.calls if call.model.name == "frontier"]) == 2


def test_each_row_is_held_against_its_own_outcome(tmp_path: Path) -> None:
    """Also where tenants share an id: the answer of one is not taken for the other's."""
    rows = (
        '{"id": "17", "tenant": "a", "input": "one", "label": "billing"}\n'
        '{"id": "17", "tenant": "b", "input": "doubt two", "label": "login"}\n'
    )
    (one,) = held(tmp_path, core.policy(), Scripted(answers), rows, "a.jsonl")
    assert (one.gold, one.answered, one.right) == (2, 2, 2)


def test_a_recorded_reference_is_read_for_the_table_alone(tmp_path: Path) -> None:
    """It costs nothing, so nothing is unknown; the ledger does not see it."""
    (tmp_path / "f.csv").write_text("text,frontier\n")
    recorded = {"frontier": {"provider": None, "api": "recorded", "file": "f.csv", "price": {"output_mtok": 1}}}
    policy = core.policy(models=recorded)
    models = Scripted(answers)
    (one,) = held(tmp_path, policy, models)
    assert one.evaluated == 2
    assert all(point.unknown == 0 for point in one.points)
    assert one.reference_alone is not None
    assert one.reference_alone.accuracy == pytest.approx(2 / 4)


def test_a_column_that_is_not_there_is_told_before_any_call(tmp_path: Path) -> None:
    """With those there are."""
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    backlog = Backlog(str(tmp_path / "a.csv"), "triage")
    gold.require(backlog, "label")
    with pytest.raises(InputError, match="one of text, label"):
        gold.require(backlog, "nope")
