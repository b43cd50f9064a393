"""The replies that the local store holds: in memory until they are written, then in rows of the file.

All that are written together are one row (`archive/reply.py`), which goes when none of them is needed any more.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import repeat

from sluiceway.archive.keys import is_former
from sluiceway.archive.reply import decode_replies, encode_replies
from sluiceway.core.call import Reply


class Replies:
    """Those that `db` holds, read at once, and what comes. `write` and `prune` are for within a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._kept: dict[str, Reply] = {}  # and not written yet
        self._held: dict[str, int] = {}  # written, and the rows that they are in
        self._left: Counter[int] = Counter()  # how many replies of a row are needed
        self._next = 1  # row
        rows = []
        for row, *columns in db.execute("SELECT id, told, tokens, numbers FROM replies ORDER BY id"):
            rows.append(row)
            self._next = row + 1
            self._held.update(dict.fromkeys(decode_replies(*columns) or (), row))
        self.former = any(map(is_former, self._held))
        self.strays = set(self._held)  # that belong to no job which is in flight now, as far as is known
        self._left.update(self._held.values())
        self._gone = [(row,) for row in rows if row not in self._left]  # rows of which none is needed

    @property
    def pending(self) -> int:
        """Replies to be written."""
        return len(self._kept)

    @property
    def due(self) -> bool:
        """Whether there is something to write, or rows to delete."""
        return bool(self._kept or self._gone)

    def keep(self, key: str, reply: Reply) -> None:
        """Holds a reply until it is released or too old."""
        if key in self._held:
            self.release([key])
        self._kept[key] = reply

    def held(self, key: str) -> Reply | None:
        """None where none is held. Raises sqlite3.Error."""
        row = self._held.get(key)
        if row is None:
            return self._kept.get(key)
        found = self._db.execute("SELECT told, tokens, numbers FROM replies WHERE id = ?", (row,)).fetchone()
        return None if found is None else (decode_replies(*found) or {}).get(key)

    def release(self, keys: Sequence[str]) -> None:
        """Nobody will ask for these any more."""
        if self.strays:
            self.strays.difference_update(keys)
        for row, count in Counter(map(self._held.pop, keys, repeat(0))).items():
            if not row:
                for key in keys:
                    self._kept.pop(key, None)
                continue
            self._left[row] -= count
            if not self._left[row]:
                del self._left[row]
                self._gone.append((row,))

    def write(self, now: float) -> int:
        """The bytes of the row. What can't be written is held no more."""
        kept, self._kept = self._kept, {}
        gone, self._gone = self._gone, []
        size = 0
        if kept:
            columns = encode_replies(kept)
            if kept:
                self._db.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?)", (self._next, now, *columns))
                self._held.update(dict.fromkeys(kept, self._next))
                self._left[self._next] = len(kept)
                self._next += 1
                size = sum(map(len, columns))
        if gone:
            self._db.executemany("DELETE FROM replies WHERE id = ?", gone)
        return size

    def prune(self, oldest: float, now: float, room: int) -> None:
        """Forgets what was written before `oldest`, and a fiftieth of the time kept while the file is above `room`."""
        db = self._db
        db.execute("DELETE FROM replies WHERE at < ?", (oldest,))
        (pages,) = db.execute(
            "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()
        (page,) = db.execute("PRAGMA page_size").fetchone()
        (first,) = db.execute("SELECT min(at) FROM replies").fetchone()
        if first is not None and pages * page > room:
            db.execute("DELETE FROM replies WHERE at < ?", (first + (now - first) / 50,))
        (first,) = db.execute("SELECT min(id) FROM replies").fetchone()
        least = self._next if first is None else first
        if any(row < least for row in self._left):
            self._held = {key: row for key, row in self._held.items() if row >= least}
            self._left = Counter(self._held.values())
            self.strays.intersection_update(self._held)
