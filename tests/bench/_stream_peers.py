"""What our stream is held against, each in a process of its own: `python -m tests.bench._stream_peers PEER SETTINGS`.

`faust`: a stock Faust agent that awaits each send. `aiokafka`: consume a batch, send it, gather the acks, commit.
Both idempotent, acks=all, on uvloop; SETTINGS is JSON: {"bootstrap", "jobs", "results", "group"}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from typing import Any

import uvloop

from tests.bench._turn import Turn


def faust_agent(settings: dict[str, str], turn: Turn) -> None:
    """The loop is the one that Faust's own documentation shows for a result that must not be lost."""
    import faust
    from faust.transport.drivers.aiokafka import Producer

    # Faust has no setting for it outside transactions.
    Producer._settings_extra = lambda _: {"acks": "all", "enable_idempotence": True}  # type: ignore[method-assign]
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app = faust.App(
        settings["group"],
        broker=f"kafka://{settings['bootstrap']}",
        datadir=tempfile.mkdtemp(),
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
    )
    jobs = app.topic(settings["jobs"], value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")
    results = app.topic(settings["results"], value_type=bytes, value_serializer="raw")

    @app.agent(jobs)
    async def copy(stream: Any) -> None:
        async for value in stream:
            await turn.hold()
            await (await results.send(value=value))
            turn.done()

    faust.Worker(app, loglevel="error").execute_from_commandline()


async def aiokafka_loop(settings: dict[str, str], turn: Turn) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    producer = AIOKafkaProducer(
        bootstrap_servers=settings["bootstrap"], acks="all", enable_idempotence=True, max_batch_size=1 << 16
    )
    consumer = AIOKafkaConsumer(
        settings["jobs"],
        bootstrap_servers=settings["bootstrap"],
        group_id=settings["group"],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await producer.start()
    await consumer.start()
    while True:
        batches = await consumer.getmany(timeout_ms=500, max_records=1000)
        if not batches:
            continue
        await turn.hold()
        acks = [
            await producer.send(settings["results"], record.value, key=record.key)
            for records in batches.values()
            for record in records
        ]
        await asyncio.gather(*acks)
        await consumer.commit()
        turn.done(len(acks))


if __name__ == "__main__":
    given, taken = json.loads(sys.argv[2]), Turn()
    if sys.argv[1] == "faust":
        faust_agent(given, taken)
    else:
        uvloop.run(aiokafka_loop(given, taken))
