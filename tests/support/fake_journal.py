"""The journal of a fake model server: one JSON line a request, on disk before the answer leaves.

It is the outside witness for the laws on money, clearance and amplification: whatever the worker under test
believes, the journal says what was asked of which model, with which key, and what it was metered.
A line is written by one `write` on an O_APPEND descriptor, so a killed fake loses no line it has answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Metered:
    """Tokens a fake bills for one call, disjoint, by the names of `sluiceway.core.call.Usage`."""

    input_uncached: int = 0
    input_cache_read: int = 0
    input_cache_write_5m: int = 0
    input_cache_write_1h: int = 0
    output_text: int = 0
    output_reasoning: int = 0

    @property
    def input(self) -> int:
        return self.input_uncached + self.input_cache_read + self.input_cache_write_5m + self.input_cache_write_1h

    @property
    def output(self) -> int:
        return self.output_text + self.output_reasoning


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One request as the fake saw it, with what it answered and metered.

    `metered` is what the provider would bill: None where the fault comes before any token is made (429, 503, reset).
    `answered` is `answer`, or the fault's kind; `response_id` is the id in the reply's body, "" where there is none.
    `digest` is of the job text alone, `request_digest` of the whole body, `seen` counts earlier equal digests.
    `notes` are the headers that told the caller when to come back.
    """

    ts: float
    server: str
    seq: int
    method: str
    path: str
    model: str
    digest: str
    request_digest: str
    seen: int
    answered: str
    status: int
    response_id: str = ""
    metered: Metered | None = None
    key_sha256: str = ""
    client_request_id: str = ""
    header_names: tuple[str, ...] = ()
    text: str | None = None
    body: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        return self.answered == "answer"


class Journal:
    """An append-only journal, in memory and, where a path is given, on disk.

    `ends` adds a file beside it that says when each request that was not answered at once ended: answered, or its
    connection closed.
    """

    def __init__(self, path: Path | None = None, *, ends: bool = False) -> None:
        self.path = path
        self.entries: list[JournalEntry] = []
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if path else -1
        self._ends = -1
        if path and ends:
            self._ends = os.open(ends_of(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._changed = asyncio.Event()

    def ended(self, seq: int) -> None:
        if self._ends >= 0:
            os.write(self._ends, b"%d %.6f\n" % (seq, time.time()))

    def append(self, entry: JournalEntry) -> None:
        """The entry is with the kernel when this returns."""
        if self._fd >= 0:
            line = orjson.dumps(asdict(entry)) + b"\n"
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(f"{self.path}: the journal took {written} of {len(line)} bytes")
        self.entries.append(entry)
        self._changed.set()

    async def wait_for(self, enough: Callable[[list[JournalEntry]], bool], *, within: float = 30.0) -> None:
        """Returns once `enough(entries)` holds. TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            while not enough(self.entries):
                self._changed.clear()
                await self._changed.wait()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._ends >= 0:
            os.close(self._ends)
            self._ends = -1


def ends_of(journal: Path) -> Path:
    """The file that says when each request of a journal ended."""
    return journal.with_name(f"{journal.name}.ends")


def read_ends(journal: Path) -> dict[int, float]:
    """When each request ended, by its `seq`, in seconds since the epoch; one that still runs is not there."""
    lines = ends_of(journal).read_text().splitlines()
    return {int(seq): float(at) for seq, at in (line.split() for line in lines)}


def read_journal(path: Path | str) -> list[JournalEntry]:
    """All entries of a journal file, in order; a last line cut by a kill is left out (it was never answered)."""
    entries = []
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        raw = json.loads(line)
        metered = raw.pop("metered")
        raw["header_names"] = tuple(raw["header_names"])
        entries.append(JournalEntry(**raw, metered=Metered(**metered) if metered else None))
    return entries


def await_journal(
    path: Path, enough: Callable[[list[JournalEntry]], bool], *, within: float = 30.0
) -> list[JournalEntry]:
    """The entries once `enough(entries)` holds, for a fake in another process. TimeoutError after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        entries = read_journal(path) if path.exists() else []
        if enough(entries):
            return entries
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}: {len(entries)} requests after {within} s, still not enough")
        time.sleep(0.02)
