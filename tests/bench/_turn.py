"""A peer's turn, in its own process: it holds its first job, goes when it is told to, and tells what it has done.

    peer -> bench   held                     the group is joined, the first job is at hand
    bench -> peer   go                       the clock starts
    bench -> peer   stop                     the answer: {"jobs", "began", "ended", "cpu"}; then the process ends

The lines of the peer begin with `@`: whatever else it prints is not for the bench.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time


class Turn:
    """Made anywhere; `hold` and `done` are called in the peer's loop."""

    def __init__(self) -> None:
        self.going = False
        self._go: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs = 0
        self._began = self._ended = (0.0, 0.0)
        threading.Thread(target=self._obey, daemon=True).start()

    async def hold(self) -> None:
        """Returns when the bench has said `go`."""
        if self.going:
            return
        if self._go is None:
            self._go, self._loop = asyncio.Event(), asyncio.get_running_loop()
            _say("held")
        await self._go.wait()

    def done(self, count: int = 1) -> None:
        """So many more jobs are finished: acked by the broker."""
        self._jobs += count
        self._ended = _now()

    def _obey(self) -> None:
        for line in sys.stdin:
            if line.strip() == "go" and self._loop is not None and self._go is not None:
                self._began = self._ended = _now()
                self.going = True
                self._loop.call_soon_threadsafe(self._go.set)
            elif line.strip() == "stop":
                break
        (began, cpu), (ended, cpu_then) = self._began, self._ended
        _say(json.dumps({"jobs": self._jobs, "began": began, "ended": ended, "cpu": cpu_then - cpu}))
        os._exit(0)


def _now() -> tuple[float, float]:
    """Seconds of the machine's steady clock, which all processes share, and of this process's CPU."""
    return time.monotonic(), time.process_time()


def _say(line: str) -> None:
    os.write(1, f"@{line}\n".encode())  # Faust's worker takes sys.stdout for its log
