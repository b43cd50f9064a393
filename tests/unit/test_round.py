"""A job's round and id in headers: believed only where well-formed and in bounds, written as they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core import job as jobs
from sluiceway.core import round as rounds
from sluiceway.core.round import JOB_ID, MOST, ROUND, Stated, kept, stated, written


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256), st.integers(0, MOST))
def test_what_is_written_is_what_is_stated(job_id: str, number: int) -> None:
    assert stated((("trace", b"1"), *written(job_id, number))) == Stated(number, job_id)
    assert kept((("trace", b"1"), *written(job_id, number))) == (("trace", b"1"),)


@pytest.mark.parametrize(
    "content",
    [b"", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"1e3", b"1_0", b"0x1", b"\xd9\xa1", b"1000001", b"9" * 5000, None],
    ids=repr,
)
def test_a_round_that_is_no_number_in_bounds_is_not_stated(content: bytes | None) -> None:
    """What anybody may write can neither stop a worker nor open a round that no redrive can follow."""
    assert stated(((ROUND, content),)) == rounds.NOTHING


@pytest.mark.parametrize("content", [b"", b"\xff", b"x" * 257, None], ids=["empty", "no UTF-8", "long", "null"])
def test_an_id_that_no_job_could_have_is_not_stated(content: bytes | None) -> None:
    assert stated(((JOB_ID, content),)) == rounds.NOTHING


@given(st.lists(st.tuples(st.sampled_from([ROUND, JOB_ID, "other"]), st.none() | st.binary(max_size=300))))
def test_whatever_headers_hold_what_they_state_is_in_bounds(headers: list[tuple[str, bytes | None]]) -> None:
    said = stated(tuple(headers))
    assert 0 <= said.round <= MOST
    assert said.job_id is None or 1 <= len(said.job_id) <= 256


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_the_higher_round_counts(own: int, said: int) -> None:
    """A header opens a later round of a job, and never an earlier one than its JSON states."""
    value = b'{"id":"j","task":"t","input":"x","round":%d}' % own
    job = jobs.decode(value, origin="o", default_id="d", round=said)
    assert (job.id, job.round) == ("j", max(own, said))
