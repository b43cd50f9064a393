"""Health: p95, outages, and the share of jobs that may be escalated as failed."""

from __future__ import annotations

import tracemalloc

import pytest

from sluiceway.core.health import FailedShare, Health, HealthBoard


def test_five_failures_in_a_row_take_a_model_out_for_ten_seconds() -> None:
    """One reply brings it back."""
    board = HealthBoard()
    for _ in range(4):
        board.observe("m", 1.0, failed=True, now=100.0)
    assert board.view()["m"].out_until == 0.0
    board.observe("m", 1.0, failed=True, now=100.0)
    assert board.view()["m"].out_until == 110.0
    board.observe("m", 1.0, failed=False, now=105.0)
    assert board.view()["m"].out_until == 0.0


def test_a_reply_between_failures_starts_the_count_anew() -> None:
    """In a row means in a row."""
    board = HealthBoard()
    for number in range(20):
        board.observe("m", 1.0, failed=number % 5 != 0, now=float(number))
    assert board.view()["m"].out_until == 0.0


def test_calls_that_one_endpoint_kept_until_their_time_out_do_not_take_the_model_out() -> None:
    """They end together, and another endpoint has answered since they began."""
    board = HealthBoard()
    board.observe("m", 0.02, failed=False, now=101.9)
    for _ in range(16):
        board.observe("m", 2.0, failed=True, now=102.0)
    assert board.view()["m"].out_until == 0.0
    for _ in range(5):
        board.observe("m", 2.0, failed=True, now=104.0)
    assert board.view()["m"].out_until == 114.0, "nothing has answered since these began"


def test_a_model_that_stays_down_stays_out() -> None:
    """Each failure after the fifth moves the end."""
    board = HealthBoard()
    for second in range(8):
        board.observe("m", 1.0, failed=True, now=float(second))
    assert board.view()["m"].out_until == 17.0


def test_p95_is_of_recent_replies() -> None:
    """Unknown until enough were seen; failures do not count."""
    board = HealthBoard()
    for _ in range(15):
        board.observe("m", 1.0, failed=False, now=0.0)
    assert board.view()["m"] == Health()
    board.observe("m", 1.0, failed=False, now=0.0)
    assert board.view()["m"].p95 == 1.0
    for number in range(128):
        board.observe("m", float(number), failed=False, now=0.0)
    assert board.view()["m"].p95 == pytest.approx(0.95 * 127, abs=1.0)


def test_a_tenth_of_a_minutes_jobs_may_fail_over_and_always_one() -> None:
    """The share is of the jobs of the last minute."""
    share = FailedShare(0.10)
    share.job(0.0)
    assert share.allows(0.0)
    share.failed(0.0)
    assert not share.allows(0.0)
    for _ in range(29):
        share.job(1.0)
    assert share.allows(1.0)
    share.failed(1.0)
    share.failed(1.0)
    assert not share.allows(1.0)
    assert share.allows(61.0)


def test_a_share_of_nothing_lets_nothing_over() -> None:
    """`failed_share: 0` means never."""
    share = FailedShare(0.0)
    share.job(0.0)
    assert not share.allows(0.0)


def test_a_minute_of_many_jobs_weighs_no_more_than_one_of_few() -> None:
    """Thousands a second for minutes are told apart by the second, and not each kept with its time."""
    share = FailedShare(0.10)
    tracemalloc.start()
    try:
        for number in range(100_000):
            share.job(number / 500)
        assert tracemalloc.get_traced_memory()[0] < 50_000  # bytes
    finally:
        tracemalloc.stop()
    for _ in range(2_900):
        share.failed(200.0)
    assert share.allows(200.0)
    assert not share.allows(259.0)
