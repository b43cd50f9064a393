"""Laws of the window that outcome readers share with `effective`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.outcome import Result, Review, ReviewReason, Status, effective, outcome_id
from sluiceway.core.trail import Trail
from sluiceway.core.window import Window

_TRAIL = Trail("o", 0.0, 0.0)


def made(
    job: str, at: float, *, result: bool, turn: int = 0, task: str = "t", tenant: str | None = None
) -> Result | Review:
    identity = outcome_id(job, turn)
    if result:
        return Result(identity, job, turn, task, Status.ANSWERED, "p", at, _TRAIL, 0, 0.0, tenant=tenant)
    return Review(identity, job, turn, task, ReviewReason.UNSETTLED, "p", at, _TRAIL, 0, 0.0, {}, tenant=tenant)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.booleans()), max_size=60))
def test_the_last_admitted_outcome_of_a_job_is_its_effective_one(story: list[tuple[str, int, bool]]) -> None:
    """Whatever the order, rounds and duplicates: in a round a review and then a result pass, and the last counts."""
    outcomes = [made(job, float(number), result=result, turn=turn) for number, (job, turn, result) in enumerate(story)]
    window = Window(100)
    passed = [outcome for outcome in outcomes if window.admits(outcome)]
    for job in "abcd":
        mine = [outcome for outcome in passed if outcome.job_id == job]
        rounds = [outcome.round for outcome in mine]
        assert rounds == sorted(rounds), "a round that was overtaken never comes after its successor"
        for turn in set(rounds):
            kinds = [type(outcome) for outcome in mine if outcome.round == turn]
            assert kinds in ([Result], [Review], [Review, Result])
        assert (mine[-1] if mine else None) == effective(outcome for outcome in outcomes if outcome.job_id == job)


def test_jobs_of_one_id_are_each_their_tenants_and_their_tasks() -> None:
    """Tenants choose ids by themselves, and so do the publishers of two tasks: none loses an outcome to another."""
    window = Window(10)
    owners = [("triage", "a"), ("triage", "b"), ("tagging", "a"), ("triage", None)]
    for expected in (True, False):
        for task, tenant in owners:
            assert window.admits(made("17", 0.0, result=True, task=task, tenant=tenant)) is expected


def test_the_window_is_bounded_and_forgets_the_oldest() -> None:
    window = Window(2)
    assert [window.admits(made(job, 0.0, result=True)) for job in "abcba"] == [True, True, True, False, True]
    assert len(window) == 2
