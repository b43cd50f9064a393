"""The demo's workers: real `sluiceway work` processes, each with its log in a file, none of which outlives the demo."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import ENVIRONMENT, Connection

_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
_LOOK = 0.05  # seconds between two looks at a worker that starts
_TAIL = 12  # lines of its log that a failure shows


class WorkerProcess:
    """One `sluiceway work ARGUMENTS`. `environment` replaces the caller's."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(  # noqa: S603  our own command
                [sys.executable, "-m", "sluiceway", "work", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # A session of its own: Ctrl-C reaches the demo, which stops its workers in order.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
            )

    async def ready(self, within: float) -> None:
        """Returns once it has its partitions. Raises InputError with the end of its log if it ends, or takes longer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while loop.time() < end:
            self.check()
            port = self._port()
            if port is not None and await _answers_ok(port, "/readyz"):
                return
            await asyncio.sleep(_LOOK)
        raise self._failure(f"was not ready within {within:.0f} s")

    def check(self) -> None:
        """Raises InputError with the end of its log if it has ended."""
        code = None if self._child is None else self._child.poll()
        if code is not None:
            raise self._failure(f"ended with exit code {code}")

    def stop(self) -> None:
        """Asks it to drain and end; does nothing where it has ended."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    async def ended(self, within: float) -> None:
        """Returns when it has ended; after `within` seconds it is killed."""
        child = self._child
        if child is None:
            return
        try:
            await asyncio.to_thread(child.wait, within)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it at once. Returns when it has ended."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _port(self) -> int | None:
        """Where its probes are, as its log says."""
        for line in self._lines():
            with suppress(orjson.JSONDecodeError):
                event = orjson.loads(line)
                if isinstance(event, dict) and event.get("event") == "worker_started":
                    port = event.get("port")
                    return port if isinstance(port, int) else None
        return None

    def _failure(self, what: str) -> InputError:
        tail = "\n".join(f"  {line}" for line in self._lines()[-_TAIL:]) or "  (it is empty)"
        return InputError("worker", f"the worker {self.name} {what}. The end of its log:\n{tail}")

    def _lines(self) -> list[str]:
        with suppress(OSError):
            return self._log.read_text("utf-8", "replace").splitlines()
        return []


def environment(connection: Connection) -> dict[str, str]:
    """This process's own, with these connection settings for its own: passwords must not stand on a command line."""
    names = {name: variable for variable, name in ENVIRONMENT.items()}
    ours = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    settings = {names[name]: value for name, value in connection.settings.items()}
    return {**ours, **settings, "PYTHONUNBUFFERED": "1"}


async def _answers_ok(port: int, path: str) -> bool:
    """Whether a local HTTP server answers with 200."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
        return status.split()[1:2] == [b"200"]
    return False


def _die_with(parent: int) -> Callable[[], None]:
    """For Linux: the kernel kills the child when the demo dies in whatever way."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return arm
