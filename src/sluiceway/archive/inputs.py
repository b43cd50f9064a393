"""The inputs of recent jobs: an id that comes again with another input than before is told of, once for each input.

Two publishers that share ids, or one that changes a job without a new id, so come to light; both copies run. A job is
its tenant, task, id and round: what a redrive runs again is another. Known are about the last hundred thousand jobs
that called a model, in a table of fixed size in memory. For the next process they stand in the log's rows, and from the
time that what is live is told anew in rows of their own: `told` is JSON lines, each [name, digest, name, digest, ...];
`id` counts the bytes ever told. The parts of a name have a \\x7f between them, which is one byte in JSON; up to format
5 it was \\0, which is six.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable
from contextlib import suppress

import orjson

from sluiceway.archive.reply import DAMAGED
from sluiceway.archive.store import Store
from sluiceway.core.job import Job

OnReused = Callable[[Job, str, str], None]
"""Told of a job whose id came before with another input: the digests of that input and of this one, 12 hex digits."""

_SLOTS = 1 << 17
_DIGITS = 12
_ROOM = 16 << 20  # bytes of the file, at most an eighth of it
_TURNS = 32  # of the log, whose inputs are a row when they are put away
_MOST = 10_000  # reports that are remembered

_TABLE = "CREATE TABLE IF NOT EXISTS inputs (id INTEGER PRIMARY KEY, at REAL NOT NULL, told BLOB NOT NULL)"
_TELL = "INSERT INTO inputs VALUES (?, ?, ?)"
_FORGET = "DELETE FROM inputs WHERE id <= ? OR at < ?"


class Inputs:
    """One of each store. `reused` is told of each id that came before with another input."""

    def __init__(self, store: Store, reused: OnReused) -> None:
        self._store = store
        self._reused = reused
        # A name and its digest lie side by side; a later job takes the slot of an earlier one.
        self._known = array("q", bytes(16 * _SLOTS))
        self._reported: set[tuple[int, int]] = set()
        self._room = min(_ROOM, store.bounds.size // 8)
        self._mark = 0
        oldest = store.now() - store.bounds.age
        with store.transaction() as db:
            db.execute(_TABLE)
            db.execute(_FORGET, (-1, oldest))
            for mark, told in db.execute("SELECT id, told FROM inputs ORDER BY id"):
                self._mark = mark + len(told)
                for line in told.splitlines():
                    with suppress(*DAMAGED):
                        self._read(orjson.loads(line))
        for at, names in store.live.inputs:
            if at >= oldest:
                with suppress(*DAMAGED):
                    self._read(names)
        store.renews.append(self._put_away)

    def _read(self, told: list[str]) -> None:
        for name, digest in zip(*[iter(told)] * 2, strict=True):
            self._noted(name.replace("\0", "\x7f"), digest)

    def saw(self, job: Job, digest: str) -> None:
        """Notes a job and its input's digest, and tells of it where the id came with another one."""
        digest = digest[:_DIGITS]
        name = f"{job.tenant or ''}\x7f{job.task}\x7f{job.id}\x7f{job.round}"
        before = self._noted(name, digest)
        if before == digest:
            return
        self._store.turn.seen += name, digest
        if before is not None:
            self._reused(job, before, digest)

    def _noted(self, name: str, digest: str) -> str | None:
        """The digest that the name came with first, None where it is new; this one where it was noted already."""
        found, now = hash(name), int(digest, 16)
        known, slot = self._known, 2 * (found & (_SLOTS - 1))
        if known[slot] != found:
            known[slot] = found
            known[slot + 1] = now
            return None
        before = known[slot + 1]
        if before == now or (found, now) in self._reported:
            return digest
        if len(self._reported) >= _MOST:
            self._reported.clear()
        self._reported.add((found, now))
        return f"{before:0{_DIGITS}x}"

    def _put_away(self, db: sqlite3.Connection) -> None:
        """From the log, which begins anew, into rows of their own."""
        fresh, oldest = self._store.live.inputs, self._store.now() - self._store.bounds.age
        for first in range(0, len(fresh), _TURNS):
            turns = fresh[first : first + _TURNS]
            told = b"".join([orjson.dumps(each) + b"\n" for _, each in turns])
            db.execute(_TELL, (self._mark, turns[-1][0], told))
            self._mark += len(told)
        fresh.clear()
        db.execute(_FORGET, (self._mark - self._room, oldest))
