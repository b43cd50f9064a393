"""The local store of a simulated worker: the real one, over a real file, closed as its process's death closes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sluiceway.archive.store import Bounds, Store
from sluiceway.core.call import Call, Reply
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
        self._open: Counter[tuple[str, str, int]] = Counter()  # calls under way

    def started(self, job: Job, call: Call) -> None:
        if self.reply(job, call) is not None:
            self._twice(f"{job.id} at {call.model.name}")
        self._open[job.id, call.model.name, call.draw] += 1
        super().started(job, call)

    def ended(self, job: Job, call: Call, reply: Reply | None) -> None:
        self._open[job.id, call.model.name, call.draw] -= 1
        super().ended(job, call, reply)

    def on_record(self, call: Call) -> bool:
        """Whether the file says that such a call is under way: nothing is open that is not written yet."""
        row = self._db.execute(
            "SELECT 1 FROM calls WHERE job_id = ? AND model = ? AND draw = ?",
            (call.job_id, call.model.name, call.draw),
        ).fetchone()
        # Two copies of one record share a row, which the one may end while the other waits for its permit.
        return row is not None and self._open[call.job_id, call.model.name, call.draw] > 0

    def close(self) -> None:
        if not self._dead:
            self._dead = True
            super().close()

    def die(self) -> None:
        """As the operating system does: the file and its lock are let go, and nothing is written."""
        if not self._dead:
            self._dead = True
            self._closing.close()
