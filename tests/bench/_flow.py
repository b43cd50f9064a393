"""An open loop: jobs are published when they are due, whatever became of those before; the broker's clock times them.

Both topics stamp their records when they append them (`STAMPED`), so a latency is the worker's alone: from the job's
arrival in its topic to its outcome's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer

STAMPED = {"message.timestamp.type": "LogAppendTime"}
LARGEST = 4 << 20  # bytes of a request


@dataclass(frozen=True, slots=True)
class Due:
    """Publish `value` `at` so many seconds after the start. `id` names it, be there one in the value or not."""

    at: float
    id: str
    value: bytes


async def publish_when_due(bootstrap: str, topic: str, jobs: Iterable[Due]) -> dict[str, int]:
    """When the broker appended each job, in milliseconds since the epoch, by the job's id. `jobs` rise in time."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_request_size=LARGEST)
    await producer.start()
    loop = asyncio.get_running_loop()
    sent = {}
    try:
        began = loop.time()
        for job in jobs:
            if (early := began + job.at - loop.time()) > 0:
                await asyncio.sleep(early)  # the load's own pace
            sent[job.id] = await producer.send(topic, job.value)
        return {name: (await ack).timestamp for name, ack in sent.items()}
    finally:
        await producer.stop()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
