"""Laws of the window that outcome readers share with `effective`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.outcome import Result, Review, ReviewReason, Status, effective, outcome_id
from sluiceway.core.trail import Trail
from sluiceway.core.window import Window

_TRAIL = Trail("o", 0.0, 0.0)


def made(job: str, at: float, *, result: bool) -> Result | Review:
    identity = outcome_id(job, 0)
    if result:
        return Result(identity, job, 0, "t", Status.ANSWERED, "p", at, _TRAIL, 0, 0.0)
    return Review(identity, job, 0, "t", ReviewReason.UNSETTLED, "p", at, _TRAIL, 0, 0.0, {})


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_the_last_admitted_outcome_of_a_job_is_its_effective_one(story: list[tuple[str, bool]]) -> None:
    """Whatever the order and the duplicates: at most a review and then a result pass, and the last is what counts."""
    outcomes = [made(job, float(number), result=result) for number, (job, result) in enumerate(story)]
    window = Window(100)
    passed = [outcome for outcome in outcomes if window.admits(outcome)]
    for job in "abcd":
        mine = [outcome for outcome in passed if outcome.job_id == job]
        assert [type(outcome) for outcome in mine] in ([], [Result], [Review], [Review, Result])
        assert (mine[-1] if mine else None) == effective(outcome for outcome in outcomes if outcome.job_id == job)


def test_the_window_is_bounded_and_forgets_the_oldest() -> None:
    window = Window(2)
    assert [window.admits(made(job, 0.0, result=True)) for job in "abcba"] == [True, True, True, False, True]
    assert len(window) == 2
