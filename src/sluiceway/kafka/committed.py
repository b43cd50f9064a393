"""A group's committed offsets, read so that "none" is the broker's word.

aiokafka 0.14 overlooks the error that stands for a whole answer (OffsetFetch since version 2, KIP-88). A restarted
coordinator that still reads its log gives that error and no partitions, and each group then looks like a new one:
every job is taken again, or, from `latest`, those that wait are never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.protocol.commit import OffsetFetchRequest

_MOVED = (kafka_errors.NotCoordinatorForGroupError, kafka_errors.GroupCoordinatorNotAvailableError)


async def fetch_committed(
    coordinator: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the group has committed; a partition without a commit is left out. One attempt.

    `coordinator` is aiokafka's GroupCoordinator. Raises KafkaError where the answer is not one for each partition.
    """
    if not partitions:
        return {}
    asked = defaultdict(list)
    for partition in partitions:
        asked[partition.topic].append(partition.partition)
    await coordinator.ensure_coordinator_known()
    answer = await coordinator._send_req(OffsetFetchRequest(coordinator.group_id, list(asked.items())))
    # Version 1, which only the embedded broker speaks, has no such field.
    _raise(coordinator, getattr(answer, "error_code", 0), coordinator.group_id)
    found, missing = {}, set(partitions)
    for topic, rows in answer.topics:
        for number, offset, metadata, error in rows:
            _raise(coordinator, error, f"{topic}[{number}]")
            partition = TopicPartition(topic, number)
            missing.discard(partition)
            if offset >= 0:
                found[partition] = OffsetAndMetadata(offset, metadata)
    if missing:
        raise kafka_errors.UnknownTopicOrPartitionError(f"no answer for {len(missing)} partitions: {min(missing)}")
    return found


def heed(consumer: AIOKafkaConsumer) -> None:
    """From now on the consumer itself, once started, takes no error for "none"; it asks again after one that passes."""
    coordinator = consumer._coordinator

    async def fetch(partitions: Collection[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return await fetch_committed(coordinator, partitions)

    coordinator._do_fetch_commit_offsets = fetch


def _raise(coordinator: Any, code: int, what: str) -> None:
    error = kafka_errors.for_code(code)
    if error is kafka_errors.NoError:
        return
    if error in _MOVED:
        coordinator.coordinator_dead()
    raise error(what)
