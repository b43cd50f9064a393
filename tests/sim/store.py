"""The local store of a simulated worker: the real one, over a real file, closed as its process's death closes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sluiceway.archive.journal import Entry, Journal
from sluiceway.archive.keys import key_of
from sluiceway.archive.store import Bounds, Store
from sluiceway.archive.turns import Live
from sluiceway.core.call import Call


class SimEntry(Entry):
    """Tells its store's `twice` of a call that is made though its reply is on file."""

    async def started(self) -> None:
        if self._store.replies.held(key_of(self.job, self.call, self.job.digest)) is not None:
            assert isinstance(self._store, SimStore)
            self._store.twice(f"{self.job.id} at {self.call.model.name}")
        await super().started()


class SimJournal(Journal):
    """The journal of one process."""

    made = SimEntry


class SimStore(Store):
    """The store of one process; what was not flushed dies with `die`."""

    def __init__(self, directory: Path, now: Callable[[], float], twice: Callable[[str], None]) -> None:
        super().__init__(directory, bounds=Bounds(), now=now)
        # A simulated death tears no write apart: what keeps a file whole through a real one would only cost time.
        for cheap in ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF"):
            self._db.execute(f"PRAGMA {cheap}")
        self.twice = twice
        self._on_file, self._read_to = Live(), 0
        self._dead = False

    def on_record(self, call: Call) -> bool:
        """Whether the file says that such a call is under way."""
        for row, told in self._db.execute("SELECT id, told FROM turns WHERE id > ? ORDER BY id", (self._read_to,)):
            self._on_file.read(told)
            self._read_to = row
        return any(one[0] == call.job_id and one[2] == call.model.name for one in self._on_file.calls.values())

    def close(self) -> None:
        if not self._dead:
            self._dead = True
            super().close()

    def die(self) -> None:
        """As the operating system does: the file and its lock are let go, and nothing is written."""
        if not self._dead:
            self._dead = True
            self._closing.close()
