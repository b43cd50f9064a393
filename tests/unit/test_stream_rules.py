"""Laws of what may start: due times of retry topics, turns between tenants, jobs that run alone, floods."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.flood import Flood, FloodGuard
from sluiceway.core.queue import Queue, Taken
from sluiceway.core.stream import FLOOD, Limits, Partition, Pause, Stream

P0, P1, LATER = Partition("jobs", 0), Partition("jobs", 1), Partition("retries", 0)
LIMITS = Limits(jobs=4, queue=100, span=100, flood=Flood(run=3, ratio=0.5, window=10))


@dataclass(frozen=True)
class Rec:
    offset: int
    timestamp: float = 0.0
    key: bytes | None = None
    value: bytes | None = b"v"
    headers: tuple[tuple[str, bytes], ...] = ()


def opened(stream: Stream, *partitions: Partition) -> Stream:
    for partition in partitions:
        stream.assign(partition, 0, "", 0, now=0.0)
    return stream


def feed(stream: Stream, partition: Partition, *recs: Rec, now: float = 0.0, wall: float = 0.0) -> None:
    epoch = stream.epoch(partition)
    assert epoch is not None
    assert stream.fetched(partition, epoch, recs, recs[-1].offset + 1, now, wall) == len(recs)


def offsets(jobs: list[Taken]) -> list[int]:
    return [job.record.offset for job in jobs]


# -- retry topics -----------------------------------------------------------------------------------------------


def test_a_job_of_a_retry_topic_starts_when_its_delay_is_over_and_not_before() -> None:
    stream = opened(Stream(LIMITS, {"retries": 60.0}), LATER)
    feed(stream, LATER, Rec(0, timestamp=1000.0), Rec(1, timestamp=1010.0), now=5.0, wall=1020.0)
    assert stream.next_due() == 45.0
    assert stream.start(44.9) == []
    assert offsets(stream.start(45.0)) == [0]
    assert stream.next_due() == 55.0
    assert offsets(stream.start(60.0)) == [1]


def test_a_publisher_whose_clock_is_ahead_makes_nobody_wait_longer_than_the_delay() -> None:
    stream = opened(Stream(LIMITS, {"retries": 60.0}), LATER)
    feed(stream, LATER, Rec(0, timestamp=99_999.0), now=5.0, wall=1000.0)
    assert stream.next_due() == 65.0


def test_empty_retry_partitions_take_no_share_of_what_may_run() -> None:
    """Two partitions of jobs fill all four places, however many retry partitions are held beside them."""
    retries = [Partition("retries", number) for number in range(12)]
    stream = opened(Stream(LIMITS, {"retries": 60.0}), P0, P1, *retries)
    for partition in (P0, P1):
        feed(stream, partition, *(Rec(n) for n in range(4)))
    assert len(stream.start(1.0)) == 4
    stream.revoke([P1, *retries])
    assert stream._share(LIMITS.jobs) == LIMITS.jobs


def test_what_waits_for_its_time_takes_no_room_from_others_and_holds_nothing_up() -> None:
    """A hundred thousand waiting jobs are a few taken ones: the rest stays in the topic."""
    stream = opened(Stream(LIMITS, {"retries": 60.0}), LATER, P0)
    (asked,) = [want.records for want in stream.wanted() if want.partition == LATER]
    assert asked <= 10
    feed(stream, LATER, *(Rec(n) for n in range(asked)))
    assert [want.partition for want in stream.wanted()] == [P0]
    feed(stream, P0, Rec(0), now=50.0)
    assert [job.held.partition for job in stream.start(50.0)] == [P0]
    (row,) = [row for row in stream.stats(50.0) if row.partition == LATER]
    assert row.watermark_age == 0.0


def test_a_job_that_waits_is_not_started_once_its_epoch_has_ended() -> None:
    stream = opened(Stream(LIMITS, {"retries": 60.0}), LATER)
    feed(stream, LATER, Rec(0))
    stream.revoke([LATER])
    assert stream.next_due() is None
    assert stream.start(100.0) == []


# -- tenants ----------------------------------------------------------------------------------------------------


def tenant(record: Rec) -> str:
    return (record.value or b"").decode()


def test_a_small_tenant_waits_for_its_turn_and_not_for_a_large_ones_backlog() -> None:
    stream = opened(Stream(LIMITS, tenant=tenant), P0)
    feed(stream, P0, *(Rec(n, value=b"large") for n in range(60)), Rec(60, value=b"small"))
    started = stream.start(0.0)
    assert Counter(tenant(job.record) for job in started) == {"large": 3, "small": 1}  # type: ignore[arg-type]  # ours


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=60), st.lists(st.integers(1, 9)))
def test_turns_lose_nobody_and_keep_each_tenants_order(tenants: list[bytes], portions: list[int]) -> None:
    stream = opened(Stream(LIMITS), P0)
    feed(stream, P0, Rec(0))
    held = stream.start(0.0)[0].held
    queue = Queue(tenant=tenant)
    for number, name in enumerate(tenants):
        queue.push(Taken(held, Rec(number, value=name), 1))
    popped: list[Taken] = []
    for portion in [*portions, len(tenants)]:
        popped += queue.pop(portion, 0.0)
    assert len(queue) == 0
    assert sorted(offsets(popped)) == list(range(len(tenants)))
    for name in set(tenants):
        mine = [job.record.offset for job in popped if job.record.value == name]
        assert mine == sorted(mine)


# -- alone ------------------------------------------------------------------------------------------------------


def test_a_suspect_runs_alone() -> None:
    """What runs is finished first, nothing starts beside it, and afterwards all goes on."""
    stream = opened(Stream(LIMITS, suspect=lambda record: record.offset == 1), P0)
    feed(stream, P0, *(Rec(n) for n in range(4)))
    feed(stream, P0, *(Rec(n) for n in range(4, 8)))
    beside = stream.start(0.0)
    assert offsets(beside) == [0, 2, 3]
    for job in beside:
        assert stream.start(0.0) == []
        assert stream.settle(job, 1.0)
    (suspect,) = stream.start(1.0)
    assert (suspect.record.offset, suspect.alone) == (1, True)
    assert stream.start(1.0) == []
    assert stream.settle(suspect, 2.0)
    assert offsets(stream.start(2.0)) == [4, 5, 6, 7]


def test_a_suspect_that_is_joined_by_its_running_call_blocks_nobody_afterwards() -> None:
    """The driver then settles the `Taken` of the earlier epoch, under the new one: seed 13952 of the simulation."""
    stream = opened(Stream(LIMITS, suspect=lambda record: record.offset == 0), P0)
    feed(stream, P0, Rec(0))
    (before,) = stream.start(0.0)
    stream.assign(P0, 0, "", 0, now=0.0)
    feed(stream, P0, Rec(0))
    (again,) = stream.start(0.0)
    before.held, before.size = again.held, again.size
    assert stream.settle(before, 1.0)
    feed(stream, P0, Rec(1))
    assert offsets(stream.start(1.0)) == [1]


def test_a_suspect_whose_partition_goes_blocks_nobody() -> None:
    stream = opened(Stream(LIMITS, suspect=lambda record: record.offset == 0), P0, P1)
    feed(stream, P0, Rec(0))
    (suspect,) = stream.start(0.0)
    assert suspect.alone
    stream.revoke([P0])
    feed(stream, P1, Rec(1))
    assert offsets(stream.start(0.0)) == [1]
    assert stream.running == 1


def test_a_suspect_that_never_had_its_turn_is_forgotten_with_its_partition() -> None:
    stream = opened(Stream(LIMITS, suspect=lambda record: record.value == b"bad"), P0, P1)
    feed(stream, P0, Rec(0), Rec(1, value=b"bad"))
    stream.start(0.0)
    stream.revoke([P0])
    assert (stream.queued, stream.running, stream.bytes) == (0, 0, 0)
    feed(stream, P1, Rec(0))
    assert offsets(stream.start(0.0)) == [0]


# -- floods -----------------------------------------------------------------------------------------------------


def test_a_run_of_dead_letters_holds_its_partition_alone_until_it_is_released() -> None:
    stream = opened(Stream(LIMITS), P0, P1)
    feed(stream, P0, *(Rec(n) for n in range(10)))
    feed(stream, P1, *(Rec(n) for n in range(10)))
    while not stream.floods:
        for job in stream.start(0.0):
            stream.settle(job, 0.0, dead=job.held.partition == P0)
    assert stream.floods == [P0] == stream.held(FLOOD)
    assert stream.pauses()[Pause.HELD] == 1
    while jobs := stream.start(0.0):
        assert {job.held.partition for job in jobs} == {P1}
        for job in jobs:
            stream.settle(job, 0.0)
    assert all(want.partition == P1 for want in stream.wanted())
    stream.release(P0, FLOOD)
    assert stream.start(0.0)


@given(st.lists(st.booleans(), max_size=60), st.integers(2, 12), st.integers(1, 20))
def test_a_flood_is_a_run_or_a_share_of_the_last_jobs(dead: list[bool], run: int, window: int) -> None:
    """Against the plain definition, counted anew at each job."""
    bounds = Flood(run=run, ratio=0.5, window=window)
    guard = FloodGuard(bounds)
    for count in range(1, len(dead) + 1):
        seen = dead[:count]
        share = count >= window and sum(seen[-window:]) > 0.5 * window
        assert guard.settled(seen[-1]) == (seen[-run:] == [True] * run or share)


def test_a_flood_of_an_ended_epoch_is_counted_anew() -> None:
    """The new owner knows from `control` what is held; it has seen nothing itself."""
    stream = opened(Stream(replace(LIMITS, jobs=2)), P0)
    feed(stream, P0, Rec(0), Rec(1))
    for job in stream.start(0.0):
        stream.settle(job, 0.0, dead=True)
    stream.assign(P0, 2, "", 2, now=0.0)
    feed(stream, P0, Rec(2))
    (job,) = stream.start(0.0)
    stream.settle(job, 0.0, dead=True)
    assert not stream.held(FLOOD)
