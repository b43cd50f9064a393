"""Real processes under test: started with their logs captured, waited on by what they log or serve, always cleaned up.

Every child has a guard: a tiny shell that kills it when the test process dies in whatever way, so that no broker or
worker outlives a cancelled run. Waiting is polling a log or a probe up to a deadline, never a fixed pause.
All calls block; a test with a loop wraps them in `asyncio.to_thread`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

POLL = 0.02  # seconds between two looks
Seen = TypeVar("Seen")


def wait_until(look: Callable[[], Seen | None], *, within: float, what: Callable[[], str] | str) -> Seen:
    """The first thing `look` returns that is not None and not False. TimeoutError naming `what` after `within` s."""
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL)


class ChildError(RuntimeError):
    """A child process ended, or never came up; the message holds the end of its log."""


class Child:
    """One process whose stdout and stderr go to a log file. It can be started again after it ended.

    `environment` is added to the caller's. The child leads a process group of its own, and signals go to the group.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
    ) -> None:
        self.command = list(command)
        self.log = log
        self.name = name or Path(self.command[0]).name
        self._environment = dict(environment or {})
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._began = 0  # where in the log the present run begins

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ChildError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self) -> Self:
        if self.running:
            raise ChildError(f"{self.name} is running already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._began = log.tell()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                cwd=self._cwd,
                start_new_session=True,
            )
        # The guard's `read` ends when our end of the pipe closes, be it by our death.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 "-$1" 2>/dev/null', "guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            os.killpg(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end (SIGTERM) and returns at once; `wait` for it."""
        self.signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.signal(signal.SIGINT)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and reaped when this returns."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._dismiss_guard()

    def wait(self, within: float) -> int:
        """The exit code. TimeoutError, with the end of the log, when it still runs after `within` seconds."""
        assert self._process is not None
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs after {within} s; its log ends:\n{self.tail()}") from None
        self._dismiss_guard()
        return code

    def stop(self, within: float = 10.0) -> None:
        """SIGTERM, then SIGKILL to whatever of its group is left after `within` seconds."""
        if self._process is None:
            return
        if self.running:
            self.thaw()
            self.terminate()
            try:
                self._process.wait(within)
            except subprocess.TimeoutExpired:
                self.kill()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        # Closing the pipe would fire it; what it would kill may be what a child of the child left behind: good.
        guard.stdin.close()
        guard.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what it says --------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """What it has logged since it was last started."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._began)
            return log.read().decode("utf-8", "replace")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def events(self) -> Iterator[dict[str, Any]]:
        """The JSON objects in its log, a line each, in order; other lines are passed over."""
        for line in self.text().splitlines():
            if line.startswith("{"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue

    def wait_for(self, look: Callable[[str], Seen | None], *, within: float, what: str) -> Seen:
        """What `look` finds in the log's text. ChildError when the process ends first, TimeoutError after `within`."""

        def looked() -> Seen | None:
            alive = self.running
            seen = look(self.text())
            if (seen is None or seen is False) and not alive:
                raise ChildError(f"{self.name} ended with {self.returncode} before: {what}\n{self.tail()}")
            return seen

        return wait_until(looked, within=within, what=lambda: f"{what}; the log of {self.name} ends:\n{self.tail()}")

    def wait_for_text(self, text: str, *, within: float = 30.0) -> None:
        self.wait_for(lambda log: text in log or None, within=within, what=f"{text!r} in the log")

    def wait_for_event(self, event: str, *, within: float = 30.0) -> dict[str, Any]:
        """The first log line that is a JSON object whose `event` is the given one."""

        def look(_: str) -> dict[str, Any] | None:
            return next((entry for entry in self.events() if entry.get("event") == event), None)

        return self.wait_for(look, within=within, what=f"log event {event!r}")

    def wait_for_http(self, url: str, *, within: float = 30.0, status: int = 200) -> bytes:
        """The body, once a GET of `url` is answered with `status` (a worker's /readyz)."""
        return self.wait_for(lambda _: _get(url, status), within=within, what=f"{status} from {url}")


def _get(url: str, status: int) -> bytes | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            code, body = response.status, response.read()
    except urllib.error.HTTPError as answer:
        with answer:
            code, body = answer.code, answer.read()
    except OSError:
        return None
    return body if code == status else None


def sluiceway(
    *arguments: str, log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None, name: str = ""
) -> Child:
    """The installed `sluiceway` command with these arguments, not yet started."""
    command = Path(sys.executable).parent / "sluiceway"
    if not command.exists():
        raise ChildError(
            f"{command} is missing; install the project into this environment first: pip install -e '.[test]'"
        )
    return Child([str(command), *arguments], log=log, environment=environment, cwd=cwd, name=name or "sluiceway")


def run_sluiceway(
    *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None, within: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """The installed `sluiceway` command, run to its end; stdout, stderr and the exit code are in what is returned."""
    command = Path(sys.executable).parent / "sluiceway"
    return subprocess.run(
        [str(command), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        timeout=within,
        check=False,
    )
