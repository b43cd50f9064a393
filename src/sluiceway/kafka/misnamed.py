"""Records that aiokafka can't read: one header whose name is not UTF-8, and no record of its batch comes out any more.

Such records are fetched and read here by hand. The bytes of a name come as lone surrogates (`surrogateescape`), so that
nothing of it is lost; what can't be done is to write it again, since aiokafka's producer takes UTF-8 alone.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint

_WAIT_MS = 500
_LENGTH_AT = 8  # a batch's length (int32) stands behind its base offset, and counts from behind itself
_MAGIC_AT = 16
_HEAD = 12
_LEAST = 26


async def read_misnamed(
    consumer: AIOKafkaConsumer, partition: TopicPartition, position: int, records: int, max_bytes: int
) -> tuple[list[ConsumerRecord], int]:
    """At most `records` of the committed ones from `position` on, and the position after them.

    Nothing, and the same position, where the broker gave nothing. Raises aiokafka's errors.
    """
    client = consumer._client
    leader = client.cluster.leader_for_partition(partition)
    if leader is None:
        return [], position
    asked = [(partition.topic, [(partition.partition, position, max_bytes)])]
    response = await client.send(leader, FetchRequest(_WAIT_MS, 1, max_bytes, READ_COMMITTED, asked))
    for _, partitions in response.topics:
        for _, code, _, *facts in partitions:
            if code == 0:
                aborted = facts[2] if response.API_VERSION >= 11 else facts[-2] if response.API_VERSION >= 4 else None
                return read(facts[-1] or b"", aborted, partition, position, records)
    return [], position


def read(
    data: bytes, aborted: list[tuple[int, int]] | None, partition: TopicPartition, position: int, records: int
) -> tuple[list[ConsumerRecord], int]:
    """The same of a fetch's answer: what is no record, or was aborted, is passed over by aiokafka's own rules."""
    reading = PartitionRecords(partition, _Batches(data), aborted, position, None, None, True, READ_COMMITTED)
    return list(islice(reading, records)), int(reading.next_fetch_offset)


class _Batches:
    """What aiokafka's MemoryRecords is: the batches of one answer; one that was cut short is left out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _end(self) -> int | None:
        if len(self._data) - self._at < _LEAST:
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + _LENGTH_AT)
        end = self._at + _HEAD + int(length)
        return end if end <= len(self._data) else None

    def has_next(self) -> bool:
        return self._end() is not None

    def next_batch(self) -> Any:
        begin, end = self._at, self._end()
        if end is None:
            return None
        self._at = end
        data, magic = self._data[begin:end], self._data[begin + _MAGIC_AT]
        return _Batch(data) if magic >= 2 else LegacyRecordBatch(data, magic)  # an old format, without headers


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka calls it final; all but the reading is its own
    _pos: int

    def __iter__(self) -> Self:
        self._maybe_uncompress()
        return self

    def __next__(self) -> _DefaultRecordPy:
        if self._next_record_index >= self._num_records:
            raise StopIteration
        self._next_record_index += 1
        self._number()  # its length
        self._number()  # attributes, of which none is in use
        later, further = self._number(), self._number()
        key, value = self._content(), self._content()
        headers = [
            ((self._content() or b"").decode("utf-8", "surrogateescape"), self._content())
            for _ in range(self._number())
        ]
        at = self.first_timestamp + later if self.timestamp_type == self.CREATE_TIME else self.max_timestamp
        return _DefaultRecordPy(self.base_offset + further, at, self.timestamp_type, key, value, headers)

    def _number(self) -> int:
        found, self._pos = decode_varint(self._buffer, self._pos)
        return int(found)

    def _content(self) -> bytes | None:
        size = self._number()
        if size < 0:
            return None
        self._pos += size
        return bytes(self._buffer[self._pos - size : self._pos])
