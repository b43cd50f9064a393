"""Laws of one role's partitions, on cases small enough to read. Time is a number; nothing runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from sluiceway.core.offsets import decode_finished
from sluiceway.core.stream import Commit, Limits, Order, Partition, Pause, Stream, Taken

P0, P1, P2 = (Partition("jobs", number) for number in range(3))
SMALL = Limits(jobs=4, queue=4, bytes=10_000, span=20, commit_interval=1.0, commit_count=1000)


@dataclass(frozen=True)
class Rec:
    offset: int
    key: bytes | None = None
    value: bytes | None = b"v"
    headers: tuple[tuple[str, bytes], ...] = ()


def opened(limits: Limits, *partitions: Partition, start: int = 0) -> Stream:
    stream = Stream(limits)
    for partition in partitions or (P0,):
        stream.assign(partition, start, "", start, now=0.0)
    return stream


def feed(stream: Stream, partition: Partition, *records: Rec | int) -> int:
    recs = [Rec(record) if isinstance(record, int) else record for record in records]
    epoch = stream.epoch(partition)
    assert epoch is not None
    return stream.fetched(partition, epoch, recs, recs[-1].offset + 1, now=0.0)


def offsets(jobs: list[Taken]) -> list[int]:
    return [job.record.offset for job in jobs]


def test_a_job_of_an_ended_epoch_changes_nothing() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1)
    late, _ = stream.start(0.0)
    stream.revoke([P0])
    stream.assign(P0, 0, "", 0, now=1.0)
    feed(stream, P0, 0, 1)
    assert not stream.settle(late, 2.0)
    assert stream.stats(2.0)[0].watermark == 0
    assert stream.running == 0


def test_a_job_that_is_handed_over_makes_room_for_another_and_stays_open() -> None:
    """Until the broker's ack it is open, and not more wait for their acks than may run."""
    stream = opened(replace(SMALL, queue=20))
    feed(stream, P0, *range(12))
    first = stream.start(0.0)
    assert [stream.hand_over(job) for job in first] == [True] * 4
    assert not stream.hand_over(first[0])
    second = stream.start(0.0)
    assert (offsets(second), stream.running, stream.handed) == ([4, 5, 6, 7], 8, 4)
    for job in second:
        stream.hand_over(job)
    assert stream.start(0.0) == []  # eight wait for acks, and that is all there may be
    assert stream.stats(0.0)[0].watermark == 0
    assert stream.settle(first[0], 1.0)
    assert offsets(stream.start(1.0)) == [8]
    stream.abandon(first[1])
    assert (stream.running, stream.handed) == (7, 6)
    stream.revoke([P0])
    assert (stream.running, stream.handed, stream.bytes) == (0, 0, 0)
    assert not stream.hand_over(second[0])


def test_nothing_of_a_partition_is_taken_before_its_first_commit() -> None:
    """A group that begins at the latest would else skip what was taken when its process dies; others flow meanwhile."""
    stream = opened(SMALL, P1)
    woken: list[None] = []
    stream.wake = lambda: woken.append(None)
    stream.assign(P0, None, "", 100, 0.0)
    assert [want.partition for want in stream.wanted()] == [P1]
    for acked in (False, True):
        commits = stream.commit_due(1.0)
        assert [(commit.partition, commit.offset) for commit in commits] == [(P0, 100)]
        assert [want.partition for want in stream.wanted()] == [P1]
        if acked:
            assert not woken
            stream.committed(commits, 1.0)
        else:
            stream.commit_failed(0.5)
    assert woken
    assert {want.partition for want in stream.wanted()} == {P0, P1}


def test_jobs_start_a_burst_at_a_time() -> None:
    """What starts together goes on in step; the next burst starts when the driver asks again."""
    stream = opened(Limits(jobs=10, burst=4, queue=20))
    feed(stream, P0, *range(12))
    assert [len(stream.start(0.0)) for _ in range(4)] == [4, 4, 2, 0]


