"""An asyncio event loop in virtual time, and processes that can be killed or frozen in it.

Time jumps to the next timer; nothing sleeps, nothing opens a socket. A callback belongs to the process that was current
when it was scheduled. `kill -9` is then exact: not one more callback of that process runs, no `finally`, no
cancellation. A frozen process keeps its callbacks until it is thawed, with its timers overdue, as after a SIGSTOP.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")

_STILL = 200_000  # callbacks without time going on: something spins


class StalledError(Exception):
    """Nothing is left that could ever happen, or something happens for ever at one instant."""


class Process:
    """One worker process of a world. `dead` for good since `died`, `frozen` for a while."""

    __slots__ = ("dead", "died", "frozen", "kept", "name", "thaws")

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = self.frozen = False
        self.died = float("inf")
        self.thaws = 0
        self.kept: list[asyncio.Handle] = []


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process:
    """The process whose code runs."""
    process = PROCESS.get()
    assert process is not None, "no process is at work here"
    return process


class _Soon(asyncio.Handle):
    """A callback to run now. Made some 7,000 times a world: it keeps only what this loop needs."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class _Later(asyncio.TimerHandle):
    """A callback with its time."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready in the order in which it was made ready, then jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        self.callbacks = 0
        self.faults: list[str] = []
        self.set_exception_handler(self._unhandled)

    def time(self) -> float:
        return self._virtual

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        # Without asyncio's check for a closed loop: what is left of a dead process may still let go of its futures.
        handle = _Soon(callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Later(when, callback, args, contextvars.copy_context() if context is None else context)
        self._timers += 1
        # Of two timers for one instant the one that was set first goes first.
        heappush(self._scheduled, (when, self._timers, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._virtual + delay, callback, *args, context=context)

    def create_task(  # type: ignore[override]  # of a coroutine alone
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        # Kept until the loop is closed: a task that is let go runs its `finally`, and a killed process runs nothing.
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def kill(self, process: Process) -> None:
        """Nothing of the process ever runs again; what it holds is kept unfinished until the loop is closed."""
        process.dead = True
        process.kept.clear()

    def thaw(self, process: Process) -> None:
        process.frozen = False
        process.thaws += 1
        self._ready.extend(process.kept)
        process.kept.clear()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """What `main` returns. Raises StalledError where it can never come back."""
        try:
            return self.run_until_complete(main)
        finally:
            for task in self._tasks:
                task._log_destroy_pending = False
            self._tasks.clear()
            self.close()
            asyncio.set_event_loop(None)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _run_once(self) -> None:
        # One call runs all until the loop is stopped: most turns have one callback, and a call each would cost as much.
        ready, timers, process_of = self._ready, self._scheduled, PROCESS
        while not self._stopping:
            if not ready:
                while timers and timers[0][2]._cancelled:
                    heappop(timers)
                if not timers:
                    raise StalledError("nothing is left to happen")
                self._virtual = max(self._virtual, timers[0][0])
                self._at_once = 0
            now = self._virtual
            while timers and timers[0][0] <= now:
                timer = heappop(timers)[2]
                if not timer._cancelled:
                    ready.append(timer)
            count = len(ready)
            self._at_once += count
            self.callbacks += count
            if self._at_once > _STILL:
                raise StalledError(f"something spins at {now:.3f}")
            for _ in range(count):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                context = handle._context
                process = context.get(process_of)
                if process is not None:
                    if process.dead:
                        continue
                    if process.frozen:
                        process.kept.append(handle)
                        continue
                try:
                    context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  as asyncio's own loop: told, and the loop goes on
                    self.faults.append(
                        f"in {getattr(handle._callback, '__qualname__', type(handle._callback))}: {error!r}"
                    )

    _at_once = 0
    _timers = 0

    # What a loop over real files and sockets would do.
    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
