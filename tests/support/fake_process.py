"""A fake model server as a process of its own, for tests whose worker is a process too."""

from __future__ import annotations

import http.client
import json
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.fake_journal import JournalEntry, await_journal, read_journal

ROOT = Path(__file__).parents[2]


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
    ) -> None:
        self.journal = journal
        self.url = ""
        self._arguments = ["--journal", str(journal), "--script", script, "--name", name, "--port", str(port)]
        self._arguments += [argument for key in keys for argument in ("--key", key)]
        self._arguments += ["--keep-bodies"] * keep_bodies
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.fake_models", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 30)
        self.url = self._process.stdout.readline().strip() if ready else ""
        if not self.url:
            self.kill()
            raise RuntimeError("the fake model server did not start; its error stands above")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._reap()

    def kill(self) -> None:
        """SIGKILL: connections break; the journal keeps every line that was answered."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

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
