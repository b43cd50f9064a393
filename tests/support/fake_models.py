"""A fake model server: both wire formats over real sockets, scripted answers and faults, every request journaled.

In a test's own loop:     async with FakeModels(labels(doubt=0.1)) as fake: ... fake.url, fake.journal.entries
As a process of its own:  python -m tests.support.fake_models --port 0 --journal F --script "labels doubt=10%"
The process prints its URL as its first line. The journal line of a request is on disk before its answer leaves.

It never judges the worker: it says what its script says and writes down what it saw. A script can be swapped while it
runs (`fake.script = ...`, or POST the words to /-/script), and answers can be held back (`fake.hold()`, POST /-/hold).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import ssl
import sys
import time
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Self

import orjson

from tests.support.fake_http import Answered, Connection
from tests.support.fake_journal import Journal, JournalEntry, Metered, await_journal, read_journal
from tests.support.fake_scripts import FakeAnswer, FakeFault, FakeRequest, Script, labels, named
from tests.support.fake_wire import PATHS, BadRequestError, decode, digest, error_body, error_status, render

__all__ = [
    "FakeAnswer", "FakeFault", "FakeModels", "FakeRequest", "JournalEntry", "Metered",
    "await_journal", "labels", "named", "read_journal",
]  # fmt: skip


class FakeModels:
    """The server. `keys`, where given, are the API keys it takes; any other gets a 401."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        journal: Path | None = None,
        name: str = "fake",
        keys: frozenset[str] | None = None,
        keep_bodies: bool = False,
        keep_ends: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script or labels()
        self.journal = Journal(journal, ends=keep_ends)
        self.name = name
        self.url = ""
        self.in_flight = 0
        self.peak = 0
        self.connections = 0
        self._keys = keys
        self._keep_bodies = keep_bodies
        self._tls = tls
        self._seen: Counter[tuple[str, str]] = Counter()
        self._seq = 0
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._protocols: set[Connection] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(self), "127.0.0.1", port, ssl=self._tls, backlog=4096)
        self._server = listener
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Closes the listener and every connection; requests still open are dropped."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._protocols):
                connection.abort()
            await self._server.wait_closed()
            self._server = None
        self.journal.close()

    def hold(self) -> None:
        """From now on requests are journaled but not answered, until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    # -- called by a connection ----------------------------------------------------------------------------------------

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Decides and journals one request; what it returns is to be sent."""
        self._seq += 1
        seq = self._seq
        path, _, _query = path.partition("?")
        api = PATHS.get(path)
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        told: FakeAnswer | FakeFault
        if api is None:
            # Journaled all the same: a trap server must show that somebody came.
            request = FakeRequest(seq, "openai", "", "", "", "", headers=headers)
            told = FakeFault("status", 404, "not_found")
        else:
            try:
                request = decode(api, body, headers, seq)
            except BadRequestError as cause:
                request, told = (
                    FakeRequest(seq, api, "", "", "", "", headers=headers),
                    FakeFault("status", 400, str(cause)),
                )
            else:
                refused = self._keys is not None and key not in self._keys
                told = FakeFault("status", 401, "invalid_api_key") if refused else self.script(self._counted(request))
        return self._answered(request, told, method, path, key, body)

    def _counted(self, request: FakeRequest) -> FakeRequest:
        identity = (request.model, digest(request.text))
        seen = self._seen[identity]
        self._seen[identity] += 1
        # A frozen value, so a copy; only repeats pay for it.
        return (
            request
            if seen == 0
            else FakeRequest(**{n: getattr(request, n) for n in request.__slots__} | {"seen": seen})
        )

    def _answered(
        self, request: FakeRequest, told: FakeAnswer | FakeFault, method: str, path: str, key: str, body: bytes
    ) -> Answered:
        response_id = f"{'msg' if request.api == 'anthropic' else 'chatcmpl'}_{self.name}_{request.seq}"
        reply, metered, status, kind = b"", None, 200, "answer"
        if isinstance(told, FakeAnswer):
            reply, metered = render(request, told, response_id)
        else:
            status, kind = error_status(told), told.kind
            if told.kind in ("half", "slow", "stall", "hang"):
                # The provider has made these tokens and bills them, whether or not the caller sees them.
                reply, metered = render(request, told.answer, response_id)
            else:
                reply = error_body(request.api, told.status, told.code, "scripted by the test")
        whole, now = digest(body), time.time()
        headers = {name: _dated(value, now) for name, value in told.headers.items()}
        self.journal.append(
            JournalEntry(
                ts=now,
                server=self.name,
                seq=request.seq,
                method=method,
                path=path,
                model=request.model,
                digest=digest(request.text),
                request_digest=whole,
                seen=request.seen,
                answered=kind,
                status=status,
                response_id=response_id if metered is not None else "",
                metered=metered,
                key_sha256=hashlib.sha256(key.encode()).hexdigest() if key else "",
                client_request_id=request.headers.get("x-client-request-id", ""),
                header_names=tuple(sorted(request.headers)),
                text=request.text if self._keep_bodies else None,
                body=body.decode("utf-8", "replace") if self._keep_bodies else None,
                notes={name: value for name, value in headers.items() if name.startswith("retry-after")},
            )
        )
        return Answered(
            told,
            reply,
            {"content-type": "application/json", "x-request-id": f"req_{self.name}_{request.seq}", **headers},
            request.seq,
        )

    def steer(self, path: str, body: bytes) -> bytes:
        """The control surface of a fake in its own process: /-/health, /-/script, /-/hold, /-/release, /-/stats."""
        match path:
            case "/-/script":
                self.script = named(body.decode())
            case "/-/hold":
                self.hold()
            case "/-/release":
                self.release()
        stats = {"requests": self._seq, "in_flight": self.in_flight, "peak": self.peak, "connections": self.connections}
        return orjson.dumps(stats)

    def connected(self, connection: Connection) -> None:
        self.connections += 1
        self._protocols.add(connection)

    def disconnected(self, connection: Connection) -> None:
        self._protocols.discard(connection)

    def began(self) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def ended(self, answered: Answered) -> None:
        self.in_flight -= 1
        self.journal.ended(answered.seq)

    async def gate(self) -> None:
        await self._open.wait()

    @property
    def held(self) -> bool:
        return not self._open.is_set()


