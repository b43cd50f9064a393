"""The flight of one role: which of its jobs run now, which are published, and which have died how often.

A process that dies leaves its jobs in the log, so that the next one knows which of them ran. A job whose outgoing
record is acked is remembered until a commit covers it. Everything goes through the store's own transactions, one a turn
of the loop; in memory it is what is in flight now, and what earlier runs left. A store lasts as long as its process and
is read as the role's flight is made: what was running has died once more, what was published is remembered.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from itertools import chain

from sluiceway.archive.store import Store
from sluiceway.archive.tables import Stage
from sluiceway.archive.turns import Flown, Place
from sluiceway.core.held import Commit
from sluiceway.core.offsets import decode_finished
from sluiceway.ports import Record

SUSPECT_DEATHS = 3
"""After so many deaths in flight a job runs alone."""

_COUNT = (
    "INSERT INTO deaths VALUES (?, 1, ?, ?) ON CONFLICT (key) DO UPDATE"
    " SET deaths = deaths + 1, alone = max(alone, excluded.alone), at = excluded.at"
)
_FORGIVE = "DELETE FROM deaths WHERE key = ?"
_RUNNING, _ALONE, _PUBLISHED = map(int, Stage)

FLOWN: ContextVar[Flown | None] = ContextVar("flown", default=None)
"""The job that the present task works on."""


class StoreFlight:
    """Implements `ports.Flight` for the role whose consumer group is `group`; one of each group a store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group
        self._counts, self._forgives = store.batch(_COUNT), store.batch(_FORGIVE)
        self._running: dict[Place, Flown] = {}
        self._uncovered: defaultdict[tuple[str, int], list[Flown]] = defaultdict(list)
        self._own: set[Place] = set()  # published in this run, and uncovered
        self._turn = store.turn
        self._published, self._deaths = self._left_over()
        store.pruned.append(self._forget)

    def _left_over(self) -> tuple[dict[bytes, list[Flown]], dict[bytes, tuple[int, bool]]]:
        """What earlier runs published, by key, and how often which job died, the last death included."""
        store = self._store
        published: dict[bytes, list[Flown]] = {}
        died = []
        for job in store.live.jobs.values():
            if job.group != self._group:
                continue
            if job.stage == Stage.PUBLISHED:
                job.known = self._key(job.place)
                published.setdefault(job.known, []).append(job)
            else:
                # Beside another job of its process nobody knows who killed it.
                alone = job.stage == Stage.ALONE and job.number == store.died_alone
                died.append((self._key(job.place), int(alone), store.now()))
                store.turn.forgotten.append(job)
        self._counts.extend(died)
        store.flush()
        with store.transaction() as db:
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
        place = _place(record)
        return place in self._own or (bool(self._published) and self._key(place) in self._published)

    def suspect(self, record: Record) -> bool:
        """True if it was in flight at three deaths of a process: it is to run alone."""
        return bool(self._deaths) and self._died(record)[0] >= SUSPECT_DEATHS

    def condemned(self, record: Record) -> bool:
        """True if a process died while it ran alone: it is not to run again."""
        return bool(self._deaths) and self._died(record)[1]

    def _died(self, record: Record) -> tuple[int, bool]:
        return self._deaths.get(self._key(_place(record)), (0, False))

    # -- noting -------------------------------------------------------------------------------------------------

    def take(self, record: Record, *, alone: bool) -> None:
        """Puts on record, before a task that is made now has its first turn, that the job runs."""
        running, place = self._running, _place(record)
        if place in running:  # taken again before anybody said what came of it
            self._forsake(running[place])
        job = running[place] = Flown(self._group, place, _ALONE if alone else _RUNNING)
        self._turn.taken.append(job)
        self._store.soon()

    def begin(self, record: Record) -> None:
        """To be called in the task that works on it. Raises Bug when it could not be put on record that it runs."""
        self._store.check()
        FLOWN.set(self._running.get(_place(record)))

    def publish(self, record: Record) -> None:
        """Its outgoing record is acked, and a commit is still to come; nothing it died of before counts any more.

        Also for a record that was not taken: one that `was_published`, or a condemned one whose dead letter is acked.
        """
        turn, place = self._turn, _place(record)
        job = self._running.pop(place, None)
        self._store.soon()
        if (self._published or self._deaths) and self._settled_before(place) and job is None:
            return
        if job is None:
            job = Flown(self._group, place, _PUBLISHED)
            turn.taken.append(job)
        job.stage = _PUBLISHED
        turn.published.append(job)
        if job.calls:
            turn.answered += job.calls
        self._uncovered[place[:2]].append(job)
        self._own.add(place)

    def _settled_before(self, place: Place) -> bool:
        """Forgives its deaths. True if an earlier run published it: that needs no memory once a commit covers it."""
        key = self._key(place)
        if self._deaths.pop(key, None) is not None:
            self._forgives.append((key,))
        for job in self._published.get(key, ()):
            job.place = place
            self._uncovered[place[:2]].append(job)
        return key in self._published

    def drop(self, record: Record) -> None:
        """It ended with nothing of it counting (an ended epoch, a stop)."""
        job = self._running.pop(_place(record), None)
        if job is not None:
            self._forsake(job)
            self._store.soon()

    def blame(self, record: Record) -> None:
        """Its work ended this process by a fault of ours: as good as a death, however orderly the stop is."""
        job = self._running.pop(_place(record), None)
        if job is not None:
            self._counts.append((self._key(job.place), int(job.stage == Stage.ALONE), self._store.now()))
            self._forsake(job)
            self._store.soon()

    def _forsake(self, job: Flown) -> None:
        """It may come back as another, who is to find its replies, and those that are still to come."""
        self._turn.forgotten.append(job)
        job.forsaken = True
        self._store.replies.strays.update(job.replies)

    # -- commits ------------------------------------------------------------------------------------------------

    def cover(self, commit: Commit) -> None:
        """The broker has acked it: what was published of what it says to be done needs no memory.

        A record that this epoch has not settled again is not in it, though it was published in an earlier one.
        """
        uncovered = self._uncovered.pop(commit.partition, None)
        if not uncovered:
            return
        done = [job for job in uncovered if job.place[2] < commit.offset]
        if len(done) < len(uncovered):
            covers = _finished(commit)
            above = [job for job in uncovered if job.place[2] >= commit.offset]
            done += [job for job in above if covers(job.place[2])]
            if left := [job for job in above if not covers(job.place[2])]:
                self._uncovered[commit.partition] = left
        self._own.difference_update([job.place for job in done])
        if self._published:
            for job in done:
                if job.known is not None:
                    self._published.pop(job.known, None)
        self._store.replies.release([*chain.from_iterable([job.replies for job in done])])
        self._turn.forgotten += done
        self._store.soon()

    def _forget(self) -> None:
        """What the store has forgotten for its age: a partition that is another worker's for good brings no commit."""
        jobs = self._store.live.jobs
        published = {key: [job for job in found if job.number in jobs] for key, found in self._published.items()}
        self._published = {key: found for key, found in published.items() if found}
        for partition, uncovered in list(self._uncovered.items()):
            if left := [job for job in uncovered if job.number in jobs]:
                self._uncovered[partition] = left
            else:
                del self._uncovered[partition]
        self._own &= {job.place for left in self._uncovered.values() for job in left}

    # -- keys ---------------------------------------------------------------------------------------------------

    def _key(self, place: Place) -> bytes:
        return _key(self._group, place)


def _finished(commit: Commit) -> Callable[[int], bool]:
    """Whether an offset is one of those that the commit says to be done above its own."""
    finished = decode_finished(commit.offset, commit.metadata) or ()
    firsts = [first for first, _ in finished]

    def covers(offset: int) -> bool:
        at = bisect_right(firsts, offset)
        return at > 0 and offset < finished[at - 1][1]

    return covers


def _place(record: Record) -> Place:
    return record.topic, record.partition, record.offset, record.timestamp


def _key(group: str, place: Place | str) -> bytes:
    """The timestamp counts in Kafka's own milliseconds.

    Where only the key is known, as of what format 3 had in flight, it is the place itself, in hex after a #.
    """
    if not isinstance(place, str):
        topic, partition, offset, timestamp = place
        place = f"{topic} {partition} {offset} {round(timestamp * 1000)}"
    elif place[0] == "#":
        return bytes.fromhex(place[1:])
    what = "\0".join([group, *place.split(" ")])
    return hashlib.blake2b(what.encode(), digest_size=16).digest()
