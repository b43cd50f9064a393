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

FORMAT = 7

# Whole or not at all: a process that dies here leaves the file as it was. Format 0 is a new file. 1 to 3 had a row for
# each call and each job in flight; the last 16 bytes of a call's key were then what all of it is in 4.
_TO_3 = """
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, job BLOB NOT NULL, job_id TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  draw INTEGER NOT NULL, started REAL NOT NULL, run INTEGER NOT NULL, reply BLOB, ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flight (
  id INTEGER PRIMARY KEY, key BLOB NOT NULL, consumergroup TEXT NOT NULL, stage INTEGER NOT NULL, run INTEGER NOT NULL,
  at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS deaths (
  key BLOB PRIMARY KEY, deaths INTEGER NOT NULL, alone INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
"""
_TO_4 = f"""
BEGIN IMMEDIATE;
{_TO_3}
CREATE TABLE turns (id INTEGER PRIMARY KEY, at REAL NOT NULL, told BLOB NOT NULL);
CREATE TABLE replies (id INTEGER PRIMARY KEY, at REAL NOT NULL, told BLOB NOT NULL);
INSERT INTO turns SELECT NULL, at, CAST('[["t",' || id || ',' || json_quote(consumergroup) || ',"#' || lower(hex(key))
  || '",' || stage || ',' || at || ']]' AS BLOB) FROM flight;
INSERT INTO turns SELECT NULL, started, CAST('[["s",' || -row_number() OVER (ORDER BY started) || ','
  || json_quote(job_id) || ',' || json_quote(task) || ',' || json_quote(model) || ',' || started || ']]' AS BLOB)
  FROM calls WHERE ended = 0;
INSERT INTO replies SELECT NULL, started, CAST('[["' || lower(hex(substr(key, -16))) || '",' || CAST(reply AS TEXT)
  || ']]' AS BLOB) FROM calls WHERE reply IS NOT NULL ORDER BY started;
DROP TABLE calls;
DROP TABLE flight;
DROP TABLE IF EXISTS inputs;
DROP TABLE IF EXISTS published;
DROP TABLE IF EXISTS runs;
PRAGMA user_version = 4;
COMMIT;
"""  # noqa: S608  constants of ours
# In format 4 a row of replies was JSON alone: `tokens` and `numbers` (`archive/reply.py`) are null in those. What the
# log tells is read as 4 told it, too (`archive/turns.py`).
_TO_5 = """
BEGIN IMMEDIATE;
ALTER TABLE replies ADD COLUMN tokens BLOB;
ALTER TABLE replies ADD COLUMN numbers BLOB;
PRAGMA user_version = 5;
COMMIT;
"""
# In format 5 the log said each job and each call by itself (`archive/turns.py`).
_TO_6 = "PRAGMA user_version = 6;"
# In format 6 replies had a table of their own.
_TO_7 = """
BEGIN IMMEDIATE;
ALTER TABLE turns ADD COLUMN replies BLOB;
ALTER TABLE turns ADD COLUMN tokens BLOB;
ALTER TABLE turns ADD COLUMN numbers BLOB;
INSERT INTO turns SELECT NULL, at, CAST('[]' AS BLOB), told, tokens, numbers FROM replies ORDER BY id;
DROP TABLE replies;
PRAGMA user_version = 7;
COMMIT;
"""
_UPGRADES = {
    **dict.fromkeys(range(4), (_TO_4, _TO_5, _TO_6, _TO_7)),
    4: (_TO_5, _TO_6, _TO_7),
    5: (_TO_6, _TO_7),
    6: (_TO_7,),
    FORMAT: (),
}
# What says something of the machine, and nothing of what is in the file.
_MACHINE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
)


class Stage(IntEnum):
    """How far a job in flight has come, as the log tells it."""

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
            db.execute("PRAGMA wal_autocheckpoint = 0")  # the store does it, beside the loop
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
