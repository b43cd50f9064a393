"""Laws of what may start: due times of retry topics, turns between tenants, jobs that run alone, floods."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.flood import Flood, FloodGuard
from sluiceway.core.queue import Queue, Taken
from sluiceway.core.slots import Slots
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
    taken = 0
    while asked := sum(want.records for want in stream.wanted() if want.partition == LATER):
        feed(stream, LATER, *(Rec(n) for n in range(taken, taken + asked)))
        taken += asked
    assert taken == 10
    assert [want.partition for want in stream.wanted()] == [P0]
    feed(stream, P0, Rec(0), now=50.0)
    assert [job.held.partition for job in stream.start(50.0)] == [P0]
    (row,) = [row for row in stream.stats(50.0) if row.partition == LATER]
    assert row.watermark_age == 0.0


@given(st.integers(1, 12), st.lists(st.integers(1, 2 << 20), min_size=1, max_size=40), st.data())
def test_what_waits_for_its_time_leaves_room_for_new_jobs(retries: int, sizes: list[int], data: st.DataObject) -> None:
    """However large, however many: the jobs topic is fetched on; parked is an eighth, or one record of each partition.

    Of sizes that are alike; where large ones come after small ones, it is once as much as was asked for.
    """
    later = [Partition("retries", number) for number in range(retries)]
    limits = replace(LIMITS, bytes=8 << 20)
    stream = opened(Stream(limits, {"retries": 60.0}), P0, *later)
    alike = len(set(sizes)) == 1
    fed = dict.fromkeys(later, 0)
    for _ in range(20):
        for want in stream.wanted():
            if want.partition != P0:
                count = data.draw(st.integers(0, want.records))
                recs = [Rec(fed[want.partition] + n, value=b"x" * sizes[n % len(sizes)]) for n in range(count)]
                if recs:
                    feed(stream, want.partition, *recs)
                    fed[want.partition] += count
        assert P0 in [want.partition for want in stream.wanted()]
        assert not stream.pauses()[Pause.BYTES]
    if alike:
        assert stream.bytes <= max(limits.bytes // 8, retries * (sizes[0] + 100))
    assert all(number <= 10 for number in fed.values())
    assert stream.queued <= max(limits.queue // 8, retries)
    stream.start(60.0)
    stream.revoke(later)
    assert (stream.bytes, stream._parked.bytes) == (0, 0)


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
    queue = Queue(slots=Slots(200, tenant))
    for number, name in enumerate(tenants):
        queue.push(Taken(held, Rec(number, value=name), 1))
    popped: list[Taken] = []
    for portion in [*portions, len(tenants)]:
        popped += queue.pop(portion, 0.0, 200, 200)
    assert len(queue) == 0
    assert sorted(offsets(popped)) == list(range(len(tenants)))
    for name in set(tenants):
        mine = [job.record.offset for job in popped if job.record.value == name]
        assert mine == sorted(mine)


WIDE = Limits(jobs=40, burst=40, queue=200, span=1000)


def tell(stream: Stream, partition: Partition, *names: bytes, first: int) -> None:
    """Both tenants are met: what names them is fetched and, slots being short, told apart."""
    feed(stream, partition, *(Rec(first + number, value=name) for number, name in enumerate(names)))


def test_while_tenants_compete_the_last_slots_are_for_those_that_have_few() -> None:
    """A large tenant's backlog leaves a few of them free; the small one's job starts the moment it is there."""
    stream = opened(Stream(WIDE, tenant=tenant), P0)
    tell(stream, P0, *[b"large"] * 60, b"small", first=0)
    running = stream.start(0.0)
    large = [job for job in running if job.record.value == b"large"]
    assert (len(running), len(large)) == (38, 37)
    assert stream.start(0.0) == []
    tell(stream, P0, b"small", first=61)
    (started,) = stream.start(0.0)
    assert started.record.value == b"small"
    tell(stream, P0, b"small", first=62)
    assert stream.start(0.0) == []  # two of forty are kept, and who has two has not few
    for job in large[:2]:
        assert stream.settle(job, 0.0)
    assert len(stream.start(0.0)) == 1


def test_a_tenant_that_is_alone_has_all_slots() -> None:
    stream = opened(Stream(WIDE, tenant=tenant), P0)
    tell(stream, P0, *[b"large"] * 60, first=0)
    assert len(stream.start(0.0)) == 40


def test_a_tenant_that_nobody_has_met_for_a_minute_competes_no_more() -> None:
    stream = opened(Stream(WIDE, tenant=tenant), P0)
    tell(stream, P0, *[b"large"] * 60, b"small", first=0)
    small, *_ = (job for job in stream.start(0.0) if job.record.value == b"small")
    stream.settle(small, 1.0)
    assert len(stream.start(1.0)) == 1
    assert stream.start(59.0) == []
    assert len(stream.start(61.0)) == 2


def test_those_that_run_when_slots_run_short_are_counted_too() -> None:
    """They came one by one, when there was room for all: nobody had asked whose they are."""
    asked: list[int] = []

    def asks(record: Rec) -> str:
        asked.append(record.offset)
        return tenant(record)

    stream = opened(Stream(WIDE, tenant=asks), P0)
    for number in range(37):
        tell(stream, P0, b"large", first=number)
        assert len(stream.start(0.0)) == 1
    assert asked == []
    tell(stream, P0, *[b"large"] * 10, b"small", first=37)
    assert Counter(tenant(job.record) for job in stream.start(0.0)) == {"large": 1, "small": 1}  # type: ignore[arg-type]  # ours
    assert sorted(asked) == list(range(48))


def test_in_one_partition_too_the_last_slots_of_its_share_are_kept() -> None:
    """Where a tenant's records all lie in one partition, it is that partition's share that is short."""
    stream = opened(Stream(replace(WIDE, jobs=60), tenant=tenant), P0, P1)
    tell(stream, P0, *[b"large"] * 60, b"small", first=0)
    assert Counter(tenant(job.record) for job in stream.start(0.0)) == {"large": 37, "small": 1}  # type: ignore[arg-type]  # ours
    tell(stream, P0, b"small", first=61)
    assert [job.record.value for job in stream.start(0.0)] == [b"small"]


def test_where_room_is_for_one_the_partition_that_has_least_is_first() -> None:
    """Else the first partitions' backlogs keep the last ones waiting for as long as they last."""
    stream = opened(Stream(replace(WIDE, jobs=6)), P0, P1, Partition("jobs", 2))
    for partition in stream.partitions():
        feed(stream, partition, *(Rec(n) for n in range(50)))
    running, started = stream.start(0.0), Counter[Partition]()
    for turn in range(60):
        assert stream.settle(running.pop(turn * 7 % len(running)), 0.0)
        for job in stream.start(0.0):
            started[job.held.partition] += 1
            running.append(job)
    assert min(started.values()) >= 15
    assert len(started) == 3


