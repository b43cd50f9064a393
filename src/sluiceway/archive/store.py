"""The local store: which calls were started, which replies came, which records were published, by this instance.

A restart resumes cascades from it: the same events give the same decisions, so a reply that is held here is fed back
instead of being paid for again. One SQLite file in a directory that one process holds locked. It is bounded by size and
age, and holds no reply of data above its clearance. Losing it costs money, never a job.

What is written survives the death of the process at once (the operating system has it), and that of the machine up to
SQLite's last checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sluiceway.core.call import Call, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.catalog import Clearance
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.job import Job

FORMAT = 1  # of the file; a store of another format is set aside, never half read
_SLOTS = 256
_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, job BLOB NOT NULL, job_id TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  draw INTEGER NOT NULL, started REAL NOT NULL, run INTEGER NOT NULL, reply BLOB, ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_started ON calls (started);
CREATE INDEX IF NOT EXISTS calls_open ON calls (run) WHERE ended = 0;
CREATE TABLE IF NOT EXISTS published (origin BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS published_at ON published (at);
CREATE TABLE IF NOT EXISTS inputs (job BLOB PRIMARY KEY, input BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
"""


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
    """`now` tells seconds since the epoch. Writes are gathered and go to the file once a turn of the event loop."""

    def __init__(self, directory: Path, *, bounds: Bounds, now: Callable[[], float]) -> None:
        """Raises InputError when another process holds the directory, or it can't be written."""
        self.directory = directory
        self._bounds, self._now = bounds, now
        self._lock = _locked(directory)
        if self._lock is None:
            raise InputError("store", f"{directory}: another worker uses it. Mend: give each its own --state directory")
        self._db = _opened(directory / "store.db")
        (last,) = self._db.execute("SELECT coalesce(max(run), 0) FROM calls").fetchone()
        self._run = last + 1
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._unwritten: dict[bytes, bytes | None] = {}  # replies, and origins that were published
        self._written = 0
        self.lost = tuple(
            LostCall(*row)
            for row in self._db.execute(
                "SELECT job_id, task, model, started FROM calls WHERE ended = 0 AND run < ?", (self._run,)
            )
        )
        self._db.execute("UPDATE calls SET ended = 1 WHERE ended = 0 AND run < ?", (self._run,))
        self._db.commit()

    # -- calls --------------------------------------------------------------------------------------------------

    def reply(self, job: Job, call: Call) -> Reply | None:
        """The reply that this very call got before, None where none is held."""
        key = _key(job, call)
        held = self._unwritten.get(key)
        if held is None:
            row = self._db.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
            held = None if row is None else row[0]
        return None if held is None else _decode(held)

    def started(self, job: Job, call: Call) -> None:
        """Notes, before it is made, that a call is made. Written by the next `flush`."""
        values = (_key(job, call), _job(job), job.id, job.task, call.model.name, call.draw, self._now(), self._run)
        self._pending.append(
            (
                "INSERT INTO calls (key, job, job_id, task, model, draw, started, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET started = excluded.started, run = excluded.run, ended = 0",
                values,
            )
        )

    def ended(self, job: Job, call: Call, reply: Reply | None) -> None:
        """Notes that it came back; a reply is kept for a restart unless its data may not be."""
        kept = _encode(reply) if reply is not None and call.clearance <= self._bounds.clearance else None
        key = _key(job, call)
        self._unwritten[key] = kept
        self._pending.append(("UPDATE calls SET reply = ?, ended = 1 WHERE key = ?", (kept, key)))

    # -- jobs ---------------------------------------------------------------------------------------------------

    def same_input(self, job: Job) -> bool:
        """False where this id was seen before with another input: two publishers, or a publisher's mistake."""
        key, digest = _job(job), bytes.fromhex(job.digest)
        row = self._db.execute("SELECT input FROM inputs WHERE job = ?", (key,)).fetchone()
        if row is None:
            self._pending.append(("INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)", (key, digest, self._now())))
            return True
        return bool(row[0] == digest)

    def published(self, origin: str) -> None:
        """Notes that the broker has acked the outgoing record of the record at `origin`."""
        key = _digest(origin)
        self._unwritten[key] = b""
        self._pending.append(("INSERT OR IGNORE INTO published VALUES (?, ?)", (key, self._now())))

    def was_published(self, origin: str) -> bool:
        key = _digest(origin)
        if key in self._unwritten:
            return True
        return self._db.execute("SELECT 1 FROM published WHERE origin = ?", (key,)).fetchone() is not None

    # -- file ---------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._pending)

    def flush(self) -> None:
        """Writes what is gathered, in one transaction. Raises Bug where the file takes no more: the worker stops."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        self._unwritten.clear()
        self._db.execute("BEGIN")
        try:
            statement: str = ""
            group: list[tuple[Any, ...]] = []
            for sql, values in pending:
                if sql != statement and group:
                    self._db.executemany(statement, group)
                    group = []
                statement = sql
                group.append(values)
            self._db.executemany(statement, group)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise Bug(f"store {self.directory}: {error}. Mend: free the disk, or move --state") from None
        self._written += len(pending)
        if self._written >= 20_000:
            self._written = 0
            self.prune()

    def prune(self) -> None:
        """Forgets what is older than the bounds allow, and the oldest tenth while the file is too large."""
        oldest = self._now() - self._bounds.age
        self._forget(oldest)
        (pages,) = self._db.execute(
            "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()
        (page,) = self._db.execute("PRAGMA page_size").fetchone()
        if pages * page > self._bounds.size:
            row = self._db.execute(
                "SELECT started FROM calls ORDER BY started LIMIT 1 OFFSET (SELECT count(*) / 10 FROM calls)"
            ).fetchone()
            self._forget(row[0] if row else self._now())
            self._db.execute("VACUUM")

    def _forget(self, before: float) -> None:
        for table, column in (("calls", "started"), ("published", "at"), ("inputs", "at")):
            self._db.execute(f"DELETE FROM {table} WHERE {column} < ?", (before,))  # noqa: S608  names of our own
        self._db.commit()

    def close(self) -> None:
        self.flush()
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


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


def _opened(file: Path) -> sqlite3.Connection:
    """The database, made anew where the file is broken or of another format: it is then set aside."""
    for _ in range(2):
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found in (0, FORMAT):
                db.executescript(_TABLES)
                db.execute(f"PRAGMA user_version = {FORMAT}")
                return db
        except sqlite3.DatabaseError:
            pass  # set aside below
        db.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{file}{suffix}", f"{file}.aside{suffix}")
    raise InputError("store", f"{file}: can't be opened. Mend: remove the file; what it held may be paid for again")


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _job(job: Job) -> bytes:
    return _digest(job.tenant or "", job.task, job.id, str(job.round))


def _key(job: Job, call: Call) -> bytes:
    """Of the same record's same call: a copy published again, or a record of a topic made anew, is another call."""
    request, model = call.request, call.model
    asked = (model.name, model.model, *(endpoint.base_url for endpoint in model.endpoints))
    return _digest(
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


def _encode(reply: Reply) -> bytes:
    logprobs = [
        (token.token.hex(), token.logprob, [(other.hex(), logprob) for other, logprob in token.top])
        for token in reply.logprobs
    ]
    return orjson.dumps(
        {
            "text": reply.text,
            "usage": reply.usage,
            "finish": reply.finish,
            "logprobs": logprobs,
            "distribution": reply.distribution,
            "model_served": reply.model_served,
            "response_id": reply.response_id,
            "endpoint": reply.endpoint,
            "seconds": reply.seconds,
        }
    )


def _decode(value: bytes) -> Reply:
    tree = orjson.loads(value)
    return Reply(
        text=tree["text"],
        usage=Usage(**tree["usage"]),
        finish=FinishReason(tree["finish"]),
        logprobs=tuple(
            TokenLogprob(bytes.fromhex(token), logprob, tuple((bytes.fromhex(other), p) for other, p in top))
            for token, logprob, top in tree["logprobs"]
        ),
        distribution=tree["distribution"],
        model_served=tree["model_served"],
        response_id=tree["response_id"],
        endpoint=tree["endpoint"],
        seconds=tree["seconds"],
    )
