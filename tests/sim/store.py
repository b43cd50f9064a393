"""The local store of a simulated worker: the real one, over a real file, closed as its process's death closes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sluiceway.archive.store import Bounds, Store
from sluiceway.core.call import Call
from sluiceway.core.job import Job


class SimStore(Store):
    """`twice` is told of each call that is made though its reply is on file. What was not flushed dies with `die`."""

    def __init__(self, directory: Path, now: Callable[[], float], twice: Callable[[str], None]) -> None:
        super().__init__(directory, bounds=Bounds(), now=now)
        # A simulated death tears no write apart: what keeps a file whole through a real one would only cost time.
        for cheap in ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF"):
            self._db.execute(f"PRAGMA {cheap}")
        self._twice = twice
        self._dead = False

    def started(self, job: Job, call: Call) -> None:
        if self.reply(job, call) is not None:
            self._twice(f"{job.id} at {call.model.name}")
        super().started(job, call)

    def on_record(self, call: Call) -> bool:
        """Whether the file says that such a call is under way: nothing is open that is not written yet."""
        row = self._db.execute(
            "SELECT 1 FROM calls WHERE ended = 0 AND job_id = ? AND model = ? AND draw = ?",
            (call.job_id, call.model.name, call.draw),
        ).fetchone()
        return row is not None

    def close(self) -> None:
        if not self._dead:
            self._dead = True
            super().close()

    def die(self) -> None:
        """As the operating system does: the file and its lock are let go, and nothing is written."""
        if not self._dead:
            self._dead = True
            self._closing.close()
