"""Opening and closing aiokafka's producer within bounds, and what its errors mean to us, in one place."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from sluiceway.kafka.security import Connection

_REFUSED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidRequiredAcksError,
)
_OUT_OF_STEP = (
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.DuplicateSequenceNumber,
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.ProducerClosed,
)
_NO_IDEMPOTENCE = (kafka_errors.UnknownError, kafka_errors.IncompatibleBrokerVersion)


class SendFault(Enum):
    TOO_LARGE = "too_large"
    REFUSED = "refused"  # rights or name: the operator must mend it
    MISSING = "missing"  # the topic; it may be the cluster's hiccup
    OUT_OF_STEP = "out_of_step"  # this producer is of no use any more
    AGAIN = "again"
    BUG = "bug"


def send_fault(error: BaseException) -> SendFault:
    """What to do about a batch that was not acked."""
    match error:
        case kafka_errors.MessageSizeTooLargeError() | kafka_errors.RecordListTooLargeError():
            return SendFault.TOO_LARGE
        case _ if isinstance(error, _REFUSED):
            return SendFault.REFUSED
        case kafka_errors.UnknownTopicOrPartitionError():
            return SendFault.MISSING
        case _ if isinstance(error, _OUT_OF_STEP) or type(error) is kafka_errors.KafkaError:
            return SendFault.OUT_OF_STEP  # the bare class: aiokafka's sender task has died
        case kafka_errors.KafkaError():
            return SendFault.AGAIN
        case _:
            return SendFault.BUG


async def open_producer(
    connection: Connection, max_request_size: int, idempotent: bool
) -> tuple[AIOKafkaProducer, bool]:
    """A started producer, acks=all, and whether it is idempotent: some brokers do not offer it. Raises KafkaError."""
    producer = AIOKafkaProducer(
        **connection.producer(), acks="all", max_request_size=max_request_size, enable_idempotence=idempotent
    )
    try:
        await producer.start()
    except _NO_IDEMPOTENCE:
        await close_producer(producer, 2.0)
        if not idempotent:
            raise
        return await open_producer(connection, max_request_size, False)
    except BaseException:
        await close_producer(producer, 2.0)
        raise
    return producer, idempotent


async def close_producer(producer: AIOKafkaProducer, budget: float) -> bool:
    """False if it was cut short: aiokafka flushes without a limit when it stops; ours is `budget` seconds."""
    task = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait([task], timeout=budget)
    if done:
        return task.exception() is None
    task.cancel()
    await asyncio.wait([task], timeout=0.5)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(producer.client.close(), 0.5)
    return False
