"""The local store's file: its tables, its format, and what happens to a file of another format.

Version N reads what N-1 wrote, so that a worker that is upgraded pays for nothing twice. Any other file is set aside,
never half read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from enum import IntEnum
from pathlib import Path

from sluiceway.core.errors import InputError

FORMAT = 3
FORMER = bytes(12)
"""What the keys of former calls begin with, where those of format 3 say their place among the calls."""

# Whole or not at all: a process that dies here leaves the file as it was. Format 0 is a new file; 1 had a table of
# published origins that nothing wrote to; the keys of 2 said nothing of a call's place.
_TO_2 = """
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS published;
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, job BLOB NOT NULL, job_id TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  draw INTEGER NOT NULL, started REAL NOT NULL, run INTEGER NOT NULL, reply BLOB, ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_started ON calls (started);
CREATE INDEX IF NOT EXISTS calls_open ON calls (run) WHERE ended = 0;
CREATE TABLE IF NOT EXISTS inputs (job BLOB PRIMARY KEY, input BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (run INTEGER PRIMARY KEY);
INSERT INTO runs SELECT coalesce(max(run), 0) FROM calls;
CREATE TABLE flight (
  id INTEGER PRIMARY KEY, key BLOB NOT NULL, consumergroup TEXT NOT NULL, stage INTEGER NOT NULL, run INTEGER NOT NULL,
  at REAL NOT NULL
);
CREATE TABLE deaths (
  key BLOB PRIMARY KEY, deaths INTEGER NOT NULL, alone INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""
_TO_3 = f"""
BEGIN IMMEDIATE;
UPDATE calls SET key = CAST(x'{FORMER.hex()}' || key AS BLOB);
PRAGMA user_version = 3;
COMMIT;
"""  # noqa: S608  a constant of ours
_UPGRADES = {0: (_TO_2, _TO_3), 1: (_TO_2, _TO_3), 2: (_TO_3,), FORMAT: ()}
# What says something of the machine, and nothing of what is in the file.
_MACHINE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
)


class Stage(IntEnum):
    """How far a job in flight has come, as the column `stage` says it."""

    RUNNING = 0
    ALONE = 1  # it runs, and nothing else does
    PUBLISHED = 2  # its outgoing record is acked, and no commit says so yet


def opened(file: Path) -> sqlite3.Connection:
    """The database in autocommit mode, in the present format. A broken file, or one of a foreign format, is set aside.

    Raises InputError where the machine has no room or no leave for it.
    """
    for _ in range(2):
        db: sqlite3.Connection | None = None
        usable = False
        try:
            db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found in _UPGRADES:
                for script in _UPGRADES[found]:
                    db.executescript(script)
                usable = True
                return db
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _MACHINE:
                raise InputError("store", f"{file}: {error}. Mend: free the disk, or move --state") from None
        finally:
            if db is not None and not usable:
                db.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{file}{suffix}", f"{file}.aside{suffix}")
    raise InputError("store", f"{file}: can't be opened. Mend: remove the file; what it held may be paid for again")


def next_run(db: sqlite3.Connection) -> int:
    """The number of this opening of the file, higher than any before it."""
    cursor = db.execute("INSERT INTO runs SELECT max(run) + 1 FROM runs")
    run = cursor.lastrowid
    assert run is not None  # noqa: S101  an INSERT that did not raise
    db.execute("DELETE FROM runs WHERE run < ?", (run,))
    return run
