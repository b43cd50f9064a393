"""What one role had in flight, over the local store: who ran when a process died, and what it had already published.

A record is known by (group, topic, partition, offset, timestamp): offsets come again when a topic is made anew, so the
timestamp belongs to it. A row lives while its job runs, and once that is published until a commit covers it; so an
operator who resets the group's offsets later gets those jobs done again. Rows that an earlier run of the instance left
are read as the role's flight is made: what was running has died once more, what was published is not to be run again.
"""

from __future__ import annotations

import hashlib

from sluiceway.archive.store import Store
from sluiceway.archive.tables import Stage
from sluiceway.core.held import Commit, Partition
from sluiceway.core.offsets import decode_finished
from sluiceway.ports import Record

SUSPECT_DEATHS = 3

# What is put into these texts are texts and numbers of this file.
_TAKE = "INSERT INTO flight VALUES (?, ?, ?, ?, ?, ?)"
_PUBLISH = f"UPDATE flight SET stage = {Stage.PUBLISHED:d} WHERE id = ?"  # noqa: S608
_COUNT = "ON CONFLICT (key) DO UPDATE SET deaths = deaths + 1, alone = max(alone, excluded.alone), at = excluded.at"
_BLAME = f"INSERT INTO deaths SELECT key, 1, stage = {Stage.ALONE:d}, ? FROM flight WHERE id = ? {_COUNT}"  # noqa: S608
_END = "DELETE FROM flight WHERE id = ?"
_FORGIVE = "DELETE FROM deaths WHERE key = ?"
_LEFT = "consumergroup = ? AND run < ? AND stage"
# Run once, as a role opens: all or nothing, or a death would be counted twice.
_DIED = f"INSERT INTO deaths SELECT key, 1, max(stage), ? FROM flight WHERE {_LEFT} < ? GROUP BY key {_COUNT}"  # noqa: S608
_LEAVE = f"DELETE FROM flight WHERE {_LEFT} < ?"  # noqa: S608
_ACKED = f"SELECT key, id FROM flight WHERE {_LEFT} = ?"  # noqa: S608

Coordinates = tuple[str, int, int, int]