@pytest.mark.parametrize("order", [Order.KEY, Order.PARTITION])
def test_what_waits_for_its_turn_waits_for_the_ack(order: Order) -> None:
    """In order, the next begins when the one before it is on its topic, not when it is on its way there."""
    stream = opened(replace(SMALL, order=order))
    feed(stream, P0, *(Rec(number, key=b"k") for number in range(3)))
    (first,) = stream.start(0.0)
    stream.hand_over(first)
    assert stream.start(0.0) == []
    assert stream.settle(first, 1.0)
    assert offsets(stream.start(1.0)) == [1]


def test_a_batch_of_an_ended_epoch_is_dropped() -> None:
    stream = opened(SMALL)
    epoch = stream.epoch(P0)
    assert epoch is not None
    stream.revoke([P0])
    stream.assign(P0, 0, "", 0, now=0.0)
    assert stream.fetched(P0, epoch, [Rec(0)], 1, now=0.0) == 0
    assert stream.start(0.0) == []
    assert stream.stats(0.0)[0].position == 0


def test_nothing_is_wanted_beyond_the_limits_and_it_is_wanted_again_when_there_is_room() -> None:
    stream = opened(SMALL)
    (want,) = stream.wanted()
    assert want.records == 4
    feed(stream, P0, 0, 1, 2, 3)
    assert stream.wanted() == []
    started = stream.start(0.0)
    assert len(started) == 4
    feed(stream, P0, 4, 5, 6, 7)
    assert stream.wanted() == []
    assert stream.start(0.0) == []
    assert stream.pauses() == {Pause.JOBS: 1}
    for job in started:
        assert stream.settle(job, 1.0)
    assert offsets(stream.start(1.0)) == [4, 5, 6, 7]
    assert stream.wanted()[0].records == 4


def test_a_slow_head_pauses_its_partition_at_the_span_and_no_other() -> None:
    stream = opened(replace(SMALL, jobs=40, queue=40), P0, P1)
    for first in range(0, 20, 5):
        feed(stream, P0, *range(first, first + 5))
    slow, *others = stream.start(0.0)
    for job in others:
        stream.settle(job, 0.0)
    assert [want.partition for want in stream.wanted()] == [P1]
    assert stream.pauses()[Pause.SPAN] == 1
    stream.settle(slow, 1.0)
    assert {want.partition for want in stream.wanted()} == {P0, P1}


def test_bytes_in_flight_are_bounded() -> None:
    stream = opened(SMALL)
    feed(stream, P0, Rec(0, value=b"x" * 20_000))
    assert stream.wanted() == []
    (job,) = stream.start(0.0)
    assert stream.pauses()[Pause.BYTES] == 1
    stream.settle(job, 0.0)
    assert stream.wanted() != []
    assert stream.bytes == 0


def test_a_stuck_partition_leaves_room_to_the_others() -> None:
    stream = opened(replace(SMALL, jobs=12, queue=12, span=100), P0, P1, P2)
    for first in range(0, 30, 3):
        if P0 in [want.partition for want in stream.wanted()]:
            feed(stream, P0, *range(first, first + 3))
        stream.start(0.0)
    assert 0 < stream.running < 12
    feed(stream, P1, 0, 1)
    assert {job.held.partition for job in stream.start(0.0)} == {P1}


def test_a_drain_starts_nothing_and_forgets_only_what_was_not_started() -> None:
    stream = opened(replace(SMALL, jobs=1))
    feed(stream, P0, 0, 1, 2)
    (job,) = stream.start(0.0)
    stream.drain([P0])
    stream.settle(job, 0.0)
    assert stream.start(0.0) == []
    assert stream.wanted() == []
    (commit,) = stream.commit_due(5.0, force=True)
    assert commit.offset == 1
    assert (stream.queued, stream.bytes, stream.running) == (0, 0, 0)