def _dated(value: str, now: float) -> str:
    """`date:5` as the HTTP date five seconds on; any other value as it is."""
    seconds = value.removeprefix("date:")
    return value if seconds == value else formatdate(now + float(seconds), usegmt=True)


async def _run(arguments: argparse.Namespace) -> None:
    keys = frozenset(arguments.key) if arguments.key else None
    fake = FakeModels(
        named(arguments.script),
        journal=arguments.journal,
        name=arguments.name,
        keys=keys,
        keep_bodies=arguments.keep_bodies,
        keep_ends=arguments.keep_ends,
    )
    await fake.start(arguments.port)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(fake.url, flush=True)
    await stopped.wait()
    await fake.stop()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A scripted fake model server; prints its URL as its first line.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path, default=None)
    parser.add_argument("--script", default="labels", help='layers, as "labels doubt=10%% | 429 share=5%% times=1"')
    parser.add_argument("--name", default="fake", help="stands in every response id")
    parser.add_argument("--key", action="append", default=[], help="an API key it takes; none given: any")
    parser.add_argument("--keep-bodies", action="store_true", help="the journal holds texts and bodies too")
    parser.add_argument("--keep-ends", action="store_true", help="JOURNAL.ends says when each request ended")
    given = parser.parse_args(arguments)
    try:
        named(given.script)
    except ValueError as fault:
        parser.error(str(fault))
    if sys.platform == "win32":
        asyncio.run(_run(given))
        return
    import uvloop

    uvloop.run(_run(given))


if __name__ == "__main__":
    main()
