"""What stock Faust 0.15.3 does to concurrent work, run on its own classes; each is a reason for a part of `kafka/`.

When an upgrade changes one of these the test fails, and the part that works around it may go, or must change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import faust
import pytest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP, ConsumerMessage, Message
from tests.support.roles import until

TP0 = TP("jobs", 0)


@pytest.fixture
async def app(tmp_path: object) -> faust.App:
    return faust.App("stock", broker="kafka://127.0.0.1:1", datadir=str(tmp_path), autodiscover=False)


@pytest.fixture
async def consumer(app: faust.App) -> AsyncIterator[Any]:
    consumer: Any = app.transport.create_consumer(
        callback=app.topics.on_message,
        on_partitions_revoked=app._on_partitions_revoked,
        on_partitions_assigned=app._on_partitions_assigned,
    )
    yield consumer
    consumer._thread.thread_loop.close()  # made with its thread, which never ran


def test_the_versions_are_the_ones_that_were_studied() -> None:
    import aiokafka

    assert (faust.__version__, aiokafka.__version__) == ("0.15.3", "0.14.0")


async def test_the_watermark_is_off_by_one_so_a_running_job_is_committed_away(consumer: Any) -> None:
    """Trap 1: committed 31 and 32 done while 31 still runs."""
    consumer._committed_offset[TP0] = 31
    consumer._acked[TP0] = [32]
    assert consumer._new_offset(TP0) == 33


async def test_with_nothing_committed_yet_whatever_finishes_first_is_the_watermark(consumer: Any) -> None:
    """Trap 1: only offset 5 is done, 0 to 4 still run."""
    consumer._acked[TP0] = [5]
    assert consumer._new_offset(TP0) == 6


async def test_a_gap_in_the_offsets_counts_the_record_after_it_as_done(consumer: Any) -> None:
    """Trap 2: 3 was read, 7 arrives; `_drain_messages` calls this with 4 and 7, before 7 has run."""
    await consumer._add_gap(TP0, 4, 7)
    assert consumer._gap[TP0].overlaps(7)
    consumer._acked[TP0] = [3, 8]
    assert consumer._new_offset(TP0) == 9


async def test_pausing_in_the_middle_of_a_fetched_batch_drops_the_rest_of_it(consumer: Any) -> None:
    """Trap 3: the records after the pause are gone from memory, and the fetch position has passed them."""

    class Fetched:
        topic, partition, timestamp, timestamp_type = "jobs", 0, 0, 0
        headers, key, value, checksum, serialized_key_size, serialized_value_size = (), b"", b"", 0, 0, 0

        def __init__(self, offset: int) -> None:
            self.offset = offset

    consumer._active_partitions = {TP0}
    consumer.highwater = lambda _: 10

    async def records(_: float) -> Any:
        return {TP0: [Fetched(offset) for offset in range(10)]}, consumer._active_partitions

    consumer._wait_next_records = records
    seen = []
    async for _, message in consumer.getmany(1.0):
        seen.append(message.offset)
        if message.offset == 2:
            consumer.pause_partitions({TP0})
    assert seen == [0, 1, 2]


async def test_a_job_whose_agent_raises_is_acked_and_gone(app: faust.App, consumer: Any) -> None:
    """Trap 5: an ordinary loop over a stream, an ordinary exception; the commit then passes the job."""
    app.consumer = consumer
    app.topics._acking_topics.add("jobs")
    message = ConsumerMessage("jobs", 0, 0, 0.0, 0, (), b"k", b"v", None, tp=TP0)
    message.generation_id = app.consumer_generation_id
    message.incref()
    stream = app.stream(app.channel())
    app.flow_control.resume()
    await stream.channel.queue.put(app.create_event(b"k", b"v", None, message))

    async def agent() -> None:
        async for _ in stream:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await agent()
    await stream.stop()
    await until(lambda: consumer._acked[TP0] == [0], within=5.0, what="the loop's finalizer acks")
    assert consumer._new_offset(TP0) == 1


async def test_a_suspended_and_resumed_flow_clears_a_channel_and_what_was_handed_over_is_gone(app: faust.App) -> None:
    """Trap 19: Faust does this at each rebalance. Our intake has a queue of its own, under no flow control."""
    channel = app.channel()
    iterated = channel.clone(is_iterator=True)
    app.flow_control.resume()
    await channel.put("a whole fetched batch")  # type: ignore[arg-type]  # any value passes
    assert iterated.queue.qsize() == 1
    app.flow_control.suspend()
    app.flow_control.resume()
    assert iterated.queue.qsize() == 0


async def test_a_full_channel_blocks_the_one_loop_that_feeds_all_topics(app: faust.App) -> None:
    """Trap 9: `put` waits for the slowest stream."""
    channel = app.channel(maxsize=1)
    channel.clone(is_iterator=True)
    slow = channel.clone(is_iterator=True)
    app.flow_control.resume()
    await slow.queue.put("first")
    put = asyncio.ensure_future(channel.put("second"))  # type: ignore[arg-type]  # any value passes
    await asyncio.wait([put], timeout=0.05)
    assert not put.done()
    put.cancel()


async def test_the_alarm_for_a_stopped_fetch_compares_two_different_clocks(consumer: Any) -> None:
    """Trap 7: aiokafka's poll time is the wall clock's, `now` is monotonic: the difference is never over the limit."""
    from types import SimpleNamespace

    hours_ago = SimpleNamespace(timestamp=(time.time() - 7200) * 1000)
    assignment = SimpleNamespace(active=True, state_value=lambda _: hours_ago)
    subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    thread: AIOKafkaConsumerThread = consumer._thread
    thread._consumer = SimpleNamespace(_fetcher=SimpleNamespace(_subscriptions=subscription))
    thread.time_started = 0.0
    assert thread._verify_aiokafka_event_path(time.monotonic(), TP0) is False


async def test_waiting_for_running_jobs_has_no_limit(app: faust.App, consumer: Any) -> None:
    """Trap 8: one job that never ends holds a rebalance or a stop for ever; it is on by default."""
    assert app.conf.stream_wait_empty is True
    message = Message("jobs", 0, 1, 0.0, 0, (), b"k", b"v", None, tp=TP0)
    consumer._unacked_messages.add(message)
    commits = 0
    often = asyncio.Event()

    async def commit(*_: Any, **__: Any) -> bool:
        nonlocal commits
        commits += 1
        if commits == 50:
            often.set()
        return True

    consumer.commit = commit
    consumer._wait_for_ack = lambda timeout: asyncio.sleep(0)  # noqa: ARG005  Faust's keyword; no second is to pass
    waiting = asyncio.ensure_future(consumer.wait_empty())
    await often.wait()
    assert not waiting.done()
    waiting.cancel()


async def test_defaults_that_cost_money_or_time(app: faust.App) -> None:
    """Traps 16 and 23."""
    assert app.conf.consumer_auto_offset_reset == "earliest"
    assert app.conf.broker_session_timeout == 60.0
    assert app.conf.producer_request_timeout == 1200.0
    assert app.conf.stream_buffer_maxsize == 4096
    assert app.conf.broker_max_poll_records is None
    assert app.conf.topic_allow_declare is True
    assert app.conf.broker_commit_interval == 2.8


async def test_adding_a_topic_later_waits_forty_five_seconds(app: faust.App) -> None:
    """Trap 13: all topics of a role are subscribed once, at its start."""
    assert app.topics._resubscribe_sleep_lock_seconds == 45.0
