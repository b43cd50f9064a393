"""Redriving on both brokers: byte for byte back, once, whatever is stopped, filtered or killed on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from aiokafka import AIOKafkaProducer
from tests.support.rig import SETTINGS
from tests.support.topics import Address, Seen, create_topics, publish, read_topic

from sluiceway.core import redriven
from sluiceway.core.errors import InputError
from sluiceway.core.redrive import Fate, Filter, Mark
from sluiceway.core.redriven import Redriven
from sluiceway.core.round import Headers, stated
from sluiceway.kafka.security import read_connection
from sluiceway.ports import Outgoing
from sluiceway.redrive import RedriveOptions, Summary, _Run, redrive

USER: Headers = (("trace", b"1"), ("trace", b"2"), ("binary", bytes(range(256))), ("empty", b""), ("null", None))


@dataclass
class Cluster:
    """Topics of one test: `jobs` and `others` are where its dead letters come from."""

    address: Address
    prefix: str
    options: RedriveOptions

    @property
    def jobs(self) -> str:
        return f"{self.prefix}jobs"

    @property
    def others(self) -> str:
        return f"{self.prefix}others"

    async def die(self, count: int, *, reason: str = "unknown_task", first: int = 0, **facts: str) -> None:
        """So many dead letters, their values `job-N`, from the jobs topic unless `facts` say otherwise."""
        producer = AIOKafkaProducer(bootstrap_servers=self.address, acks="all")
        await producer.start()
        try:
            for number in range(first, first + count):
                known = {
                    "__dlq.errors.topic": self.jobs,
                    "__dlq.errors.partition": "0",
                    "__dlq.errors.offset": str(number),
                    "sluiceway.reason": reason,
                    "sluiceway.round": "0",
                    "sluiceway.job_id": f"j-{number}",
                    "sluiceway.sha256": "0" * 64,
                    **facts,
                }
                headers = [*USER, *((name, content.encode()) for name, content in known.items())]
                key = None if number % 3 == 0 else b"\xffkey-%d" % number
                await producer.send(self.options.dead_letters, b"\xffjob-%d" % number, key=key, headers=headers)
            await producer.flush()
        finally:
            await producer.stop()

    async def redrive(self, *, stop: asyncio.Event | None = None, **changes: object) -> Summary:
        summary = Summary()
        options = replace(self.options, **changes)  # type: ignore[arg-type]  # a test's own
        await redrive(options, summary, stop or asyncio.Event(), lambda _done, _total: None)
        return summary

    async def back(self, topic: str | None = None) -> list[Seen]:
        return await read_topic(self.address, topic or self.jobs)

    async def numbers(self) -> list[int]:
        return sorted(int((record.value or b"").removeprefix(b"\xffjob-")) for record in await self.back())


@pytest.fixture
async def cluster(any_kafka: Address, prefix: str) -> Cluster:
    connection = read_connection(any_kafka, SETTINGS[any_kafka.kind])
    options = RedriveOptions(connection, dead_letters=f"{prefix}dead-letters", record=f"{prefix}redriven")
    made = Cluster(any_kafka, prefix, options)
    await create_topics(any_kafka, {made.jobs: 2, made.others: 1, options.dead_letters: 3, options.record: 1})
    return made


def only(reason: str) -> Filter:
    return Filter(reasons=frozenset([reason]))


async def test_each_letter_goes_back_once_whatever_the_filters_leave_open(cluster: Cluster) -> None:
    """Key, value and headers are the original's; what one filter leaves, another finds later; then nothing is left."""
    await cluster.die(700)
    await cluster.die(40, reason="invalid", first=700)
    first = await cluster.redrive(wanted=only("invalid"))
    assert (first.redriven, first.tally.counts[Fate.UNMATCHED], first.whole) == (40, 700, True)
    assert await cluster.numbers() == list(range(700, 740))
    second = await cluster.redrive(limit=100)
    assert (second.redriven, second.tally.counts[Fate.BEFORE], second.waiting) == (100, 40, 0)
    third = await cluster.redrive()
    assert (third.redriven, third.tally.counts[Fate.BEFORE], third.whole) == (600, 140, True)
    again = await cluster.redrive()
    assert (again.redriven, again.tally.counts[Fate.BEFORE], again.whole) == (0, 740, True)
    assert await cluster.numbers() == list(range(740))
    for record in await cluster.back():
        number = int((record.value or b"").removeprefix(b"\xffjob-"))
        assert record.key == (None if number % 3 == 0 else b"\xffkey-%d" % number)
        assert record.headers[: len(USER)] == USER
        assert dict(record.headers[len(USER) :]) == {
            "sluiceway.round": b"1",
            "sluiceway.job_id": b"j-%d" % number,
        }


