"""Connections that are used again: each request is answered by what was sent for it, and by nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from sluiceway.core.catalog import Model
from sluiceway.models.transport import HttpReply, Transport, target
from sluiceway.models.wire import Wire


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Server:
    """Answers each request with its own body, and the first one with `beside` in the same write.

    `idle` writes on the first connection while nothing is asked there. `rest` goes before the second answer on it.
    """

    beside: bytes = b""
    rest: bytes = b""
    url: str = ""
    asked: list[tuple[int, bytes]] = field(default_factory=list)  # number of the connection, body
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # a connection has been, by the other side

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        mine, count = len(self.writers), 0
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.asked.append((mine, body))
                count += 1
                first = mine == 1 and count == 1
                before = self.rest if mine == 1 and count == 2 else b""
                writer.write(before + _answer(b"answer to " + body) + (self.beside if first else b""))
        self.closed.set()

    async def idle(self, unasked: bytes) -> None:
        """Writes it. A round trip later it has come to the other side, which runs in this loop too."""
        self.writers[0].write(unasked)
        reader, writer = await asyncio.open_connection(*self.writers[0].get_extra_info("sockname")[:2])
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        await reader.readuntil(b"answer to ")
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def running(script: Server) -> AsyncIterator[Transport]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    transport = Transport()
    try:
        yield transport
    finally:
        await transport.aclose()
        server.close()
        for writer in script.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


LATE = b"HTTP/1.1 200 OK\r\nx: " + _answer(b"to nobody")  # from its second half on it is a response as well
HALF, OTHER = LATE[: LATE.index(b"x: ") + 3], LATE[LATE.index(b"x: ") + 3 :]


@pytest.mark.parametrize(
    ("beside", "idle", "rest"),
    [
        (LATE, b"", b""),
        (HALF, b"", OTHER),
        (LATE[:-4], b"", LATE[-4:]),
        (b"", LATE, b""),
        (b"", HALF, OTHER),
        (b"", LATE[:-4], LATE[-4:]),
        (HALF, OTHER, b""),
        (b"", b"no HTTP at all", b""),
    ],
    ids=["beside", "half_beside", "cut_beside", "idle", "half_idle", "cut_idle", "beside_and_idle", "noise"],
)
async def test_nothing_that_came_unasked_answers_a_request(beside: bytes, idle: bytes, rest: bytes) -> None:
    """Whole or in part, with the response before or after it: such a connection is not used again."""
    script = Server(beside, rest)
    async with running(script) as transport, asyncio.timeout(30):
        to = target(script.url, {})
        found = [await transport.post(to, b"A")]
        if idle:
            await script.idle(idle)
        found += [await transport.post(to, body) for body in (b"B", b"C")]
    assert [each.body for each in found if isinstance(each, HttpReply)] == [
        b"answer to A",
        b"answer to B",
        b"answer to C",
    ]
    used = {body: connection for connection, body in script.asked}
    assert used[b"A"] == 1
    assert used[b"B"] == used[b"C"] != 1


@pytest.mark.parametrize(
    "response",
    [
        _answer(b"{}"),
        _answer(b""),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-trailer: y\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + _answer(b"{}"),
        _answer(b"x" * 1_000_000),
    ],
    ids=["length", "empty", "no_content", "chunked", "trailer", "hints", "long"],
)
async def test_a_whole_response_leaves_its_connection_to_the_next_request(response: bytes) -> None:
    """However it says where it ends."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n{}"):
                writer.write(response)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport = Transport()
    to = target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", {})
    found = [await transport.post(to, b"{}") for _ in range(3)]
    await transport.aclose()
    server.close()
    await server.wait_closed()
    assert [type(each) for each in found] == [HttpReply] * 3
    assert connections == 1


async def test_no_repr_on_the_way_to_an_endpoint_shows_a_key() -> None:
    """Tracebacks print the variables of each frame."""
    to = target("https://h.test/v1", {"authorization": "Bearer sk-canary"})
    wire = Wire()
    way = wire.way(to.direct_url, to.direct_headers)
    await wire.aclose()
    assert b"sk-canary" in way.head
    model = Model(name="own", extra_headers={"x-api-key": "sk-canary"})
    assert "sk-canary" not in f"{to!r} {way!r} {way.asked!r} {model!r}"


async def test_a_connection_that_nobody_needs_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its server closes it, which would be in the middle of a request at worst."""
    monkeypatch.setattr("sluiceway.models.wire._KEEPALIVE", 0.01)
    script = Server()
    async with running(script) as transport:
        to = target(script.url, {})
        await transport.post(to, b"one")
        async with asyncio.timeout(30):
            await script.closed.wait()
        await transport.post(to, b"two")
    assert script.asked == [(1, b"one"), (2, b"two")]


async def test_a_connection_that_lay_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server may be about to close it: what lay longer than is safe is as good as gone, be it still open."""
    script = Server()
    async with running(script) as transport:
        to = target(script.url, {})
        await transport.post(to, b"one")
        monkeypatch.setattr("sluiceway.models.wire._KEEPALIVE", -1.0)
        await transport.post(to, b"two")
    assert script.asked == [(1, b"one"), (2, b"two")]