EVENTS = ("feed", "feed", "start", "start", "hand over", "settle", "revoke", "abandon", "wait")


@given(st.data())
def test_slots_are_counted_exactly_and_no_tenant_waits_for_ever(data: st.DataObject) -> None:
    """Any order of arrivals, ends, revokes and giving up: nobody is over the limit, and in the end all have run."""
    suspects = data.draw(st.sets(st.integers(0, 40), max_size=3))
    stream = opened(Stream(WIDE, {"retries": 5.0}, lambda record: record.offset in suspects, tenant), P0, P1, LATER)
    slots, now = stream._slots, 0.0
    assert slots is not None
    running: list[Taken] = []
    ends = dict.fromkeys((P0, P1, LATER), 0)
    names = st.sampled_from([b"large", b"large", b"large", b"small", b""])

    def settle(job: Taken) -> None:
        running.remove(job)
        assert stream.settle(job, now)

    def check() -> None:
        beside = [job for job in running if not (job.alone or job.handed)]
        assert slots.free == WIDE.jobs - len(beside) >= 0
        known = Counter(tenant(job.record) for job in beside if job.tenant is not None)  # type: ignore[arg-type]  # ours
        assert slots._counts == known
        assert stream.running == len(running) <= 2 * WIDE.jobs
        assert stream.handed == sum(job.handed for job in running)

    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(EVENTS)):
            case "feed":
                where = data.draw(st.sampled_from(list(ends)))
                count = data.draw(st.integers(1, 5 if where == LATER else 40))
                few = data.draw(st.lists(names, min_size=1, max_size=5))
                feed(stream, where, *(Rec(ends[where] + n, value=few[n % len(few)]) for n in range(count)), now=now)
                ends[where] += count
            case "start":
                running += stream.start(now)
            case "settle":
                for job in data.draw(st.permutations(running))[: data.draw(st.integers(0, 20))]:
                    settle(job)
            case "hand over":
                for job in data.draw(st.permutations(running))[: data.draw(st.integers(0, 20))]:
                    stream.hand_over(job)
            case "revoke":
                where = data.draw(st.sampled_from(list(ends)))
                stream.revoke([where])
                running = [job for job in running if job.held.partition != where]
                stream.assign(where, ends[where], "", ends[where], now)
            case "abandon" if running:
                stream.abandon(running.pop())
            case "wait":
                now += data.draw(st.sampled_from([1.0, 70.0]))
        check()
    now += 5.0
    while stream.queued or running:
        running += (started := stream.start(now))
        check()
        assert started or running
        for job in list(running):
            settle(job)
    assert slots._counts == {}


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
