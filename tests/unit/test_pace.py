"""The pace alone: what a refusal teaches depends on how dense the calls before it were."""

from __future__ import annotations

import pytest

from sluiceway.core.pace import Pace


def test_a_refusal_at_a_low_demand_is_soon_forgotten() -> None:
    """A call a second was what was asked for, not what was allowed: a burst soon after it is not held to that."""
    pace = Pace()
    for second in range(30):
        pace.accepted(pace.sent(second), second + 0.3)
    pace.refused(pace.sent(30.0), 30.1)
    assert pace.wait(30.1) > 0
    assert pace.wait(33.0) == 0.0
    assert not pace.active


def test_a_refusal_in_a_dense_run_of_calls_is_remembered() -> None:
    pace = Pace()
    for tenth in range(300):
        pace.accepted(pace.sent(tenth / 10), tenth / 10 + 0.3)
    pace.refused(pace.sent(30.0), 30.1)
    pace.wait(60.0)
    assert pace.active
    assert 9.0 <= pace.rate(30.1) < pace.rate(60.0) < 14.0


@pytest.mark.parametrize("allowed", [1.0, 2.0, 4.0])
def test_a_low_limit_that_nobody_tells_is_learned_by_being_met_again_and_again(allowed: float) -> None:
    """Calls that always wait, against a bucket of five: most of the limit is used, few calls are refused.

    Stuck in a rise and a cut a call, a third of them were.
    """
    pace, now, level, filled = Pace(), 0.0, 5.0, 0.0
    counts = {True: 0, False: 0}
    while now < 900.0:
        wait = pace.wait(now)
        if wait > 0:
            now += wait
            continue
        level, filled = min(5.0, level + allowed * (now - filled)), now
        sent, taken = pace.sent(now), level >= 1.0
        level -= taken
        now += 0.01
        if taken:
            pace.accepted(sent, now)
        else:
            pace.refused(sent, now)
        if now > 120.0:
            counts[taken] += 1
    assert counts[True] >= 0.85 * allowed * 780.0
    assert counts[False] <= 0.12 * counts[True]