async def test_a_dry_run_counts_and_writes_nothing(cluster: Cluster) -> None:
    """What would go back, by reason, topic and round; what is parked, and what says not where it came from."""
    await cluster.die(3)
    await cluster.die(2, first=3, **{"__dlq.errors.topic": cluster.others, "sluiceway.round": "2"})
    await cluster.die(4, first=5, **{"sluiceway.round": "3"})
    await publish(cluster.address, cluster.options.dead_letters, [b"somebody's"])
    summary = await cluster.redrive(dry_run=True)
    assert summary.tally.rows() == [
        (Fate.REDRIVEN, "unknown_task", cluster.jobs, 0, 3),
        (Fate.REDRIVEN, "unknown_task", cluster.others, 2, 2),
        (Fate.PARKED, "unknown_task", cluster.jobs, 3, 4),
    ]
    assert summary.tally.counts[Fate.FOREIGN] == 1
    assert await read_topic(cluster.address, cluster.jobs, cluster.others, cluster.options.record) == []
    done = await cluster.redrive()
    assert done.tally.rows() == summary.tally.rows()
    assert [stated(record.headers).round for record in await cluster.back(cluster.others)] == [3, 3]
    assert (await cluster.redrive(max_rounds=4)).redriven == 4


async def test_what_is_stopped_goes_on_where_it_was(cluster: Cluster) -> None:
    """Ctrl-C after some: what was acked is on record, the rest is open, and nothing goes twice."""
    await cluster.die(30)
    stop = asyncio.Event()
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total))
        stop.set()

    summary = Summary()
    await redrive(replace(cluster.options, rate=8), summary, stop, watch)
    assert summary.interrupted
    assert not summary.whole
    assert seen == [(8, 30)]
    assert (summary.redriven, summary.waiting, summary.unrecorded) == (8, 22, 0)
    rest = await cluster.redrive()
    assert (rest.redriven, rest.tally.counts[Fate.BEFORE]) == (22, 8)
    assert await cluster.numbers() == list(range(30))


async def test_a_death_between_ack_and_record_sends_the_same_round_of_the_same_job_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies with one outcome id: whoever drops repeats sees one."""
    await cluster.die(5)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> Outgoing:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "went", killed)
        with pytest.raises(Killed):
            await cluster.redrive()
    assert await cluster.numbers() == list(range(5))
    assert (await cluster.redrive()).redriven == 5
    assert await cluster.numbers() == sorted([*range(5), *range(5)])
    assert set(Counter(stated(record.headers) for record in await cluster.back()).values()) == {2}
    assert (await cluster.redrive()).redriven == 0


async def test_a_second_redrive_at_the_same_time_is_noticed(cluster: Cluster) -> None:
    """One that sends the very same letters stops the run that sees it; one that sends others does not."""
    await cluster.die(40)
    tasks: list[asyncio.Task[object]] = []
    letters = await read_topic(cluster.address, cluster.options.dead_letters)
    marks = [Mark(record.partition, record.offset, record.timestamp) for record in letters]

    def record(run: str, of: list[Mark]) -> bytes:
        return redriven.encode(Redriven(run, cluster.options.dead_letters, 0.0, tuple(of)))

    def watch(done: int, _total: int) -> None:
        if done == 2:
            tasks.append(asyncio.create_task(publish(cluster.address, cluster.options.record, [record("it", marks)])))

    summary = Summary()
    await redrive(replace(cluster.options, rate=2), summary, asyncio.Event(), watch)
    await asyncio.gather(*tasks)
    assert summary.failure is not None
    assert "another redrive (run it)" in summary.failure
    assert 2 <= summary.redriven < 40
    assert (await cluster.redrive()).redriven == 0, "the other has sent them all, so it says"


async def test_a_topic_that_is_gone_is_told_before_anything_is_published(cluster: Cluster) -> None:
    """And the others can be chosen."""
    await cluster.die(3)
    await cluster.die(3, first=3, **{"__dlq.errors.topic": f"{cluster.prefix}gone"})
    with pytest.raises(InputError, match=r"gone, which .* Mend: create it again, or choose others with --topic"):
        await cluster.redrive()
    assert await cluster.back() == []
    assert (await cluster.redrive(wanted=Filter(topics=frozenset([cluster.jobs])))).redriven == 3


async def test_missing_topics_and_unreadable_records_are_the_users_to_mend(cluster: Cluster) -> None:
    """Nothing is guessed: without the record of earlier runs nothing goes back."""
    with pytest.raises(InputError, match=r"nowhere. Mend: sluiceway topics apply"):
        await cluster.redrive(record=f"{cluster.prefix}nowhere")
    await publish(cluster.address, cluster.options.record, [b"no record of ours"])
    with pytest.raises(InputError, match="is no record of a redrive"):
        await cluster.redrive()


async def test_a_letter_that_does_not_fit_any_more_stays_and_is_told(cluster: Cluster) -> None:
    """The others go; the run says that it is not all."""
    if cluster.address.kind == "embedded":
        pytest.skip("the embedded broker keeps no max.message.bytes")
    small = f"{cluster.prefix}small"
    await create_topics(cluster.address, {small: 1}, {"max.message.bytes": "300"})
    await cluster.die(2)
    await cluster.die(1, first=2, **{"__dlq.errors.topic": small})
    summary = await cluster.redrive()
    assert (summary.redriven, len(summary.too_large), summary.whole) == (2, 1, False)
    assert "takes 300" in summary.too_large[0]
    assert (await cluster.redrive()).tally.counts[Fate.BEFORE] == 2
