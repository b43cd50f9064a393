"""A TCP proxy before a broker's second listener: it passes, cuts, stalls or slices what flows through it."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from pathlib import Path
from typing import Any, Self

from tests.support.apache_kafka import ApacheKafka, free_ports


class Way(Enum):
    THROUGH = "through"
    CUT = "cut"  # connections are reset, new ones too
    STALL = "stall"  # connections stay open, nothing flows
    SLICE = "slice"  # a few bytes at a time


class Proxy:
    """`async with Proxy(port, to) as proxy: proxy.way = Way.STALL`."""

    def __init__(self, port: int, to: str) -> None:
        self.bootstrap = f"127.0.0.1:{port}"
        self.cuts = 0
        self._port = port
        self._host, _, to_port = to.rpartition(":")
        self._to = int(to_port)
        self._way = Way.THROUGH
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def way(self) -> Way:
        return self._way

    @way.setter
    def way(self, way: Way) -> None:
        self._way = way
        if way is Way.STALL:
            self._flows.clear()
        else:
            self._flows.set()
        if way is Way.CUT:
            self.cuts += len(self._open)
            for writer in list(self._open):
                writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.way = Way.CUT
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._way is Way.CUT:
            writer.transport.abort()
            return
        try:
            onward, back = await asyncio.open_connection(self._host, self._to)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._open |= both
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(onward, writer))
        finally:
            self._open -= both
            for end in both:
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._flows.wait()
                if self._way is Way.SLICE:
                    for place in range(0, len(data), 1000):
                        sink.write(data[place : place + 1000])
                        await sink.drain()
                        await asyncio.sleep(0.001)
                else:
                    sink.write(data)
                    await sink.drain()
            sink.transport.abort()


class ProxiedKafka(ApacheKafka):
    """A broker with one more listener, whose advertised address is a proxy's. The proxy is started by who needs it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.behind, self.front = free_ports(2)

    def proxy(self) -> Proxy:
        return Proxy(self.front, f"127.0.0.1:{self.behind}")

    def _properties(self) -> dict[str, str]:
        properties = super()._properties()
        properties["listeners"] += f",PROXIED://127.0.0.1:{self.behind}"
        properties["advertised.listeners"] += f",PROXIED://127.0.0.1:{self.front}"
        properties["listener.security.protocol.map"] += ",PROXIED:PLAINTEXT"
        return properties
