"""A POST on aiohttp's own connections and response parser, without the layers of its client above them.

Those cost a quarter of a call's CPU, and do nothing that is wanted here: no cookies, redirects, proxies, retries or
time-outs. The head of a request is written once for each place it goes to. What aiohttp raises passes through.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, TypeVar

import aiohttp
import certifi
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from multidict import CIMultiDict

from sluiceway.models.turn import Turn

_KEEPALIVE = 30.0  # seconds unused; below the idle time-out of the usual servers and load balancers (60 s and more)
_DNS_CACHE = 60  # seconds
_NO_LIMIT = aiohttp.ClientTimeout()
_SWITCHED = 101
_OWN = frozenset({"content-length", "transfer-encoding"})  # written for each body

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Way:
    """How requests go to one URL: what finds their connection, and their head up to the length of the body.

    `idle`: connections that may be used again, with when each was used last, which rises.
    """

    asked: aiohttp.ClientRequest
    head: bytes
    idle: deque[tuple[Connection, float]] = field(default_factory=deque, repr=False)

    def __repr__(self) -> str:
        return f"Way({self.asked.url.origin()})"  # the head holds the key


class _Handler(ResponseHandler):
    """aiohttp's protocol, but what was not paused is not resumed, as it is by each body that ends or is read."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:
            super().resume_reading(resume_parser)


class _Idle:
    """The parser of a connection on which nothing is asked: what comes there closes it.

    aiohttp would keep it, and give it as the answer to the next request.
    """

    def feed_data(self, _: bytes) -> NoReturn:
        raise HttpProcessingError(message="a response that nothing asked for")

    def feed_eof(self) -> None:
        """Nothing is cut off by an end here."""


_IDLE = _Idle()


class Wire:
    """Connections to all endpoints of one event loop, as many at once as are asked for."""

    def __init__(self) -> None:
        context = ssl.create_default_context(cafile=certifi.where())
        context.load_default_certs()  # and what the machine's owner trusts, a company's own CA for instance
        self._connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=_DNS_CACHE, ssl=context)
        self._loop = asyncio.get_running_loop()
        self._connector._factory = partial(_Handler, loop=self._loop)  # type: ignore[assignment]  # a subclass of its own
        self._turn = Turn()
        self._ways: list[Way] = []
        self._sweeper: asyncio.TimerHandle | None = None  # while a connection is idle

    def way(self, url: yarl.URL, headers: CIMultiDict[str]) -> Way:
        """The way to `url` with these headers, which hold no line end."""
        asked = aiohttp.ClientRequest("POST", url, headers=headers, loop=self._loop)
        lines = [f"{name}: {value}" for name, value in asked.headers.items() if name.lower() not in _OWN]
        way = Way(asked, "\r\n".join([f"POST {url.raw_path_qs} HTTP/1.1", *lines, "content-length: "]).encode())
        self._ways.append(way)
        return way

    async def post(
        self, way: Way, body: bytes, read: Callable[[RawResponseMessage, aiohttp.StreamReader], Awaitable[Read]]
    ) -> Read:
        """What `read` makes of the response. The connection is kept if that was read whole, and closed otherwise."""
        connection = self._idle(way) or await self._connector.connect(way.asked, [], _NO_LIMIT)
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            protocol.transport.write(b"%b%d\r\n\r\n%b" % (way.head, len(body), body))
            message, content = await protocol.read()
            if self._turn.full():
                await self._turn.wait()
            while message.code < 200 and message.code != _SWITCHED:  # a word before the response
                message, content = await protocol.read()
            found = await read(message, content)
            if _reusable(protocol):
                protocol._parser = _IDLE  # type: ignore[assignment]  # it has the two methods that are called
                self._keep(way, connection)
            else:
                connection.close()
        except BaseException:
            connection.close()
            raise
        return found

    # -- connections ---------------------------------------------------------------------------------------------
    # aiohttp's own pool keeps what is given back to it. What is idle stays with its way here, which spares each call
    # giving back and finding again; the connector counts it as in use.

    def _idle(self, way: Way) -> Connection | None:
        """The one that was used last, so that those which are not needed grow old."""
        oldest = self._loop.time() - _KEEPALIVE
        while way.idle:
            connection, used = way.idle.pop()
            if used >= oldest and not connection.closed:
                return connection
            connection.close()
        return None

    def _keep(self, way: Way, connection: Connection) -> None:
        way.idle.append((connection, self._loop.time()))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_KEEPALIVE, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        oldest = self._loop.time() - _KEEPALIVE
        for way in self._ways:
            while way.idle and (way.idle[0][1] <= oldest or way.idle[0][0].closed):
                way.idle.popleft()[0].close()
            if way.idle and self._sweeper is None:
                self._sweeper = self._loop.call_later(_KEEPALIVE, self._sweep)

    async def aclose(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for way in self._ways:
            while way.idle:
                way.idle.pop()[0].release()
        await self._connector.close()  # which waits until they are closed


def _reusable(protocol: ResponseHandler) -> bool:
    """Whether a response was read whole, it lets the connection be used again, and not a byte came after it."""
    parser = protocol._parser
    if parser is None or protocol.should_close:
        return False
    try:  # of a head that has begun aiohttp's parser in C gives what it has or raises, the one in Python keeps lines
        return parser.feed_eof() is None and not getattr(parser, "_lines", None)
    except HttpProcessingError:
        return False
