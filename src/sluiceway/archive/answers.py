"""The answer cache's part of the local store: a second index of what models said, by the keys of `core.sharing`.

An answer lies here apart from its call, because the two are forgotten by different rules: a call by the store's age, an
answer by the policy's, and at once where the policy no longer lets it be kept. A row that can't be read, or is not what
was written, is a miss. Losing any of it costs money, never a job.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib

from sluiceway.archive.reply import decode_reply, encode_reply
from sluiceway.archive.store import Store
from sluiceway.core.catalog import Clearance
from sluiceway.core.sharing import Kept, Sharing

_SHARE = 4  # the answers take at most this part of the store, or its calls would be forgotten for them
_ROW = 128  # bytes that a row takes beside its reply: the key twice, numbers, SQLite's own
_STEPS = 256  # what is put in is followed by sweeps, each of this part of the room

# `mark` counts the bytes ever put in: rows lie in the order in which they came, and what is too much is a range.
_TABLE = """CREATE TABLE IF NOT EXISTS answers (
  mark INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at REAL NOT NULL, clearance INTEGER NOT NULL,
  crc INTEGER NOT NULL, reply BLOB NOT NULL
)"""
_FORBIDDEN = "DELETE FROM answers WHERE at <= ? OR at > ? OR clearance > ? OR mark <= ?"
_FIND = "SELECT at, crc, reply FROM answers WHERE key = ?"
_KEEP = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)"
_TOO_MUCH = "DELETE FROM answers WHERE mark <= ?"
_TOO_OLD = "DELETE FROM answers WHERE mark <= (SELECT min(mark) FROM answers) + ? AND at <= ?"


class StoreAnswers:
    """Implements `ports.Answers` over a `Store`. Writes go with the store's own, once a turn of the event loop."""

    def __init__(self, store: Store, *, age: float, room: int, most: Clearance) -> None:
        """`age` in seconds and `room` in bytes; data above `most` are not kept. What breaks this goes at once."""
        self._store = store
        self._age = age
        self._room = room
        self._most = most
        self._step = max(1, room // _STEPS)
        self._too_much, self._too_old = store.batch(_TOO_MUCH), store.batch(_TOO_OLD)
        self._kept = store.batch(_KEEP)
        with store.transaction() as db:
            db.execute(_TABLE)
            (self._mark,) = db.execute("SELECT coalesce(max(mark), 0) FROM answers").fetchone()
            now = store.now()
            db.execute(_FORBIDDEN, (now - age, now, int(most), self._mark - room))
        self._swept = self._mark

    def find(self, key: bytes) -> Kept | None:
        """The answer that was written under `key`; None where there is none, or the row is not what was written."""
        try:
            row = self._store.row(_FIND, (key,))
            if row is None:
                return None
            at, crc, reply = row
            return Kept(decode_reply(reply), at) if crc == _crc(key, at, reply) else None
        # Of a file that is broken here; whether it still takes anything, the next write says.
        except (sqlite3.DatabaseError, struct.error, AttributeError, KeyError, TypeError, ValueError):
            return None

    def keep(self, key: bytes, kept: Kept, clearance: Clearance) -> None:
        """Puts it on record in a moment, unless data of `clearance` may not lie here or it is too large."""
        if clearance > self._most:
            return
        reply = encode_reply(kept.reply)
        size = len(reply) + _ROW
        if size > self._room:
            return
        self._mark += size
        self._kept.append((self._mark, key, kept.at, int(clearance), _crc(key, kept.at, reply), reply))
        if self._mark - self._swept >= self._step:
            self._too_much.append((self._mark - self._room,))
            self._too_old.append((2 * (self._mark - self._swept), self._store.now() - self._age))
            self._swept = self._mark
        self._store.soon()


def open_answers(store: Store, rules: Sharing) -> StoreAnswers | None:
    """The store's answers under the policy's `rules`; None where it keeps none, and then no former one is left."""
    if rules.cache is None:
        with store.transaction() as db:
            db.execute("DROP TABLE IF EXISTS answers")
        return None
    most = store.bounds.clearance if rules.confidential else min(store.bounds.clearance, Clearance.INTERNAL)
    room = min(rules.cache_size, store.bounds.size // _SHARE)
    return StoreAnswers(store, age=rules.cache, room=room, most=most)


def _crc(key: bytes, at: float, reply: bytes) -> int:
    return zlib.crc32(reply, zlib.crc32(key + struct.pack(">d", at)))
