"""The one HTTP transport: raw bytes on a socket, and a mock in its place."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.model_calls import ask, call, model, opened

from sluiceway.core.call import Failure, FailureKind, Reply
from sluiceway.models.transport import HttpReply, Transport, target


@asynccontextmanager
async def raw_server(response: bytes) -> AsyncIterator[str]:
    """Answers any request with exactly these bytes, then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def _response(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"", "reset"),
        (b"NOT HTTP\r\n\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", "not_http"),
        (_response(b"x", "content-encoding: br"), "bad_encoding"),
        (_response(b"no gzip", "content-encoding: gzip"), "bad_encoding"),
        (_response(gzip.compress(b"{}", mtime=0)[:-4], "content-encoding: gzip"), "body_cut"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n{", "body_too_large"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no_choices"),
    ],
)
async def test_raw_nonsense_is_a_failure_with_its_code(raw: bytes, detail: str) -> None:
    """Whatever stands on the other side."""
    async with raw_server(raw) as url:
        found = await ask(url)
    assert isinstance(found, Failure)
    assert (found.kind, found.detail) == (FailureKind.TRANSIENT, detail)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_on_the_socket_give_a_reply_or_a_failure(raw: bytes, after_head: bool) -> None:
    """Nothing raises, nothing hangs."""

    async def run() -> Reply | Failure:
        async with raw_server(b"HTTP/1.1 200 OK\r\n" + raw if after_head else raw) as url:
            return await ask(url, seconds=5)

    assert isinstance(asyncio.run(run()), Reply | Failure)


async def test_a_word_before_the_response_is_not_the_response() -> None:
    """103 Early Hints, which some proxies send."""
    async with raw_server(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + _response(b"{}")) as url:
        transport = Transport()
        found = await transport.post(target(url, {}), b"{}")
        await transport.aclose()
    assert isinstance(found, HttpReply)
    assert (found.status, found.body) == (200, b"{}")


async def test_a_connection_is_used_again_only_after_a_whole_response_that_lets_it() -> None:
    """Each request stands whole and by itself on its connection: head, length of the body, body."""
    served: list[tuple[int, bytes]] = []
    closing = _response(b"{}", "connection: close")
    too_long = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n{"
    answers = [_response(b"{}"), closing, _response(b"{}"), too_long, _response(b"{}")]
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        mine = len(writers)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                served.append((mine, await reader.readexactly(length)))
                writer.write(answers[len(served) - 1])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport = Transport()
    to = target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", {"x-key": "k"})
    found = [await transport.post(to, b"x" * number) for number in range(5)]
    await transport.aclose()
    server.close()
    for writer in writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    await server.wait_closed()
    assert [isinstance(each, HttpReply) for each in found] == [True, True, True, False, True]
    assert served == [(1, b""), (1, b"x"), (2, b"xx"), (2, b"xxx"), (3, b"xxxx")]


async def test_a_gzipped_body_is_read_where_a_server_sends_one_unasked() -> None:
    """Bounded, and whole."""
    async with raw_server(_response(gzip.compress(b'{"a":1}'), "content-encoding: gzip")) as url:
        transport = Transport()
        found = await transport.post(target(url, {}), b"{}")
        await transport.aclose()
    assert isinstance(found, HttpReply)
    assert found.body == b'{"a":1}'


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (httpx.ConnectError("x"), "connect"),
        (httpx.ReadTimeout("x"), "timeout"),
        (httpx.ReadError("x"), "reset"),
        (httpx.RemoteProtocolError("x"), "not_http"),
        (ConnectionResetError(), "reset"),
    ],
)
async def test_another_httpx_transport_passes_through_the_same_mapping(error: Exception, detail: str) -> None:
    """A mock stands at the lowest seam, so that the real parser runs."""

    def respond(_: httpx.Request) -> httpx.Response:
        raise error

    transport = Transport(httpx.MockTransport(respond))
    found = await transport.post(target("http://h/v1", {}), b"{}")
    assert isinstance(found, Failure)
    assert found.detail == detail


async def test_a_mock_transport_sees_the_request_that_a_server_would() -> None:
    """Method, URL, headers and body."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"choices": [{"message": {"content": "hi"}}]})

    one = model("http://h")
    async with opened(one, transport=Transport(httpx.MockTransport(respond))) as pool:
        found = await pool.call(call(one))
    assert isinstance(found, Reply)
    assert (seen[0].method, str(seen[0].url)) == ("POST", "http://h/v1/chat/completions")
    assert seen[0].headers["accept-encoding"] == "identity"
    assert int(seen[0].headers["content-length"]) == len(seen[0].content)
