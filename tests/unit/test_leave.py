"""When a wait leaves its worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.leave import NEVER, Leaving

TWO = Leaving((10.0, 60.0), crowd=3)


@pytest.mark.parametrize(
    ("wait", "remaining", "waiting", "delay"),
    [
        (60.0, 300.0, 0, 60.0),
        (3600.0, 7200.0, 0, 60.0),  # and again for what is left of it
        (59.9, 300.0, 0, None),
        (59.9, 300.0, 2, None),
        (59.9, 300.0, 3, 10.0),
        (10.0, 300.0, 3, 10.0),
        (0.5, 300.0, 9, 10.0),  # no delay is as short
        (0.5, 9.9, 9, None),
        (0.5, 10.0, 9, 10.0),
        (60.0, 60.0, 0, 60.0),
    ],
)
def test_a_long_wait_leaves_and_a_short_one_only_from_a_crowd(
    wait: float, remaining: float, waiting: int, delay: float | None
) -> None:
    """Through the longest delay, or the largest that it fills; never past its deadline."""
    assert TWO.through(wait, remaining, waiting) == delay


@given(wait=st.floats(0, 1e9), remaining=st.floats(0, 1e9), waiting=st.integers(0, 10**6))
def test_without_retry_topics_nothing_leaves(wait: float, remaining: float, waiting: int) -> None:
    assert NEVER.through(wait, remaining, waiting) is None


@given(
    delays=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=4).map(tuple),
    wait=st.floats(0, 1e7),
    remaining=st.floats(0, 1e7),
    waiting=st.integers(0, 10),
    crowd=st.integers(0, 10),
)
def test_no_deadline_ends_in_a_topic(
    delays: tuple[float, ...], wait: float, remaining: float, waiting: int, crowd: int
) -> None:
    """It leaves through a delay on offer or not at all; a longer one than its wait only where none is as short."""
    delay = Leaving(delays, crowd).through(wait, remaining, waiting)
    if delay is None:
        return
    assert delay in delays
    assert delay <= remaining
    assert delay <= wait or delay == min(delays)
    assert waiting >= crowd or wait >= max(delays)
