"""The local store: which calls were started, which replies came, and which jobs were in flight, of this instance.

A restart resumes cascades from it: the same events give the same decisions, so a reply that is held here is fed back
instead of being paid for again. One SQLite file in a directory that one process holds locked. It is bounded by size and
age. Losing it costs money, never a job. `archive/journal.py` and `archive/flight.py` say what is written.

What is written survives the death of the process at once (the operating system has it), and that of the machine up to
SQLite's last checkpoint. A job costs it little: all that a turn of the event loop has to tell is one row, its log
(`archive/turns.py`) beside its replies (`archive/replies.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import types
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sluiceway.archive.lock import locked
from sluiceway.archive.replies import Columns, Replies
from sluiceway.archive.tables import opened
from sluiceway.archive.turns import Live, Turn
from sluiceway.core.catalog import Clearance
from sluiceway.core.errors import Bug, InputError

_SLOTS = 256
_TELL = "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)"
_FORGET = "DELETE FROM turns WHERE id < ? AND id NOT IN (SELECT value FROM json_each(?))"
_TOLD_ANEW = (2_000, 4 << 20)  # rows, or bytes, of the log after which what is live is told anew
_PRUNED = 1 / 100  # of the room is written, or of the age goes by, between two looks: a look forgets twice as much
_FOLD = "PRAGMA wal_checkpoint(PASSIVE)"
_FOLDED = 4 << 20  # bytes of rows between two times that SQLite's log goes into the file


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

    What happens to jobs and calls is put into `turn`, and what came back into `replies`, with `soon`. `transaction` and
    `batch` are for what keeps rows of its own in it.
    """

    def __init__(self, directory: Path, *, bounds: Bounds, now: Callable[[], float]) -> None:
        """Raises InputError when another process holds the directory or no file can be made, Bug when it is full."""
        self.directory = directory
        self.now = now
        self.bounds = bounds
        self.live = Live()
        self.pruned: list[Callable[[], None]] = []  # who is told when what is too old has been forgotten
        self.gathers: list[Callable[[], None]] = []  # who is told before a flush
        self.renews: list[Callable[[sqlite3.Connection], None]] = []  # who is told before what is live is told anew
        self._batches: dict[str, list[tuple[Any, ...]]] = {}
        self._due = False  # a flush, at the end of this turn
        self._turns = 0  # that were written, or could not be
        self._fault: Bug | None = None
        self._known = False  # somebody has had the fault
        self._row = 1  # of the next turn
        self._log = [0, 0]  # rows and bytes since what is live was told anew
        self._unfolded = self._unpruned = 0  # bytes of rows
        self._pruned = now()
        self._folding: asyncio.Future[None] | None = None
        lock = locked(directory)
        if lock is None:
            raise InputError("store", f"{directory}: another worker uses it. Mend: give each its own --state directory")
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, lock)
            self._db = opened(directory / "store.db")
            closing.callback(self._db.close)
            with self.transaction() as db:
                for row, told in db.execute("SELECT id, told FROM turns ORDER BY id"):
                    self.live.read(told)
                    self._row = row + 1
                self.replies = Replies(db, self.live.spent)
                self.lost = tuple(LostCall(*call) for call in self.live.calls.values())
                self.live.calls.clear()
                self.died_alone = self.live.only()
                self._tell_anew(db)
            self._closing = closing.pop_all()
        self.turn = Turn(self.live)

    def batch(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that the next flush runs `sql` with. Batches run in the order in which they were first asked for."""
        return self._batches.setdefault(sql, [])

    def row(self, sql: str, values: tuple[Any, ...]) -> Any:
        """The first row that `sql` finds among what is written, None where it finds none. Raises sqlite3.Error."""
        return self._db.execute(sql, values).fetchone()

    @property
    def pending(self) -> int:
        """What the next flush has to write."""
        return len(self.turn) + self.replies.pending + sum(map(len, self._batches.values()))

    def check(self) -> None:
        """Raises Bug where the file took no more: what was noted in a former turn of the loop is not on record."""
        if self._fault is not None:
            self._known = True
            raise self._fault

    @types.coroutine
    def written(self) -> Generator[None]:
        """Returns after the next flush, at the end of this turn of the loop: the task is next in the loop's order.

        It raises Bug where the file took no more, now or before: what failed once is not tried over and over.
        """
        self.check()
        turn = self._turns
        self.soon()
        while self._turns == turn:
            yield
        self.check()

    def soon(self) -> None:
        """The next flush is at the end of this turn of the loop: before a task that is made now has its first.

        The next `written` or `check` raises it if it fails.
        """
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        self._turns += 1
        try:
            self.flush()
        except Bug as error:
            self._fault = error

    def flush(self) -> None:
        """Writes what is gathered, in one transaction. Raises Bug where the file takes no more: the worker stops.

        Nothing else: a fault of those who gather for it is a Bug too, so that nobody takes for written what is not.
        """
        try:
            self._flush()
        except Bug:
            raise
        except Exception as error:
            raise Bug(f"store {self.directory}: {error!r}") from error

    def _flush(self) -> None:
        for gather in self.gathers:
            gather()
        if not self.pending:
            return
        now = self.now()
        told = self.turn.told(now)
        if spent := self.replies.spent():
            told.append(("r", *spent))
        batches = [(sql, rows.copy()) for sql, rows in self._batches.items() if rows]
        for rows in self._batches.values():
            rows.clear()
        with self.transaction() as db:
            self._tell(db, now, orjson.dumps(told), self.replies.write(self._row))
            for sql, rows in batches:
                db.executemany(sql, rows)
            if self._log[0] > _TOLD_ANEW[0] or self._log[1] > _TOLD_ANEW[1]:
                self._tell_anew(db)
        if self._folding is not None and self._folding.done():
            self._folding = None
            self._db.execute(_FOLD).close()  # what came in meanwhile; all of it folded, the next write begins anew
        if self._unfolded >= _FOLDED and self._folding is None:
            self._unfolded = 0
            with contextlib.suppress(RuntimeError):  # no loop runs, or its threads have ended: `close` folds too
                self._folding = asyncio.get_running_loop().run_in_executor(None, self._fold)
        if self._unpruned >= self.bounds.size * _PRUNED or now - self._pruned >= self.bounds.age * _PRUNED:
            self._prune()

    def _fold(self) -> None:
        """Beside the loop: its bulk takes the disk a tenth of a second, and the loop writes on meanwhile."""
        file = self.directory / "store.db"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=1.0)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            for _ in range(2):  # the second time, what the first took so long for
                db.execute(_FOLD)

    def _tell(self, db: sqlite3.Connection, now: float, told: bytes, replies: Columns = (None, None, None)) -> None:
        db.execute(_TELL, (self._row, now, told, *replies))
        size = len(told) + sum([len(column) for column in replies if column is not None])
        self._row += 1
        self._log[0] += 1
        self._log[1] += size
        self._unfolded += size
        self._unpruned += size

    def _tell_anew(self, db: sqlite3.Connection) -> None:
        for renew in self.renews:
            renew(db)
        db.execute(_FORGET, (self._row, orjson.dumps(self.replies.rows).decode()))
        self._tell(db, self.now(), self.live.told())
        self._log = [0, 0]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done with it, or nothing. Raises Bug where the file takes no more: the worker stops."""
        try:
            self._db.execute("BEGIN")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._bug(error) from None
            raise

    def prune(self) -> None:
        """Forgets what the bounds do not allow, once what is gathered is written. Raises Bug."""
        self.flush()
        self._prune()

    def _prune(self) -> None:
        """Forgets what is older than the bounds allow, and a fiftieth of the time kept while the file is too large.

        It runs in the loop, so that it does no more at a time than a moment allows; freed pages are written to again.
        """
        self._unpruned, self._pruned = 0, self.now()
        oldest = self._pruned - self.bounds.age
        with self.transaction() as db:
            self.live.forget(oldest)
            self._tell_anew(db)
            db.execute("DELETE FROM deaths WHERE at < ?", (oldest,))
            self.replies.prune(oldest, self._pruned, self.bounds.size)
        for told in self.pruned:
            told()

    def _bug(self, error: sqlite3.Error) -> Bug:
        return Bug(f"store {self.directory}: {error}. Mend: free the disk, or move --state")

    def landed(self) -> bool:
        """Jobs that still run do not count as having died with this process. False where the file takes no more.

        For an orderly end that leaves jobs running; `close` does the same. It writes at once, and never raises.
        """
        try:
            self.flush()  # what was published till now, which is told behind all else, would not be known after this
            self.turn.landed = True
            self.flush()
        except Bug:
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
            elif not self._known:
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
        held = locked(directory)
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
