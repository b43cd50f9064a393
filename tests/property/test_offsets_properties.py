"""The ledger and its text against an oracle that remembers every offset: any order, a crash at every step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.offsets import OffsetLedger, decode_finished, encode_finished

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 5)),  # the next record is that far ahead
        st.tuples(st.just("settle"), st.integers(0, 50)),  # the n-th open one
        st.tuples(st.just("reach"), st.integers(1, 4)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=120,
)


@given(start=st.integers(0, 10**12), steps=STEPS)
@settings(max_examples=400, deadline=None)
def test_no_order_of_events_and_crashes_skips_or_repeats_a_settled_offset(
    start: int, steps: list[tuple[str, int]]
) -> None:
    """Oracle: the log of existing offsets and the set of the settled ones. Each commit is followed by its crash."""
    ledger = OffsetLedger(start)
    log: list[int] = []  # offsets that exist, rising
    end = start
    settled: set[int] = set()
    open_: list[int] = []
    for verb, number in steps:
        if verb == "take":
            unread = [offset for offset in log if offset >= ledger.position]
            if unread:
                offset = unread[0]
            else:
                offset = end + number - 1
                log.append(offset)
                end = offset + 1
            assert ledger.take(offset) == (offset not in settled)
            if offset not in settled:
                open_.append(offset)
        elif verb == "settle" and open_:
            offset = open_.pop(number % len(open_))
            settled.add(offset)
            assert ledger.settle(offset)
            assert not ledger.settle(offset)
        elif verb == "reach" and not any(offset >= ledger.position for offset in log):
            end += number
            ledger.reach(end)
        elif verb == "crash":
            text, left_out = encode_finished(ledger.watermark, ledger.finished())
            restored = decode_finished(ledger.watermark, text)
            assert left_out == 0
            assert restored == ledger.finished()
            ledger = OffsetLedger(ledger.watermark, restored or ())
            open_ = []
        # L4: everything that exists below the watermark is settled; nothing unsettled is called finished.
        assert all(offset in settled for offset in log if offset < ledger.watermark)
        assert ledger.watermark == min((*open_, ledger.position))
        done = {o for first, last in ledger.finished() for o in range(first, last)}
        assert not done & set(open_)
        assert all(o in done or o in open_ or o >= ledger.position for o in log if o >= ledger.watermark)
        assert all(o in settled for o in log if o in done)
        assert ledger.open == len(open_)


RANGES = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**4)), max_size=60)


@given(watermark=st.integers(0, 2**62), steps=RANGES, limit=st.integers(0, 500))
@settings(max_examples=300, deadline=None)
def test_the_text_reads_back_as_a_prefix_of_what_was_written(
    watermark: int, steps: list[tuple[int, int]], limit: int
) -> None:
    ranges, edge = [], watermark
    for gap, length in steps:
        ranges.append((edge + gap, edge + gap + length))
        edge += gap + length
    text, left_out = encode_finished(watermark, tuple(ranges), limit)
    assert len(text) <= limit
    assert decode_finished(watermark, text) == tuple(ranges[: len(ranges) - left_out])


@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=100).map(lambda b: "sw1." + b.hex())))
@settings(max_examples=300, deadline=None)
def test_any_garbage_is_refused_or_empty(text: str) -> None:
    assert decode_finished(0, text) in (None, ())
