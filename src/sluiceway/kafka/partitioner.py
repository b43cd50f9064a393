"""Which partition a key goes to: Java's murmur2, as every Kafka client's default, so that equal keys meet.

aiokafka's own is the same function at three times the cost (7 against 2 microseconds for a UUID), which at 40,000
records a second is a quarter of a core.
"""

from __future__ import annotations

from struct import unpack_from

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Murmur2, 32 bit, with Kafka's seed. Source: org.apache.kafka.common.utils.Utils.murmur2."""
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length >> 2
    for k in unpack_from(f"<{whole}I", data):
        k = k * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    rest = data[whole << 2 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Of topics with equally many partitions, a key has the same one in each."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
