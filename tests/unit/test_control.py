"""The records of the control topic, and which partitions they hold."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core import control
from sluiceway.core.control import Claim, Hold, Lease, Record, Resume, Spend, held, hold_at, hold_key, place, resume_key
from sluiceway.core.errors import InputError
from sluiceway.core.held import Partition

PLACE = Partition("sluiceway.jobs", 3)
RECORDS: dict[str, Record] = {
    hold_key("g", PLACE): Hold(5.0, "flood", "100 of 120", "w-1"),
    resume_key("g", PLACE): Resume(4.0),
    "lease/w-1": Lease(1.0, 2, 3.0, 15.0, ("openai/m",), {"w-2": 0.5}),
    "spend/w-1": Spend(1.0, 2, {"t": Claim("2026-11-22", 3, 4)}),
}


@pytest.mark.parametrize("key", list(RECORDS))
def test_a_record_is_read_as_it_was_written(key: str) -> None:
    """With its version, and its kind as its key says."""
    written = control.encode(RECORDS[key])
    assert b'"schema":"sluiceway.control/1"' in written
    assert control.decode(key, written) == RECORDS[key]


@given(st.sampled_from([*RECORDS, "policy/x", "", "hold", "lease/"]), st.binary() | st.text().map(str.encode))
def test_garbage_is_a_record_or_input_error_and_nothing_else(key: str, value: bytes) -> None:
    """Whoever may write to the topic may write anything."""
    with suppress(InputError):
        record = control.decode(key, value)
        assert record is None or record.kind == control.kind_of(key)


GROUPS = st.sampled_from(["sluiceway-jobs", "a/b", "a", ""])


@given(GROUPS, st.sampled_from(["t", "a.b-c"]), st.integers(0, 10**6))
def test_a_key_names_its_group_and_partition(group: str, topic: str, number: int) -> None:
    """A slash in a group's name included: a topic's name has none."""
    partition = Partition(topic, number)
    assert place(hold_key(group, partition)) == place(resume_key(group, partition)) == (group, partition)
    assert place(f"lease/{group}/{topic}/{number}") is None


@pytest.mark.parametrize("key", ["hold", "hold/g/t", "hold/g/t/x", "hold/g/t/-1", "hold/g/t/"])
def test_a_key_that_names_no_partition_holds_none(key: str) -> None:
    """It is skipped."""
    assert place(key) is None
    assert held({key: Hold(1.0, "flood", "", "w")}, "g") == {}


TIMES = st.floats(0, 4e9)


@given(st.dictionaries(GROUPS, st.tuples(TIMES, st.none() | TIMES)))
def test_a_partition_is_held_while_its_hold_is_newer_than_its_resume(
    times: dict[str, tuple[float, float | None]],
) -> None:
    """Each group's by itself."""
    records: dict[str, Record] = {}
    for group, (hold, resume) in times.items():
        records[hold_key(group, PLACE)] = Hold(hold, "flood", "", "w")
        if resume is not None:
            records[resume_key(group, PLACE)] = Resume(resume)
    for group, (hold, resume) in times.items():
        assert set(held(records, group)) == ({PLACE} if resume is None or hold > resume else set())


@given(TIMES, TIMES, TIMES)
def test_no_clock_can_make_a_resume_last_or_a_new_hold_fail(first: float, second: float, third: float) -> None:
    """A resume ends the hold that was there and no later one, whatever the clocks of both workers say."""
    records: dict[str, Record] = {hold_key("g", PLACE): Hold(first, "flood", "", "w")}
    for now in (second, third):
        hold = held(records, "g")[PLACE]
        resume = Resume(hold.at)
        records[resume_key("g", PLACE)] = resume
        assert held(records, "g") == {}
        records[hold_key("g", PLACE)] = Hold(hold_at(now, resume), "flood", "", "another")
        assert held(records, "g")
