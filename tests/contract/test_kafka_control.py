"""The control topic on both brokers: read whole, followed, written with an ack, and never in a worker's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import Notes, until
from tests.support.topics import Address, create_topics, publish

from sluiceway.core.control import Hold, Record, Resume, encode, hold_key, resume_key
from sluiceway.core.errors import InputError
from sluiceway.core.held import Partition
from sluiceway.kafka.control import Control
from sluiceway.kafka.embedded import SETTINGS
from sluiceway.kafka.security import Connection, read_connection

PLACE = Partition("sluiceway.jobs", 3)
HOLD = Hold(5.0, "flood", "100 of 120 were dead letters", "w-1")
KEY = hold_key("g", PLACE)


def connected(kafka: Address) -> Connection:
    pairs = [f"{key}={value}" for key, value in SETTINGS.items()] if kafka.kind == "embedded" else []
    return read_connection(str(kafka), pairs)


@asynccontextmanager
async def opened(
    connection: Connection,
    topic: str,
    notes: Notes | None = None,
    told: Callable[[str, Record | None], None] | None = None,
) -> AsyncIterator[Control]:
    control = Control(connection, topic, notes)
    if told is not None:
        control.on_change(told)
    await control.start()
    try:
        yield control
    finally:
        assert await control.stop(10.0)
        assert await control.stop(1.0)


async def made(kafka: Address, prefix: str) -> tuple[Connection, str]:
    topic = f"{prefix}control"
    await create_topics(kafka, {topic: 1}, {"cleanup.policy": "compact"})
    return connected(kafka), topic


async def test_what_one_puts_all_others_know_those_that_come_later_too(any_kafka: Address, prefix: str) -> None:
    """Values by key and kind; a newer one replaces, a tombstone deletes; who follows is told of each change."""
    connection, topic = await made(any_kafka, prefix)
    changes: list[tuple[str, Record | None]] = []
    async with (
        opened(connection, topic) as writer,
        opened(connection, topic, told=lambda *change: changes.append(change)) as reader,
    ):
        assert reader.values("hold") == {}
        assert await writer.put(KEY, HOLD)
        assert await writer.put(resume_key("g", PLACE), Resume(5.0))
        assert await reader.catch_up(20.0)
        assert reader.get(KEY) == HOLD
        assert reader.values("hold") == {KEY: HOLD}
        assert set(reader.records) == {KEY, resume_key("g", PLACE)}
        async with opened(connection, topic) as later:
            assert later.records == reader.records
        assert await writer.put(KEY, None)
        assert await reader.catch_up(20.0)
        assert reader.get(KEY) is None
        async with opened(connection, topic) as later:
            assert set(later.records) == {resume_key("g", PLACE)}
    assert changes == [(KEY, HOLD), (resume_key("g", PLACE), Resume(5.0)), (KEY, None)]


async def test_whoever_has_caught_up_knows_all_that_was_acked_before(any_kafka: Address, prefix: str) -> None:
    """What a worker relies on when it is given a partition: fifty times a hold is acked, and known at once."""
    connection, topic = await made(any_kafka, prefix)
    async with opened(connection, topic) as writer, opened(connection, topic) as reader:
        for number in range(50):
            assert await writer.put(KEY, Hold(float(number), "flood", "", "w"))
            assert await reader.catch_up(20.0)
            hold = reader.get(KEY)
            assert isinstance(hold, Hold)
            assert hold.at == number


async def test_what_is_no_record_is_counted_and_skipped_and_what_is_newer_passes(
    any_kafka: Address, prefix: str
) -> None:
    """Cut JSON, a wrong type, another major version; the key keeps its last good value."""
    connection, topic = await made(any_kafka, prefix)
    good = orjson.loads(encode(HOLD))
    bad = [
        (KEY.encode(), b'{"cut'),
        (KEY.encode(), orjson.dumps({**good, "at": "noon"})),
        (KEY.encode(), orjson.dumps({**good, "schema": "sluiceway.control/2"})),
        (b"resume/g/t/0", encode(HOLD)),
        (b"hold/\xff", encode(HOLD)),
        (b"lease/w", b"\x00"),
    ]
    newer = [
        (b"policy/abc", b'{"schema": "sluiceway.control/7", "text": "..."}'),
        (hold_key("g", Partition("t", 1)).encode(), orjson.dumps({**good, "schema": "sluiceway.control/1.9", "by": 1})),
        (b"", b"no kind"),
    ]
    notes = Notes()
    async with opened(connection, topic, notes) as reader:
        await publish(any_kafka, topic, [(KEY.encode(), encode(HOLD)), *bad, *newer], partition=0)
        assert await reader.catch_up(20.0)
        assert reader.records == {
            KEY: HOLD,
            hold_key("g", Partition("t", 1)): replace(HOLD, schema="sluiceway.control/1.9"),
        }
        assert reader.skipped == len(bad)
        assert notes.events().count("control_record_skipped") == len(bad)
        async with opened(connection, topic) as later:
            assert later.records == reader.records
            assert later.skipped == reader.skipped


async def test_a_topic_that_is_not_there_is_told_with_the_mend(any_kafka: Address, prefix: str) -> None:
    """And is not made by asking for it."""
    for _ in range(2):
        with pytest.raises(InputError, match=r"nowhere. Mend: sluiceway topics apply"):
            await Control(connected(any_kafka), f"{prefix}nowhere").start()


async def test_a_cluster_that_is_not_there_is_told_with_its_address() -> None:
    """As everywhere."""
    with pytest.raises(InputError, match=r"127.0.0.1:1 .*Mend"):
        await Control(read_connection("127.0.0.1:1")).start(within=5.0)


async def test_a_callback_that_raises_is_a_bug_that_the_worker_is_told_of(any_kafka: Address, prefix: str) -> None:
    """It is neither swallowed nor thrown at whoever put the record."""
    connection, topic = await made(any_kafka, prefix)

    def wrong(_: str, __: Record | None) -> None:
        raise ZeroDivisionError

    async with opened(connection, topic, told=wrong) as control:
        assert await control.put(KEY, HOLD)
        async with asyncio.timeout(20):
            assert isinstance(await control.failed(), ZeroDivisionError)


async def test_while_the_broker_is_away_the_last_known_state_stays_and_then_goes_on(
    mortal_kafka: ApacheKafka, prefix: str
) -> None:
    """Killed and started again: nothing raises, a put in vain says so in its time, and both directions work again."""
    address = Address(mortal_kafka.bootstrap, "apache")
    connection, topic = await made(address, prefix)
    async with opened(connection, topic) as writer, opened(connection, topic) as reader:
        assert await writer.put(KEY, HOLD)
        assert await reader.catch_up(20.0)
        await asyncio.to_thread(mortal_kafka.kill)
        try:
            assert not await writer.put(KEY, Hold(6.0, "flood", "", "w"), within=1.0)
            assert not await reader.catch_up(0.5)
            assert reader.get(KEY) == HOLD
        finally:
            await asyncio.to_thread(mortal_kafka.start, 90.0)
        newest = Hold(7.0, "flood", "", "w")
        assert await writer.put(KEY, newest, within=60.0)
        assert await reader.catch_up(60.0)
        assert reader.get(KEY) == newest


async def test_a_frozen_broker_keeps_nobody_from_stopping(apache_kafka: ApacheKafka, prefix: str) -> None:
    """`stop` comes back within its budget whatever aiokafka still awaits."""
    connection, topic = await made(Address(apache_kafka.bootstrap, "apache"), prefix)
    control = Control(connection, topic)
    await control.start()
    assert await control.put(KEY, HOLD)
    apache_kafka.freeze()
    try:
        put = asyncio.create_task(control.put(KEY, None, within=0.5))
        async with asyncio.timeout(30):
            assert not await put
            await control.stop(2.0)
    finally:
        apache_kafka.thaw()


@pytest.mark.slow_on_embedded
async def test_a_reader_that_has_stopped_unsaid_is_noticed_and_replaced(any_kafka: Address, prefix: str) -> None:
    """aiokafka's fetch task has been seen to end without a word: then nothing would ever be known again."""
    connection, topic = await made(any_kafka, prefix)
    notes = Notes()
    async with opened(connection, topic) as writer, opened(connection, topic, notes) as reader:
        consumer = reader._consumer
        assert consumer is not None
        consumer._fetcher._fetch_task.cancel()
        for at in (1.0, 2.0):  # the fetch that is under way may still bring the first
            assert await writer.put(KEY, replace(HOLD, at=at))
            await until(lambda at=at: reader.get(KEY) == replace(HOLD, at=at), within=60.0)
        assert "control_read_again" in notes.events()
