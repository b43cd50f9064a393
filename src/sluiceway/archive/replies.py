"""The replies that the local store holds: in memory until they are written, then in rows of the file.

Those of a turn of the event loop lie in its row of the log (`archive/reply.py`), which stays while one is needed.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import repeat

from sluiceway.archive.keys import is_former
from sluiceway.archive.reply import decode_replies, encode_replies
from sluiceway.core.call import Reply

_FOUND = "SELECT replies, tokens, numbers FROM turns WHERE id = ?"
_ALL = "SELECT id, replies, tokens, numbers FROM turns WHERE replies IS NOT NULL ORDER BY id"
_FIRST = "SELECT min(at), min(id) FROM turns WHERE replies IS NOT NULL"

Columns = tuple[bytes | None, bytes | None, bytes | None]
_NONE: Columns = (None, None, None)


class Replies:
    """Those that `db` holds but for rows that are `spent`, and what comes. `prune` is for within a transaction."""

    def __init__(self, db: sqlite3.Connection, spent: Collection[int]) -> None:
        self._db = db
        self._kept: dict[str, Reply] = {}  # and not written yet
        self._held: dict[str, int] = {}  # written, and the rows that they are in
        self._spent: list[int] = []  # rows of which none is needed any more, which is not told yet
        for row, *columns in db.execute(_ALL):
            if row not in spent:
                self._held.update(dict.fromkeys(decode_replies(*columns) or (), row))
        self.former = any(map(is_former, self._held))
        self.strays = set(self._held)  # that belong to no job which is in flight now, as far as is known
        self._left = Counter(self._held.values())  # how many replies of a row are needed

    @property
    def pending(self) -> int:
        """Replies to be written, and rows to be told of."""
        return len(self._kept) + len(self._spent)

    @property
    def rows(self) -> list[int]:
        """Those of which some are needed."""
        return list(self._left)

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
        found = self._db.execute(_FOUND, (row,)).fetchone()
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
                self._spent.append(row)

    def spent(self) -> list[int]:
        """Rows of which none is needed any more since this was asked last."""
        spent, self._spent = self._spent, []
        return spent

    def write(self, row: int) -> Columns:
        """What is to be written to `row`, where they are held from now on. What can't be written is held no more."""
        kept, self._kept = self._kept, {}
        columns = encode_replies(kept) if kept else _NONE
        if not kept:
            return _NONE
        self._held.update(dict.fromkeys(kept, row))
        self._left[row] = len(kept)
        return columns

    def prune(self, oldest: float, now: float, room: int) -> None:
        """Forgets what was written before `oldest`, and a fiftieth of the time kept while the file is above `room`."""
        db = self._db
        db.execute("DELETE FROM turns WHERE at < ?", (oldest,))
        (pages,) = db.execute(
            "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()
        (page,) = db.execute("PRAGMA page_size").fetchone()
        first, least = db.execute(_FIRST).fetchone()
        if first is not None and pages * page > room:
            db.execute("DELETE FROM turns WHERE at < ?", (first + (now - first) / 50,))
            _, least = db.execute(_FIRST).fetchone()
        if least is None or any(row < least for row in self._left):
            self._held = {key: row for key, row in self._held.items() if least is not None and row >= least}
            self._left = Counter(self._held.values())
            self.strays.intersection_update(self._held)