def test_after_a_drain_of_everything_a_new_assignment_starts_nothing_either() -> None:
    stream = opened(SMALL)
    stream.drain()
    stream.assign(P1, 0, "", 0, now=0.0)
    assert stream.wanted() == []


def test_the_commit_is_the_watermark_with_the_map_of_what_is_finished_above() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1, 2, 3)
    jobs = stream.start(0.0)
    for job in jobs[1:3]:
        stream.settle(job, 0.0)
    (commit,) = stream.commit_due(1.0)
    assert commit.offset == 0
    assert decode_finished(0, commit.metadata) == ((1, 3),)


def test_a_restart_repeats_only_what_was_unfinished() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1, 2, 3)
    for job in stream.start(0.0)[1:3]:
        stream.settle(job, 0.0)
    (commit,) = stream.commit_due(1.0)
    heir = Stream(SMALL)
    _, readable = heir.assign(P0, commit.offset, commit.metadata, commit.offset, now=2.0)
    assert readable
    feed(heir, P0, 0, 1, 2, 3)
    assert offsets(heir.start(2.0)) == [0, 3]


def test_an_unreadable_map_repeats_all_and_says_so() -> None:
    stream = Stream(SMALL)
    _, readable = stream.assign(P0, 0, "not ours", 0, now=0.0)
    assert not readable
    feed(stream, P0, 0, 1)
    assert offsets(stream.start(0.0)) == [0, 1]


def test_one_commit_at_a_time_and_none_without_a_change() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1)
    first, second = stream.start(0.0)
    stream.settle(first, 0.0)
    commits = stream.commit_due(1.0)
    assert [commit.offset for commit in commits] == [1]
    stream.settle(second, 1.0)
    assert stream.commit_due(9.0, force=True) == []
    stream.committed(commits, 9.0)
    assert [commit.offset for commit in stream.commit_due(10.0)] == [2]
    stream.committed([], 10.0)


def test_what_settles_while_a_commit_is_under_way_is_in_the_next_one() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1)
    first, second = stream.start(0.0)
    stream.settle(first, 0.0)
    commits = stream.commit_due(1.0)
    stream.settle(second, 1.0)
    stream.committed(commits, 1.1)
    assert [commit.offset for commit in stream.commit_due(2.1)] == [2]


def test_a_commit_comes_on_time_or_on_count_and_after_a_failure_not_before_its_pause() -> None:
    stream = opened(replace(SMALL, commit_interval=10.0, commit_count=2, jobs=9, queue=9))
    commits = stream.commit_due(0.0, force=True)
    assert commits == []
    feed(stream, P0, 0, 1, 2)
    jobs = stream.start(0.0)
    stream.settle(jobs[0], 0.0)
    assert stream.commit_due(0.5) == []
    stream.settle(jobs[1], 0.0)
    assert [commit.offset for commit in stream.commit_due(0.6)] == [2]
    stream.commit_failed(0.7, retry_after=5.0)
    assert stream.commit_due(5.6) == []
    assert [commit.offset for commit in stream.commit_due(5.7)] == [2]


def test_a_group_without_an_offset_gets_one_at_once() -> None:
    """Else a first run that dies early leaves a topic with records and a group that has never been there."""
    stream = Stream(SMALL)
    stream.assign(P0, None, None, 7, now=0.0)
    (commit,) = stream.commit_due(0.0)
    assert (commit.offset, commit.metadata) == (7, "")


def test_with_nothing_in_flight_the_fetch_position_is_committed() -> None:
    stream = opened(SMALL)
    epoch = stream.epoch(P0)
    assert epoch is not None
    assert stream.moved(P0, epoch, 3)
    stream.fetched(P0, epoch, [], 3, now=0.0)
    assert [commit.offset for commit in stream.commit_due(1.0)] == [3]
    assert not stream.moved(P0, epoch, 3)


