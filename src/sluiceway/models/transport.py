"""One async HTTP transport for all models: aiohttp's connections, or any httpx transport that a user or a test gives.

It sends a POST and reads a bounded body, nothing more: no redirects, no environment proxies, no cookies, TLS verified.
It has no time-outs of its own; the caller's deadline ends a call. The one place where the exceptions of httpx, aiohttp
and the operating system become Failures. Our own calls go to aiohttp's connections directly (models/wire.py): httpx's
layers cost more than all the rest of a call (`python -m tests.bench.endpoints`).
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import httpx
import yarl
from aiohttp.http import HttpProcessingError, RawResponseMessage
from multidict import CIMultiDict

from sluiceway.core.call import Failure, FailureKind
from sluiceway.core.errors import InputError
from sluiceway.core.value import value
from sluiceway.models.wire import Way, Wire

MAX_BODY = 4_000_000  # bytes of one response, after decompression


class Inflater(Protocol):
    """zlib's own object, whose type has no public name."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


@value
class HttpReply:
    """A whole response, as read. `headers` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model's requests go, prepared once: nothing about it is parsed again for each call."""

    url: httpx.URL
    headers: httpx.Headers
    direct_url: yarl.URL
    direct_headers: CIMultiDict[str]

    def __repr__(self) -> str:
        return f"Target({self.url.scheme}://{self.url.netloc.decode('ascii')})"  # headers hold the key


def target(url: str, headers: Mapping[str, str]) -> Target:
    """The target for `url`. Raises InputError for a URL that is not plain http(s), or a header that can't be sent."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError("base_url", f"{url!r} is not a URL ({error}). Mend: write it as https://host/v1") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError("base_url", f"{url!r} is not an http or https URL. Mend: write it as https://host/v1")
    if parsed.userinfo:
        raise InputError("base_url", f"the URL of {parsed.host} holds a password. Mend: name the key with api_key_env")
    for name, text in headers.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise InputError("header", f"{name!r} is not a header name. Mend: letters, digits, '-' and '_' only")
        if not (text.isascii() and text.isprintable()):
            raise InputError("header", f"header {name!r} holds a control or non-ASCII character. Mend: remove it")
    sent = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "sluiceway",
        **{name.lower(): value for name, value in headers.items()},
    }
    return Target(parsed, httpx.Headers(sent), yarl.URL(str(parsed), encoded=True), CIMultiDict(sent))


class Transport:
    """Sends requests. `inner` may be any httpx transport; its responses are read by the same code."""

    def __init__(self, inner: httpx.AsyncBaseTransport | None = None, *, max_body: int = MAX_BODY) -> None:
        self._inner = inner
        self._wire: Wire | None = None  # opened by the first call: it belongs to that call's loop
        self._ways: dict[int, tuple[Target, Way]] = {}
        self._max_body = max_body

    async def post(self, to: Target, body: bytes) -> HttpReply | Failure:
        """The response, whatever its status, or a Failure where none came whole. Cancelling closes the connection."""
        try:
            if self._inner is not None:
                return await self._through(self._inner, to, body)
            wire, way = self._way(to)
            return await wire.post(way, body, self._response)
        except _LIBRARY_ERRORS as error:
            return _failure(error)

    def _way(self, to: Target) -> tuple[Wire, Way]:
        wire = self._wire
        if wire is None:
            wire = self._wire = Wire()
        known = self._ways.get(id(to))
        if known is None:  # the target is kept with it, so that no other has its id
            known = self._ways[id(to)] = to, wire.way(to.direct_url, to.direct_headers)
        return wire, known[1]

    async def _response(self, message: RawResponseMessage, content: aiohttp.StreamReader) -> HttpReply | Failure:
        headers = message.headers
        inflate = self._inflater(headers)
        if isinstance(inflate, Failure):
            return inflate
        if inflate is None and "content-length" in headers:  # so that it is no longer than was checked
            # Nearly always it came in one piece with its head.
            body = content.read_nowait() if content.is_eof() else await content.read()
            return HttpReply(message.code, headers, body)
        read = await self._read(content.iter_any(), inflate)
        return read if isinstance(read, Failure) else HttpReply(message.code, headers, read)

    async def _through(self, inner: httpx.AsyncBaseTransport, to: Target, body: bytes) -> HttpReply | Failure:
        request = httpx.Request("POST", to.url, headers=to.headers, content=body)
        response = await inner.handle_async_request(request)
        try:
            headers = response.headers
            headers.encoding = "iso-8859-1"  # takes any byte
            inflate = self._inflater(headers)
            if isinstance(inflate, Failure):
                return inflate
            stream: AsyncIterable[bytes] = response.stream  # type: ignore[assignment]  # an async transport's is async
            read = await self._read(stream, inflate)
            return read if isinstance(read, Failure) else HttpReply(response.status_code, headers, read)
        finally:
            await response.aclose()

    def _inflater(self, headers: Mapping[str, str]) -> Inflater | Failure | None:
        """What decompresses the body, None for a plain one; a Failure where the headers alone rule it out."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_body:
            return Failure(FailureKind.TRANSIENT, "body_too_large")
        encoding = headers.get("content-encoding")
        if encoding is None:
            return None
        encoding = encoding.strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            return Failure(FailureKind.TRANSIENT, "bad_encoding")  # identity was asked for
        # 32 + MAX_WBITS lets zlib tell gzip and zlib apart by their first bytes.
        return None if encoding in ("identity", "") else zlib.decompressobj(32 + zlib.MAX_WBITS)

    async def _read(self, chunks: AsyncIterable[bytes], inflate: Inflater | None) -> bytes | Failure:
        body = bytearray()
        async for chunk in chunks:
            body += chunk if inflate is None else inflate.decompress(chunk, self._max_body + 1 - len(body))
            if len(body) > self._max_body:
                return Failure(FailureKind.TRANSIENT, "body_too_large")
        if inflate is not None and not inflate.eof:
            return Failure(FailureKind.TRANSIENT, "body_cut")
        return bytes(body)

    async def aclose(self) -> None:
        if self._inner is not None:
            await self._inner.aclose()
        if self._wire is not None:
            await self._wire.aclose()


_LIBRARY_ERRORS = (
    httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, HttpProcessingError, OSError, zlib.error, EOFError
)  # fmt: skip


def _failure(error: Exception) -> Failure:
    """The one mapping of library exceptions. httpx-aiohttp wraps aiohttp's; the cause says more than the wrapping."""
    wrapped = isinstance(error, httpx.HTTPError) and isinstance(error.__cause__, aiohttp.ClientError | OSError)
    cause = error.__cause__ if wrapped else error
    match cause:
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            return Failure(FailureKind.INVALID, "tls_certificate")
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return Failure(FailureKind.TRANSIENT, "tls")
        case aiohttp.InvalidURL() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return Failure(FailureKind.INVALID, "bad_url")
        case TimeoutError() | httpx.TimeoutException():
            return Failure(FailureKind.TRANSIENT, "timeout")
        case aiohttp.ClientConnectorError() | httpx.ConnectError():
            return Failure(FailureKind.TRANSIENT, "connect")
        case aiohttp.ClientPayloadError() | EOFError():
            return Failure(FailureKind.TRANSIENT, "body_cut")
        case HttpProcessingError() | aiohttp.ClientResponseError() | httpx.RemoteProtocolError():
            return Failure(FailureKind.TRANSIENT, "not_http")
        case zlib.error():
            return Failure(FailureKind.TRANSIENT, "bad_encoding")
        case _:
            return Failure(FailureKind.TRANSIENT, "reset")
