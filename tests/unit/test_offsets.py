"""Laws of the offset ledger and its commit text, on cases small enough to read."""

from __future__ import annotations

import pytest

from sluiceway.core.offsets import METADATA_LIMIT, SPAN_LIMIT, OffsetLedger, decode_finished, encode_finished


def test_the_watermark_is_the_lowest_unsettled_offset() -> None:
    ledger = OffsetLedger(31)
    for offset in (31, 32, 33):
        assert ledger.take(offset)
    assert ledger.settle(32)
    assert (ledger.watermark, ledger.finished()) == (31, ((32, 33),))
    assert ledger.settle(31)
    assert (ledger.watermark, ledger.finished()) == (33, ())


def test_with_nothing_open_the_watermark_is_the_fetch_position() -> None:
    """A transaction marker after the last record must not leave a lag of one for ever."""
    ledger = OffsetLedger(5)
    ledger.take(5)
    ledger.settle(5)
    ledger.reach(8)
    assert ledger.watermark == 8


def test_a_gap_in_the_offsets_is_free() -> None:
    ledger = OffsetLedger(0)
    ledger.take(0)
    ledger.take(100)
    ledger.settle(0)
    assert ledger.watermark == 100
    assert ledger.settle(100)
    assert ledger.watermark == 101


def test_settling_twice_or_settling_what_was_never_taken_changes_nothing() -> None:
    ledger = OffsetLedger(0)
    ledger.take(0)
    ledger.take(2)
    assert not ledger.settle(1)
    assert not ledger.settle(7)
    assert ledger.settle(0)
    assert not ledger.settle(0)
    assert (ledger.watermark, ledger.open) == (2, 1)


def test_what_an_earlier_epoch_finished_is_not_taken_again() -> None:
    ledger = OffsetLedger(10, ((11, 13), (15, 16)))
    assert [offset for offset in range(10, 18) if ledger.take(offset)] == [10, 13, 14, 16, 17]


def test_restored_ranges_that_are_not_reached_yet_stay_in_the_next_commit() -> None:
    """Two crashes in a row: the second restart must still know what the first epoch finished far above."""
    ledger = OffsetLedger(10, ((11, 13), (15, 18)))
    ledger.take(10)
    assert ledger.finished() == ((11, 13), (15, 18))
    ledger.take(11)
    assert ledger.finished() == ((11, 13), (15, 18))
    ledger.settle(10)
    assert (ledger.watermark, ledger.finished()) == (12, ((12, 13), (15, 18)))


@pytest.mark.parametrize("pattern", ["alternating", "random", "solid", "sparse"])
def test_a_full_span_always_fits_the_commit_text(pattern: str) -> None:
    import random

    dice = random.Random(7)
    keep = {
        "alternating": lambda o: o % 2 == 0,
        "random": lambda _: dice.random() < 0.5,
        "solid": lambda _: True,
        "sparse": lambda o: o % 997 == 0,
    }[pattern]
    ledger = OffsetLedger(10**9)
    for offset in range(10**9, 10**9 + SPAN_LIMIT):
        ledger.take(offset)
    for offset in range(10**9 + 1, 10**9 + SPAN_LIMIT):
        if keep(offset):
            ledger.settle(offset)
    text, left_out = encode_finished(ledger.watermark, ledger.finished())
    assert len(text) <= METADATA_LIMIT
    assert left_out == 0
    assert decode_finished(ledger.watermark, text) == ledger.finished()


def test_a_text_over_the_limit_leaves_out_the_highest_ranges() -> None:
    ranges = tuple((i * i + 1, i * i + 2) for i in range(1, 400))
    text, left_out = encode_finished(1, ranges, limit=300)
    assert len(text) <= 300
    assert 0 < left_out < len(ranges)
    assert decode_finished(1, text) == ranges[: len(ranges) - left_out]


def test_a_text_for_another_watermark_is_refused() -> None:
    """An operator who resets a group's offset by hand must not have it cut by an old map."""
    text, _ = encode_finished(10, ((12, 14),))
    assert decode_finished(10, text) == ((12, 14),)
    assert decode_finished(9, text) is None


@pytest.mark.parametrize("text", ["sw1.", "sw1.AAAA", "sw1.!!!", "sw9.AAAAAAAA", "somebody else's", "sw1.AAAAAAAAAAAA"])
def test_a_foreign_or_damaged_text_is_refused_not_guessed(text: str) -> None:
    assert decode_finished(0, text) is None


def test_no_text_means_nothing_was_finished_above() -> None:
    assert decode_finished(3, "") == ()
    assert decode_finished(3, None) == ()
