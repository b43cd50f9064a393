"""One partition's offsets in one epoch: what was taken, what is settled, and from where a restart must read.

The ledger never knows a record's content and never reads a clock. Its rules:

- offsets are taken in rising order; holes between them (compaction, transaction markers) are free: they count as done;
- an offset is settled once, in any order;
- the watermark is the lowest unsettled offset, or the fetch position when nothing is open: it is what may be committed;
- what is finished *above* the watermark goes with the commit as a compact text (`encode_finished`), so that a restart
  repeats only what was unfinished. Losing that text costs repeats, never a job.

The text is `sw1.` + base64(crc32 of watermark and body, then the body): the body is the ranges' varint distances, or
one bit an offset where that is shorter, zlib-packed. Apache Kafka refuses more than 4,096 bytes by default.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import deque
from collections.abc import Iterable, Sequence

METADATA_LIMIT = 4000
SPAN_LIMIT = 20_000  # one bit an offset, in base64, fits METADATA_LIMIT up to here whatever the pattern

Ranges = tuple[tuple[int, int], ...]
"""Finished offsets as (first, one past the last), rising and apart from each other."""

_VERSION = "sw1."
_DISTANCES = 0
_BITS = 1


class OffsetLedger:
    """Take and settle in O(1) amortised. `finished` are the ranges above `committed` that an earlier epoch finished."""

    __slots__ = ("_open", "_order", "_restored", "_skip_from", "_skip_to", "position")

    def __init__(self, committed: int, finished: Ranges = ()) -> None:
        self.position = committed
        self._order: deque[int] = deque()  # taken, rising; the head is always open
        self._open: set[int] = set()
        self._restored: deque[tuple[int, int]] = deque(finished)
        self._skip_from, self._skip_to = self._restored.popleft() if self._restored else (-1, -1)

    def __repr__(self) -> str:
        return f"<OffsetLedger watermark={self.watermark} position={self.position} open={self.open}>"

    def take(self, offset: int) -> bool:
        """True if the offset is now open; False if it was finished before, or taken already."""
        if offset < self.position:
            return False
        self.position = offset + 1
        while 0 <= self._skip_to <= offset:
            self._next_restored()
        if self._skip_from <= offset < self._skip_to:
            return False
        self._order.append(offset)
        self._open.add(offset)
        return True

    def settle(self, offset: int) -> bool:
        """True if an open offset was settled; False for one that is not open (a second settling changes nothing)."""
        opened = self._open
        if offset not in opened:
            return False
        opened.remove(offset)
        order = self._order
        while order and order[0] not in opened:
            order.popleft()
        return True

    def reach(self, position: int) -> None:
        """The next fetch reads from `position`: what lies before it and was not taken does not exist."""
        if position > self.position:
            self.position = position
            while 0 <= self._skip_to < position:
                self._next_restored()

    @property
    def watermark(self) -> int:
        """The lowest unsettled offset; with nothing open, the fetch position."""
        return self._order[0] if self._order else self.position

    @property
    def open(self) -> int:
        """How many offsets are taken and not settled."""
        return len(self._open)

    @property
    def span(self) -> int:
        """Offsets from the watermark to the fetch position."""
        return self.position - self.watermark

    def unsettled(self) -> list[int]:
        """The open offsets, rising."""
        opened = self._open
        return [offset for offset in self._order if offset in opened]

    def finished(self) -> Ranges:
        """What is done above the watermark, restored ranges that were not reached yet included."""
        ranges: list[tuple[int, int]] = []
        edge = self.watermark
        if self._order:
            for offset in self.unsettled():
                if offset > edge:
                    ranges.append((edge, offset))
                edge = offset + 1
            if self.position > edge:
                ranges.append((edge, self.position))
        rest = [(self._skip_from, self._skip_to), *self._restored] if self._skip_to > 0 else []
        for first, last in rest:
            start = max(first, self.position)
            if start >= last:
                continue
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], last)
            else:
                ranges.append((start, last))
        return tuple(ranges)

    def _next_restored(self) -> None:
        self._skip_from, self._skip_to = self._restored.popleft() if self._restored else (-1, -1)


def encode_finished(watermark: int, ranges: Ranges, limit: int = METADATA_LIMIT) -> tuple[str, int]:
    """The commit text for `ranges` above `watermark`, and how many ranges it had to leave out to stay within `limit`.

    Left out are the highest: a restart would repeat those. Empty text for no ranges.
    """
    kept = len(ranges)
    while kept:
        text = _pack(watermark, ranges[:kept])
        if len(text) <= limit:
            return text, len(ranges) - kept
        kept = min(kept - 1, kept * limit // len(text))
    return "", len(ranges)


def decode_finished(watermark: int, text: str | None) -> Ranges | None:
    """The ranges that `encode_finished` wrote for this very watermark; () for no text.

    None if the text is not ours, of a version that we do not read, damaged, or belongs to another watermark.
    """
    if not text:
        return ()
    if not text.startswith(_VERSION):
        return None
    try:
        packed = base64.b64decode(text[len(_VERSION) :], validate=True)
        check, body = int.from_bytes(packed[:4], "big"), packed[4:]
        if len(packed) < 5 or check != _checksum(watermark, body):
            return None
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(body, 1 << 20)
    except (binascii.Error, ValueError, zlib.error):
        return None
    if not plain:
        return None
    if plain[0] == _DISTANCES:
        return _from_distances(watermark, plain[1:])
    if plain[0] == _BITS:
        return _from_bits(watermark, plain[1:])
    return None


def _pack(watermark: int, ranges: Ranges) -> str:
    body = zlib.compress(bytes([_DISTANCES]) + _distances(watermark, ranges), 6)
    extent = ranges[-1][1] - watermark
    if len(body) > extent // 8:
        bits = zlib.compress(bytes([_BITS]) + _bits(watermark, ranges), 6)
        if len(bits) < len(body):
            body = bits
    return _VERSION + base64.b64encode(_checksum(watermark, body).to_bytes(4, "big") + body).decode("ascii")


def _checksum(watermark: int, body: bytes) -> int:
    # The watermark is part of it: a map never applies to an offset that an operator set by hand.
    return zlib.crc32(body, zlib.crc32(watermark.to_bytes(8, "big")))


def _distances(watermark: int, ranges: Iterable[tuple[int, int]]) -> bytes:
    out = bytearray()
    edge = watermark
    for first, last in ranges:
        for number in (first - edge, last - first):
            while number > 0x7F:
                out.append(number & 0x7F | 0x80)
                number >>= 7
            out.append(number)
        edge = last
    return bytes(out)


def _from_distances(watermark: int, body: bytes) -> Ranges | None:
    numbers: list[int] = []
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
        elif shift > 63:
            return None
    if shift or len(numbers) % 2:
        return None
    return _ranges(watermark, numbers)


def _ranges(watermark: int, numbers: Sequence[int]) -> Ranges | None:
    ranges: list[tuple[int, int]] = []
    edge = watermark
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        if length == 0 or (gap == 0 and ranges):
            return None
        ranges.append((edge + gap, edge + gap + length))
        edge += gap + length
    return tuple(ranges)


def _bits(watermark: int, ranges: Ranges) -> bytes:
    field = 0
    for first, last in ranges:
        field |= ((1 << (last - first)) - 1) << (first - watermark)
    return field.to_bytes((ranges[-1][1] - watermark + 7) // 8, "little")


def _from_bits(watermark: int, body: bytes) -> Ranges:
    ranges: list[tuple[int, int]] = []
    pattern = f"{int.from_bytes(body, 'little'):b}"[::-1]
    start = pattern.find("1")
    while start >= 0:
        end = pattern.find("0", start)
        end = len(pattern) if end < 0 else end
        ranges.append((watermark + start, watermark + end))
        start = pattern.find("1", end)
    return tuple(ranges)
