"""HTTP/1.1 on a socket, for the fake model server: cuts requests out of the stream, sends answers, and misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Protocol, cast

from tests.support.fake_scripts import FakeAnswer, FakeFault

_BODY_LIMIT = 64 * 2**20
_HTML = b"<!doctype html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
_JSON = {"content-type": "application/json"}


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    return gzip.compress(b" " * (64 * 2**20), 9)


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Overloaded"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode("latin-1", "replace")


@dataclass(slots=True)
class Answered:
    """What a connection has to send."""

    told: FakeAnswer | FakeFault
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    seq: int = 0
    over: bool = False


class Server(Protocol):
    """What a connection needs from the fake it belongs to."""

    @property
    def held(self) -> bool: ...

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered: ...

    def steer(self, path: str, body: bytes) -> bytes: ...

    def connected(self, connection: Connection) -> None: ...

    def disconnected(self, connection: Connection) -> None: ...

    def began(self) -> None: ...

    def ended(self, answered: Answered) -> None: ...

    async def gate(self) -> None: ...


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1 with keep-alive and Content-Length or chunked bodies, one request at a time."""

    def __init__(self, fake: Server) -> None:
        self._fake = fake
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._fake.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fake.disconnected(self)
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._serve_buffered()

    def _serve_buffered(self) -> None:
        """Serves every whole request in the buffer until one of them has to wait."""
        while (found := self._cut_request()) is not None:
            method, path, headers, body = found
            if path.startswith("/-/"):
                try:
                    self._send(200, _JSON, self._fake.steer(path, body))
                except ValueError as fault:
                    self._send(400, _JSON, str(fault).encode())
                continue
            if method == "GET" and path == "/v1/models":
                self._send(200, _JSON, b'{"object":"list","data":[]}')
                continue
            answered = self._fake.receive(method, path, headers, body)
            told = answered.told
            if isinstance(told, FakeAnswer) and told.delay <= 0 and not self._fake.held:
                self._send(200, answered.headers, answered.body)
                continue
            self._fake.began()
            self._task = asyncio.get_running_loop().create_task(self._later(answered))
            self._task.add_done_callback(partial(self._served, answered))
            return

    def _served(self, answered: Answered, task: asyncio.Task[None]) -> None:
        self._end(answered)
        self._task = None
        if task.cancelled():
            return
        task.result()
        self._serve_buffered()

    def _end(self, answered: Answered) -> None:
        if not answered.over:
            answered.over = True
            self._fake.ended(answered)

    def _cut_request(self) -> tuple[str, str, dict[str, str], bytes] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        method, path, *_ = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start = end + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._cut_chunked(method, path, headers, start)
        length = int(headers.get("content-length", "0"))
        if length > _BODY_LIMIT:
            self.abort()
            return None
        if len(self._buffer) < start + length:
            return None
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return method, path, headers, body

    def _cut_chunked(
        self, method: str, path: str, headers: dict[str, str], start: int
    ) -> tuple[str, str, dict[str, str], bytes] | None:
        body, place = bytearray(), start
        while True:
            line = self._buffer.find(b"\r\n", place)
            if line < 0:
                return None
            size = int(self._buffer[place:line].split(b";")[0], 16)
            place = line + 2
            if len(self._buffer) < place + size + 2:
                return None
            body += self._buffer[place : place + size]
            place += size + 2
            if size == 0:
                del self._buffer[:place]
                return method, path, headers, bytes(body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_head(status, headers, len(body)) + body)

    async def _later(self, answered: Answered) -> None:
        await self._fake.gate()
        if answered.told.delay > 0:
            # The delay is the scripted model's own latency; no test waits on it as a barrier.
            await asyncio.sleep(answered.told.delay)
        if isinstance(answered.told, FakeAnswer):
            # Before it leaves: what the answer brings about must not seem to overlap with it.
            self._end(answered)
            self._send(200, answered.headers, answered.body)
        else:
            await self._misbehave(answered.told, answered)

    async def _misbehave(self, fault: FakeFault, answered: Answered) -> None:
        transport = self._transport
        if transport is None:
            return
        match fault.kind:
            case "status":
                self._send(fault.status, answered.headers, answered.body)
            case "redirect":
                self._send(302, {**answered.headers, "location": fault.location}, b"")
            case "html":
                self._send(200, {**answered.headers, "content-type": "text/html"}, _HTML)
            case "not_json":
                self._send(200, answered.headers, b'{"id": "x", "choices": [{"index": 0, "mess')
            case "wrong_shape":
                self._send(200, answered.headers, b'{"ok": true, "choices": {}, "content": 7}')
            case "gzip_bomb":
                self._send(200, {**answered.headers, "content-encoding": "gzip"}, _bomb())
            case "reset":
                raw = transport.get_extra_info("socket")
                if raw is not None:
                    # Linger 0 makes close send RST instead of FIN.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "stall":
                transport.write(_head(200, answered.headers, len(answered.body)))
                await asyncio.get_running_loop().create_future()
            case "half":
                transport.write(_head(200, answered.headers, len(answered.body)))
                transport.write(answered.body[: len(answered.body) // 2])
                transport.close()
            case "slow":
                transport.write(_head(200, answered.headers, len(answered.body)))
                for byte in answered.body:
                    transport.write(bytes([byte]))
                    await asyncio.sleep(fault.interval)