def test_an_ack_for_an_ended_epoch_does_not_mark_the_new_one_as_committed() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0)
    stream.settle(stream.start(0.0)[0], 0.0)
    commits = stream.commit_due(1.0)
    stream.revoke([P0])
    stream.assign(P0, 0, "", 0, now=1.0)
    feed(stream, P0, 0)
    stream.settle(stream.start(1.0)[0], 1.0)
    stream.committed(commits, 1.0)
    assert [commit.offset for commit in stream.commit_due(2.0)] == [1]


def test_a_nearly_full_map_pauses_but_never_for_ever() -> None:
    stream = opened(replace(SMALL, jobs=900, burst=900, queue=900, span=900, metadata_chars=60, bytes=10**6))
    dice = random.Random(11)
    feed(stream, P0, *range(800))
    jobs = stream.start(0.0)
    early = {job for job in jobs[1:] if dice.random() < 0.5}
    for job in early:
        stream.settle(job, 0.0)
    (commit,) = stream.commit_due(1.0)
    assert len(commit.metadata) <= 60
    assert stream.pauses()[Pause.MAP] == 1
    assert stream.wanted() == []
    stream.committed([commit], 1.0)
    for job in set(jobs) - early:
        stream.settle(job, 1.0)
    assert stream.wanted() != []


def test_order_by_key_runs_the_jobs_of_one_key_one_after_another() -> None:
    stream = opened(replace(SMALL, order=Order.KEY, queue=20, jobs=20))
    feed(stream, P0, Rec(0, b"a"), Rec(1, b"a"), Rec(2, b"b"), Rec(3, None), Rec(4, None), Rec(5, b"a"))
    first = stream.start(0.0)
    assert offsets(first) == [0, 2, 3, 4]
    stream.settle(first[1], 0.0)
    assert stream.start(0.0) == []
    stream.settle(first[0], 0.0)
    (second,) = stream.start(0.0)
    assert second.record.offset == 1
    stream.settle(second, 0.0)
    assert offsets(stream.start(0.0)) == [5]


def test_order_by_partition_runs_one_job_a_partition() -> None:
    stream = opened(replace(SMALL, order=Order.PARTITION), P0, P1)
    feed(stream, P0, 0, 1)
    feed(stream, P1, 0, 1)
    jobs = stream.start(0.0)
    assert sorted(job.held.partition for job in jobs) == [P0, P1]
    assert stream.start(0.0) == []
    stream.settle(jobs[0], 0.0)
    assert offsets(stream.start(0.0)) == [1]


def test_a_limit_ends_the_intake_and_is_exhausted_when_all_of_it_is_settled() -> None:
    stream = opened(replace(SMALL, limit=3))
    assert stream.wanted()[0].records == 3
    feed(stream, P0, 0, 1, 2)
    jobs = stream.start(0.0)
    assert len(jobs) == 3
    assert stream.wanted() == []
    assert not stream.exhausted
    for job in jobs:
        stream.settle(job, 0.0)
    assert stream.exhausted
    assert stream.wanted() == []


def test_reasons_to_hold_a_partition_are_counted_apart() -> None:
    stream = opened(SMALL)
    stream.hold(P0, "flood")
    stream.hold(P0, "operator")
    stream.release(P0, "flood")
    assert stream.wanted() == []
    stream.release(P0, "operator")
    assert stream.wanted() != []


def test_a_refused_metadata_size_is_halved_down_to_none() -> None:
    stream = opened(SMALL)
    feed(stream, P0, 0, 1)
    stream.settle(stream.start(0.0)[1], 0.0)
    sizes = [stream.shrink_metadata() for _ in range(13)]
    assert sizes[-1] == 0
    (commit,) = stream.commit_due(1.0)
    assert commit == Commit(P0, commit.epoch, 0, "", commit.changes)


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"span": 10**6}, {"commit_interval": 0.0}])
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"span|positive"):
        replace(SMALL, **wrong)
