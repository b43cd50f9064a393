"""The watchdog: what `core.watchdog` finds, turned into readiness, metrics, and the end of a process that is wedged.

The loop beats once a second; a thread listens, since it may be the loop that hangs. Where the loop is silent for too
long, or jobs are held and none gets on, the stacks of all threads and tasks go to the log (function, file and line:
never a local, never a payload) and the process ends at once, with code 1. What was in flight runs again elsewhere.

A loop that hangs without ever letting another thread run is ended by `faulthandler`, after three times the bound: its
thread needs no interpreter, and knows no tasks.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sluiceway.core.watchdog import Bounds, Ear, Facts, Findings, Watch
from sluiceway.telemetry import logs
from sluiceway.telemetry.logs import Event
from sluiceway.telemetry.metrics import Metrics

_DUMP = 5.0  # seconds for the log to take the stacks: nobody may read it, or the loop may hang in writing to it
_FRAMES = 40  # of one stack, the innermost ones

Stack = tuple[str, ...]
"""`file:line function` of each frame, the outermost first."""


class Watchdog:
    """`look` tells the facts, in the loop. `clock` is in seconds and steady; `end` ends the process with a code."""

    def __init__(
        self,
        bounds: Bounds,
        look: Callable[[], Facts],
        metrics: Metrics,
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._bounds = bounds
        self._look = look
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._end = end
        self._watch = Watch(bounds, interval=interval)
        self._ear = Ear(bounds, interval=interval)
        self._beats = 0
        self._findings = Findings()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    async def run(self) -> None:
        """Beats until it is cancelled; the thread listens as long. Whatever `look` raises is a Bug and ends it.

        Then the process ends hard once the bound for a silent loop has passed, unless it is `close`d before.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listening, name="watchdog", daemon=True)
        self._thread.start()
        try:
            while True:
                faulthandler.dump_traceback_later(3 * self._bounds.silent, exit=True, file=sys.stderr)
                due = self._clock() + self._interval
                await asyncio.sleep(self._interval)
                self.beat(max(0.0, self._clock() - due))
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Nothing is ended from here on."""
        faulthandler.cancel_dump_traceback_later()
        self._closed.set()

    def join(self) -> None:
        """Returns when the thread has ended, which it does soon after `close`."""
        if self._thread is not None:
            self._thread.join()

    def slow(self) -> list[str]:
        """Why the worker is not ready, as of the last beat."""
        return list(self._findings.slow)

    def beat(self, lag: float) -> None:
        """The loop turned, `lag` seconds later than asked."""
        facts = self._look()
        self._findings = self._watch.look(facts, lag, self._clock())
        self._metrics.watched(facts, self._findings, lag)
        self._beats += 1

    def listen(self) -> None:
        """The thread's look: ends the process where it is wedged."""
        reasons = self._findings.wedged + self._ear.listen(self._beats, self._clock())
        if not reasons or self._closed.is_set():
            return
        self._closed.set()
        telling = threading.Thread(target=self._tell, args=(reasons,), name="stacks", daemon=True)
        telling.start()
        telling.join(_DUMP)
        self._end(1)

    def _listening(self) -> None:
        while not self._closed.wait(self._interval):
            self.listen()

    def _tell(self, reasons: tuple[str, ...]) -> None:
        log = logs.logger()
        log.critical(Event.WORKER_FAILED, reason="wedged", detail="; ".join(reasons))
        for name, frames in _thread_stacks():
            log.critical(Event.STACKS, of=f"thread {name}", count=1, frames=frames)
        if self._loop is not None:
            for frames, count in Counter(_task_stacks(self._loop)).most_common():
                log.critical(Event.STACKS, of="tasks", count=count, frames=frames)


def _thread_stacks() -> Iterator[tuple[str, Stack]]:
    """Of each thread but those of the watchdog."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, str(ident))
        if name in ("watchdog", "stacks"):
            continue
        frames: list[str] = []
        inner: FrameType | None = frame
        while inner is not None and len(frames) < _FRAMES:
            frames.append(_line(inner))
            inner = inner.f_back
        yield name, tuple(reversed(frames))


def _task_stacks(loop: asyncio.AbstractEventLoop) -> Iterator[Stack]:
    """Of each task that waits; one that runs stands on its thread's stack."""
    for task in asyncio.all_tasks(loop):
        frames: list[str] = []
        awaited: Any = task.get_coro()
        # From the task's own coroutine down to what it waits for; the kinds differ in the names of two attributes.
        while awaited is not None:
            for kind in ("cr", "gi", "ag"):
                if hasattr(awaited, f"{kind}_frame"):
                    frame = getattr(awaited, f"{kind}_frame")
                    if frame is not None:
                        frames.append(_line(frame))
                    awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                    break
            else:
                break
        yield tuple(frames[-_FRAMES:])


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}"
