"""The local store: which calls were started, which replies came, and which jobs were in flight, of this instance.

A restart resumes cascades from it: the same events give the same decisions, so a reply that is held here is fed back
instead of being paid for again. One SQLite file in a directory that one process holds locked. It is bounded by size and
age, and holds no reply of data above its clearance. Losing it costs money, never a job. Jobs in flight are written and
read by `archive/flight.py`, in the same transactions.

What is written survives the death of the process at once (the operating system has it), and that of the machine up to
SQLite's last checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluiceway.archive.reply import decode_reply, encode_reply
from sluiceway.archive.tables import FORMER, Stage, next_run, opened
from sluiceway.core.call import Call, Reply
from sluiceway.core.catalog import Clearance
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.job import Job

_SLOTS = 256
_REMEMBERED = 4096  # calls under way whose keys are kept
_CALLS = (("calls", "started"), ("inputs", "at"))  # what is forgotten first where the file is too large


@dataclass(frozen=True, slots=True)
class LostCall:
    """A call that was started by a process that died before its reply came: it may have been billed."""

    job_id: str
    task: str
    model: str
    started: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """`size` in bytes of the file, `age` in seconds; replies of data above `clearance` are not kept."""

    size: int = 1 << 30
    age: float = 86_400.0
    clearance: Clearance = Clearance.CONFIDENTIAL


class Store:
    """`now` tells seconds since the epoch. Writes are gathered and go to the file once a turn of the event loop.

    `transaction`, `batch`, `number` and `run` (of this opening of the file) are for what keeps rows of its own in it.
    """

    def __init__(self, directory: Path, *, bounds: Bounds, now: Callable[[], float]) -> None:
        """Raises InputError when another process holds the directory or no file can be made, Bug when it is full."""
        self.directory = directory
        self.now = now
        self._bounds = bounds
        self._batches: dict[str, list[tuple[Any, ...]]] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._due = False
        self._fault: Bug | None = None
        self._told = False  # somebody has had the fault
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._unwritten: dict[bytes, bytes | None] = {}  # replies
        self._keys: dict[int, tuple[Call, bytes]] = {}
        self._written = 0
        lock = _locked(directory)
        if lock is None:
            raise InputError("store", f"{directory}: another worker uses it. Mend: give each its own --state directory")
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, lock)
            self._db = opened(directory / "store.db")
            closing.callback(self._db.close)
            with self.transaction() as db:
                self.run = next_run(db)
                (last,) = db.execute("SELECT coalesce(max(id), 0) FROM flight").fetchone()
                lost = db.execute(
                    "SELECT job_id, task, model, started FROM calls WHERE ended = 0 AND run < ?", (self.run,)
                )
                self.lost = tuple(LostCall(*row) for row in lost)
                db.execute("UPDATE calls SET ended = 1 WHERE ended = 0 AND run < ?", (self.run,))
                former = db.execute("SELECT 1 FROM calls WHERE key < ? LIMIT 1", (FORMER + b"\xff" * 16,))
                self._former = former.fetchone() is not None
            self._closing = closing.pop_all()
        self._numbers: Iterator[int] = itertools.count(last + 1)

    # -- calls --------------------------------------------------------------------------------------------------

    def reply(self, job: Job, call: Call) -> Reply | None:
        """The reply that this very call got before, None where none is held."""
        key = self._key(job, call)
        held = self._unwritten.get(key)
        if held is None:
            row = self._db.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
            if row is None and self._former:
                former = FORMER + key[len(FORMER) :]
                row = self._db.execute("SELECT reply FROM calls WHERE key = ?", (former,)).fetchone()
            held = None if row is None else row[0]
        return None if held is None else decode_reply(held)

    def started(self, job: Job, call: Call) -> None:
        """Notes, before it is made, that a call is made. Written by the next `flush`."""
        values = (self._key(job, call), _job(job), job.id, job.task, call.model.name, call.draw, self.now(), self.run)
        self._pending.append(
            (
                "INSERT INTO calls (key, job, job_id, task, model, draw, started, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET started = excluded.started, run = excluded.run, ended = 0",
                values,
            )
        )

    def ended(self, job: Job, call: Call, reply: Reply | None) -> None:
        """Notes that it came back; a reply is kept for a restart unless its data may not be."""
        kept = encode_reply(reply) if reply is not None and call.clearance <= self._bounds.clearance else None
        key = self._key(job, call)
        del self._keys[id(call)]
        self._unwritten[key] = kept
        self._pending.append(("UPDATE calls SET reply = ?, ended = 1 WHERE key = ?", (kept, key)))

    def _key(self, job: Job, call: Call) -> bytes:
        """The call's key: made once for all that is noted of it."""
        known = self._keys.get(id(call))
        if known is not None and known[0] is call:
            return known[1]
        if len(self._keys) >= _REMEMBERED:  # calls that were cancelled
            self._keys.clear()
        key = _key(job, call)
        self._keys[id(call)] = call, key
        return key

    # -- jobs ---------------------------------------------------------------------------------------------------

    def same_input(self, job: Job) -> bool:
        """False where this id was seen before with another input: two publishers, or a publisher's mistake."""
        key, digest = _job(job), bytes.fromhex(job.digest)
        row = self._db.execute("SELECT input FROM inputs WHERE job = ?", (key,)).fetchone()
        if row is None:
            self._pending.append(("INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)", (key, digest, self.now())))
            return True
        return bool(row[0] == digest)

    # -- file ---------------------------------------------------------------------------------------------------

    def batch(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that the next flush runs `sql` with. Batches run in the order in which they were first asked for."""
        return self._batches.setdefault(sql, [])

    def row(self, sql: str, values: tuple[Any, ...]) -> Any:
        """The first row that `sql` finds among what is written, None where it finds none. Raises sqlite3.Error."""
        return self._db.execute(sql, values).fetchone()

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    def number(self) -> int:
        """A number for a row of the table `flight` that no other row has."""
        return next(self._numbers)

    @property
    def pending(self) -> int:
        return len(self._pending) + sum(map(len, self._batches.values()))

    def written(self) -> asyncio.Future[None]:
        """Done after the next flush, at the end of this turn of the loop; a future of the caller's own, to be awaited.

        It raises Bug where the file took no more, now or before: what failed once is not tried over and over.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._fault is not None:
            self._told = True
            future.set_exception(self._fault)
        else:
            self._waiters.append(future)
            self.soon()
        return future

    def soon(self) -> None:
        """The next flush is at the end of this turn of the loop. The next `written` raises it if it fails."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        waiters, self._waiters = self._waiters, []
        try:
            self.flush()
        except Bug as error:
            self._fault = error
        for future in waiters:
            if future.done():
                continue  # who waited was cancelled
            if self._fault is None:
                future.set_result(None)
            else:
                self._told = True
                future.set_exception(self._fault)

    def flush(self) -> None:
        """Writes what is gathered, in one transaction. Raises Bug where the file takes no more: the worker stops."""
        count = self.pending
        if not count:
            return
        pending, self._pending = self._pending, []
        batches = [(sql, rows.copy()) for sql, rows in self._batches.items() if rows]
        for rows in self._batches.values():
            rows.clear()
        self._unwritten.clear()
        with self.transaction() as db:
            for sql, group in itertools.groupby(pending, key=_statement):
                db.executemany(sql, [values for _, values in group])
            for sql, rows in batches:
                db.executemany(sql, rows)
        self._written += count
        if self._written >= 20_000:
            self._written = 0
            self.prune()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done with it, or nothing. Raises Bug where the file takes no more: the worker stops."""
        try:
            self._db.execute("BEGIN")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise self._bug(error) from None

    def prune(self) -> None:
        """Forgets what is older than the bounds allow, and a fiftieth of the time kept while the file is too large.

        It runs in the loop, so that it does no more at a time than a moment allows; freed pages are written to again.
        """
        with self.transaction() as db:
            _forget(db, self.now() - self._bounds.age, *_CALLS, ("flight", "at"), ("deaths", "at"))
            (pages,) = db.execute(
                "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
            ).fetchone()
            (page,) = db.execute("PRAGMA page_size").fetchone()
            if pages * page <= self._bounds.size:
                return
            (oldest,) = db.execute("SELECT min(started) FROM calls").fetchone()
            now = self.now()
            _forget(db, now if oldest is None else oldest + (now - oldest) / 50, *_CALLS)

    def _bug(self, error: sqlite3.Error) -> Bug:
        return Bug(f"store {self.directory}: {error}. Mend: free the disk, or move --state")

    def landed(self) -> bool:
        """Jobs that still run do not count as having died with this process. False where the file takes no more.

        For an orderly end that leaves jobs running; `close` does the same. It writes at once, and never raises.
        """
        try:
            self.flush()
            self._db.execute("DELETE FROM flight WHERE run = ? AND stage <> ?", (self.run, Stage.PUBLISHED))
        except (Bug, sqlite3.Error):
            return False  # the process ends whatever comes of it; a death too many only makes a job run alone
        return True

    def close(self) -> None:
        """Writes what is gathered and gives the directory back, in any case. Raises Bug where it was not written.

        A fault that somebody has had is not raised once more, and nothing is written after it.
        """
        try:
            if self._fault is None:
                self.flush()
                self.landed()
            elif not self._told:
                raise self._fault
        finally:
            self._closing.close()


@contextlib.contextmanager
def open_store(root: Path, *, bounds: Bounds, now: Callable[[], float], instance: str | None = None) -> Iterator[Store]:
    """The store of `instance` under `root`; without a name, the first slot that no other process holds.

    A worker that is restarted on the same machine so finds what the one before it left. Raises InputError.
    """
    names = [instance] if instance is not None else [f"slot-{number}" for number in range(_SLOTS)]
    for name in names:
        directory = root / name
        held = _locked(directory)
        if held is None:
            continue
        os.close(held)
        try:
            store = Store(directory, bounds=bounds, now=now)
        except InputError:
            if instance is not None:
                raise
            continue  # another process took the slot between the two looks
        try:
            yield store
        finally:
            store.close()
        return
    what = f"instance {instance} is" if instance is not None else f"all {_SLOTS} slots are"
    raise InputError("store", f"{root}: {what} in use by a live worker. Mend: stop it, or give another --instance")


def _locked(directory: Path) -> int | None:
    """A lock on the directory for as long as the descriptor is open, None where another process has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(
            "store", f"{directory}: {error.strerror}. Mend: name a writable directory with --state"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _forget(db: sqlite3.Connection, before: float, *columns: tuple[str, str]) -> None:
    for table, column in columns:
        db.execute(f"DELETE FROM {table} WHERE {column} < ?", (before,))  # noqa: S608  names of our own


def _statement(pending: tuple[str, tuple[Any, ...]]) -> str:
    return pending[0]


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _job(job: Job) -> bytes:
    return _digest(job.tenant or "", job.task, job.id, str(job.round))


def _key(job: Job, call: Call) -> bytes:
    """Of the same record's same call: a copy published again, or a record of a topic made anew, is another call.

    Calls of neighbouring records are neighbours in the file, so that what is written at a time lies on few pages.
    """
    request, model = call.request, call.model
    asked = (model.name, model.model, *[endpoint.base_url for endpoint in model.endpoints])
    return _order(job.origin) + _digest(
        job.origin,
        repr(job.published_at),
        *asked,
        job.tenant or "",
        job.task,
        job.id,
        str(job.round),
        job.digest,
        call.model.name,
        request.system,
        request.user,
        str(call.draw),
    )


def _order(origin: str) -> bytes:
    """Bytes that rise with the offset within one partition, or with the row within one file."""
    place, _, number = origin.rpartition("/")
    offset = int(number) if number.isdecimal() and len(number) < 19 else 0
    return zlib.crc32(place.encode("utf-8", "surrogatepass")).to_bytes(4, "big") + offset.to_bytes(8, "big")
