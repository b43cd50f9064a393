"""Outcomes: one stable id a round, one that counts, and records that read as they were written."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.support.core import climb, job, plan, reply

from sluiceway.core import outcome as outcomes
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import DeadLetter, DeadLetterReason, Escalation, Result, Review, effective, outcome_id

RESULT = climb(plan(), job(), lambda _call: reply()).record
ESCALATION = climb(plan(), job(), lambda _call: reply(p=0.3)).record
REVIEW = climb(plan({"review": {"always": "tokens > 0"}}), job(), lambda _call: reply()).record
DEAD = DeadLetter(DeadLetterReason.INVALID, "detail", "0" * 64)


def test_an_outcome_has_one_id_a_round() -> None:
    """The id is made of job id and round, so that a redo of the same round is known as one."""
    assert isinstance(RESULT, Result)
    assert RESULT.outcome_id == outcome_id("j1", 0) == outcome_id("j1", 0)
    assert len({outcome_id("j1", 0), outcome_id("j1", 1), outcome_id("j10", 0), outcome_id("j", 10)}) == 4


@pytest.mark.parametrize("record", [RESULT, ESCALATION, REVIEW], ids=lambda record: type(record).__name__)
def test_records_read_as_they_were_written(record: Result | Review | Escalation) -> None:
    """Encode and decode are inverse."""
    assert outcomes.decode(type(record), outcomes.encode(record)) == record


def test_a_newer_minor_version_is_read() -> None:
    """A field that this version does not know passes."""
    value = outcomes.encode(RESULT).replace(b"{", b'{"invented_later":1,', 1)
    assert outcomes.decode(Result, value) == RESULT


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"\xff", b'{"schema":"sluiceway.result/2"}', b"[" * 5000])
def test_what_is_no_record_is_an_input_error(value: bytes) -> None:
    """Whatever is read from a topic is a record or the publisher's fault."""
    with pytest.raises(InputError):
        outcomes.decode(Result, value)


def _round(number: int, **facts: object) -> Result:
    assert isinstance(RESULT, Result)
    return replace(RESULT, round=number, **facts)  # type: ignore[arg-type]  # names of its own fields


def test_the_effective_outcome_is_of_the_highest_round() -> None:
    """Only an explicit human act opens a round, and it counts over all before."""
    low, high = _round(0), DeadLetter(DeadLetterReason.CRASHES, "", "", round=1)
    assert effective([low, high]) is high
    assert effective([high, low]) is high


def test_within_a_round_results_go_before_reviews_before_dead_letters() -> None:
    """Whatever order they are read in."""
    assert isinstance(REVIEW, Review)
    for order in itertools.permutations([DEAD, REVIEW, RESULT]):
        assert effective([one for one in order if not isinstance(one, Escalation)]) is RESULT
    assert effective([DEAD, REVIEW]) is REVIEW
    assert effective([]) is None


def test_of_equals_the_earliest_counts() -> None:
    """A duplicate changes nothing."""
    first, second = _round(0, detail="first"), _round(0, detail="second")
    assert effective([first, second]) is first