class StoreFlight:
    """Implements `ports.Flight` for the role whose consumer group is `group`; one of each group a store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group
        # Asked for in this order, so that a row is made, changed and deleted in this order within one flush.
        self._takes, self._publishes = store.batch(_TAKE), store.batch(_PUBLISH)
        self._blames, self._ends, self._forgives = store.batch(_BLAME), store.batch(_END), store.batch(_FORGIVE)
        self._running: dict[Coordinates, int] = {}
        self._uncovered: dict[Partition, list[tuple[int, bytes | None, Coordinates]]] = {}
        self._own: set[Coordinates] = set()  # published in this run, and uncovered
        self._published, self._deaths = self._left_over()

    def _left_over(self) -> tuple[dict[bytes, list[int]], dict[bytes, tuple[int, bool]]]:
        """What earlier runs published, as key -> rows, and how often which job died, the last death included."""
        earlier = (self._group, self._store.run, int(Stage.PUBLISHED))
        published: dict[bytes, list[int]] = {}
        with self._store.transaction() as db:
            db.execute(_DIED, (self._store.now(), *earlier))
            db.execute(_LEAVE, earlier)
            for key, row in db.execute(_ACKED, earlier):
                published.setdefault(key, []).append(row)
            dead = db.execute("SELECT key, deaths, alone FROM deaths").fetchall()
        return published, {key: (deaths, bool(alone)) for key, deaths, alone in dead}

    # -- looking ------------------------------------------------------------------------------------------------

    def was_published(self, record: Record) -> bool:
        """True if its outgoing record was acked and no commit covered it since, by an earlier run or by this one.

        By this one where a commit was refused, its partition being gone, and the partition came back. Whoever then
        settles it calls `publish` for it, so that the next commit covers it.
        """
        if not self._own and not self._published:
            return False
        coordinates = _coordinates(record)
        return coordinates in self._own or (bool(self._published) and self._key(coordinates) in self._published)

    def suspect(self, record: Record) -> bool:
        """True if it was in flight at three deaths of a process: it is to run alone."""
        return bool(self._deaths) and self._died(record)[0] >= SUSPECT_DEATHS

    def condemned(self, record: Record) -> bool:
        """True if a process died while it ran alone: it is not to run again."""
        return bool(self._deaths) and self._died(record)[1]

    def _died(self, record: Record) -> tuple[int, bool]:
        return self._deaths.get(self._key(_coordinates(record)), (0, False))

    # -- noting -------------------------------------------------------------------------------------------------

    async def take(self, record: Record, *, alone: bool) -> None:
        """Returns when it is on record that the job runs. Raises Bug when the store can't be written."""
        coordinates = _coordinates(record)
        before = self._running.get(coordinates)
        if before is not None:  # taken again before anybody said what came of it
            self._ends.append((before,))
        self._insert(coordinates, Stage.ALONE if alone else Stage.RUNNING)
        await self._store.written()

    def publish(self, record: Record) -> None:
        """Its outgoing record is acked, and a commit is still to come; nothing it died of before counts any more.

        Also for a record that was not taken: one that `was_published`, or a condemned one whose dead letter is acked.
        """
        coordinates = _coordinates(record)
        row = self._running.get(coordinates)
        known = self._key(coordinates) if self._published or self._deaths else None
        uncovered = self._uncovered.setdefault(Partition(record.topic, record.partition), [])
        if known in self._published:
            uncovered.append((0, known, coordinates))
        elif row is None:
            row = self._insert(coordinates, Stage.PUBLISHED)
        if row is not None:
            del self._running[coordinates]
            self._publishes.append((row,))
            uncovered.append((row, None, coordinates))
            self._own.add(coordinates)
        if known is not None and self._deaths.pop(known, None) is not None:
            self._forgives.append((known,))
        self._store.soon()

    def drop(self, record: Record) -> None:
        """It ended with nothing of it counting (an ended epoch, a stop)."""
        row = self._running.pop(_coordinates(record), None)
        if row is not None:
            self._ends.append((row,))
            self._store.soon()

    def blame(self, record: Record) -> None:
        """Its work ended this process by a fault of ours: as good as a death, however orderly the stop is."""
        row = self._running.pop(_coordinates(record), None)
        if row is not None:
            self._blames.append((self._store.now(), row))
            self._ends.append((row,))
            self._store.soon()

    # -- commits ------------------------------------------------------------------------------------------------

    def cover(self, commit: Commit) -> None:
        """The broker has acked it: what was published of what it says to be done needs no memory.

        A record that this epoch has not settled again is not in it, though it was published in an earlier one.
        """
        uncovered = self._uncovered.pop(commit.partition, None)
        if not uncovered:
            return
        finished = decode_finished(commit.offset, commit.metadata) or ()
        left = []
        for entry in uncovered:
            row, known, coordinates = entry
            offset = coordinates[2]
            if offset >= commit.offset and not any(first <= offset < last for first, last in finished):
                left.append(entry)
                continue
            self._own.discard(coordinates)
            rows = [row] if known is None else self._published.pop(known, ())
            self._ends.extend((row,) for row in rows)
        if left:
            self._uncovered[commit.partition] = left
        self._store.soon()

    # -- rows ---------------------------------------------------------------------------------------------------

    def _insert(self, coordinates: Coordinates, stage: Stage) -> int:
        row = self._running[coordinates] = self._store.number()
        key, store = self._key(coordinates), self._store
        self._takes.append((row, key, self._group, int(stage), store.run, store.now()))
        return row

    def _key(self, coordinates: Coordinates) -> bytes:
        topic, partition, offset, timestamp = coordinates
        what = f"{self._group}\0{topic}\0{partition}\0{offset}\0{timestamp}"
        return hashlib.blake2b(what.encode(), digest_size=16).digest()


def _coordinates(record: Record) -> Coordinates:
    """The timestamp in Kafka's own milliseconds."""
    return record.topic, record.partition, record.offset, round(record.timestamp * 1000)
