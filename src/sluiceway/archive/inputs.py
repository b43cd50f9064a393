"""The inputs of recent jobs: an id that comes again with another input than before is told of, once for each input.

Two publishers that share ids, or one that changes a job without a new id, so come to light; both copies run. A job is
its tenant, task, id and round: what a redrive runs again is another. Known are about the last hundred thousand jobs
that called a model, in a table of fixed size in memory, and in the store's file for the next process: a row for each
turn of the loop, whose `told` has a JSON line for each job, [name, digest]; `id` counts the bytes ever told. The parts
of a name have a \\x7f between them, which is one byte in JSON; up to format 5 it was \\0, which is six.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import orjson

from sluiceway.archive.store import Store
from sluiceway.core.job import Job

OnReused = Callable[[Job, str, str], None]
"""Told of a job whose id came before with another input: the digests of that input and of this one, 12 hex digits."""

_SLOTS = 1 << 17
_DIGITS = 12
_ROOM = 16 << 20  # bytes of the file, at most an eighth of it
_STEPS = 64  # what is told is followed by sweeps, each of this part of the room
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
        self._rows, self._forgets = store.batch(_TELL), store.batch(_FORGET)
        self._fresh: list[tuple[str, str]] = []  # of the turn's row
        self._mark = 0
        store.flush()
        with store.transaction() as db:
            db.execute(_TABLE)
            db.execute(_FORGET, (-1, store.now() - store.bounds.age))
            for mark, told in db.execute("SELECT id, told FROM inputs ORDER BY id"):
                self._mark = mark + len(told)
                for line in told.splitlines():
                    name, digest = orjson.loads(line)
                    self._noted(hash(name.replace("\0", "\x7f")), int(digest, 16))
        self._swept = self._mark

    def _noted(self, found: int, now: int) -> int | None:
        """The digest that the name came with first, None where it is new; this one where it was noted already."""
        known, slot = self._known, 2 * (found & (_SLOTS - 1))
        if known[slot] != found:
            known[slot], known[slot + 1] = found, now
            return None
        before = known[slot + 1]
        if (found, now) in self._reported:
            return now
        if before != now:
            if len(self._reported) >= _MOST:
                self._reported.clear()
            self._reported.add((found, now))
        return before

    def saw(self, job: Job, digest: str) -> None:
        """Notes a job and its input's digest, and tells of it where the id came with another one."""
        digest = digest[:_DIGITS]
        name = f"{job.tenant or ''}\x7f{job.task}\x7f{job.id}\x7f{job.round}"
        found, now = hash(name), int(digest, 16)
        before = self._noted(found, now)
        if before == now:
            return
        self._fresh.append((name, digest))
        if before is not None:
            self._reused(job, f"{before:0{_DIGITS}x}", digest)

    def tell(self) -> None:
        """Puts what was seen on record, with the flush that gathers it."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        told = b"\n".join(map(orjson.dumps, fresh)) + b"\n"
        self._rows.append((self._mark, self._store.now(), told))
        self._mark += len(told)
        if self._mark - self._swept >= self._room // _STEPS:
            self._swept = self._mark
            self._forgets.append((self._mark - self._room, self._store.now() - self._store.bounds.age))
