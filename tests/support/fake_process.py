"""A fake model server as a process of its own, for tests whose worker is a process too."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.fake_journal import JournalEntry, await_journal, read_journal
from tests.support.processes import Child

ROOT = Path(__file__).parents[2]


def _url(log: str) -> str | None:
    return next((line for line in log.splitlines() if line.startswith("http")), None)


class FakeProcess:
    """`with FakeProcess(journal, "labels doubt=10%") as fake:` answers at `fake.url` until the block ends.

    Each command to the running fake returns its counters: requests, in_flight, peak, connections.
    """

    def __init__(
        self,
        journal: Path,
        script: str = "labels",
        *,
        name: str = "fake",
        port: int = 0,
        keys: tuple[str, ...] = (),
        keep_bodies: bool = False,
        keep_ends: bool = False,
    ) -> None:
        self.journal = journal
        self.url = ""
        arguments = ["--journal", str(journal), "--script", script, "--name", name, "--port", str(port)]
        arguments += [argument for key in keys for argument in ("--key", key)]
        arguments += ["--keep-bodies"] * keep_bodies + ["--keep-ends"] * keep_ends
        command = [sys.executable, "-m", "tests.support.fake_models", *arguments]
        self._child = Child(command, log=journal.with_suffix(".log"), cwd=ROOT, name=f"the fake model server {name}")

    def start(self) -> None:
        """Starts it, or starts it again: at a port of its own unless one was given, and on the same journal."""
        self._child.start()
        self.url = self._child.wait_for(_url, within=30, what="its URL")

    def stop(self) -> None:
        self._child.stop()

    def kill(self) -> None:
        """SIGKILL: connections break; the journal keeps every line that was answered."""
        self._child.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until `thaw`."""
        self._child.freeze()

    def thaw(self) -> None:
        self._child.thaw()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def entries(self) -> list[JournalEntry]:
        return read_journal(self.journal) if self.journal.exists() else []

    def wait_for(self, enough: Callable[[list[JournalEntry]], bool], *, within: float = 30.0) -> list[JournalEntry]:
        return await_journal(self.journal, enough, within=within)

    def say(self, script: str) -> dict[str, Any]:
        """Swaps the script for all requests from now on."""
        return self._steer("script", script)

    def hold(self) -> dict[str, Any]:
        return self._steer("hold")

    def release(self) -> dict[str, Any]:
        return self._steer("release")

    def counters(self) -> dict[str, Any]:
        return self._steer("stats")

    def _steer(self, command: str, body: str = "") -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request("POST", f"/-/{command}", body.encode())
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(raw.decode())
        return dict(json.loads(raw))
