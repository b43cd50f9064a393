"""One client of the bench, in its own environment: `python _peers.py CLIENT BODIES` reads runs from stdin.

A run is `{"url", "seconds", "in_flight"}`; its answer one line: `{"calls", "seconds", "cpu_us", "p50", "p99"}`. It
stands alone, as it runs where Sluiceway is not installed. `ours` is in `_ours.py`, and is driven by the same loop.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Call = Callable[[int], Awaitable[None]]
Opened = tuple[Call, Callable[[], Awaitable[None]]]
HEADERS = {"content-type": "application/json", "authorization": "Bearer bench"}


async def measured(call: Call, seconds: float, in_flight: int) -> dict[str, float]:
    """How many calls `in_flight` loops finish in `seconds`, after a tenth of it that does not count.

    Of those that began in that tenth, when all connections were opened at once, none counts in p50 and p99.
    """
    loop_time = time.perf_counter
    spans: list[float] = []
    calls = 0
    began = loop_time()
    cpu = time.process_time()
    counts_from, ends = began + seconds * 0.1, began + seconds * 1.1
    number = 0

    async def one() -> None:
        nonlocal number, calls
        while (start := loop_time()) < ends:
            number += 1
            await call(number)
            now = loop_time()
            if counts_from <= now <= ends:
                calls += 1
                if start >= counts_from:
                    spans.append(now - start)

    await asyncio.gather(*(one() for _ in range(in_flight)))
    cpu = time.process_time() - cpu
    spans.sort()
    return {
        "calls": calls,
        "seconds": seconds,
        "cpu_us": 1e6 * cpu / max(number, 1),
        "p50": spans[len(spans) // 2] if spans else 0.0,
        "p99": spans[int(len(spans) * 0.99)] if spans else 0.0,
    }


async def litellm_router(url: str, bodies: list[bytes]) -> Opened:
    import litellm

    litellm.suppress_debug_info = True
    parsed = [json.loads(body) for body in bodies]
    for body in parsed:
        body["model"] = "bench"
    to = {"model": "openai/bench", "api_base": f"{url}/v1", "api_key": "bench"}
    router = litellm.Router(model_list=[{"model_name": "bench", "litellm_params": to}], num_retries=0)

    async def call(number: int) -> None:
        reply = await router.acompletion(**parsed[number % len(parsed)])
        assert reply.choices[0].message.content

    async def close() -> None:
        pass

    return call, close


async def httpx_aiohttp(url: str, bodies: list[bytes]) -> Opened:
    import aiohttp
    import httpx
    from httpx_aiohttp import AiohttpTransport

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    client = httpx.AsyncClient(transport=AiohttpTransport(client=session), timeout=60)
    whole = f"{url}/v1/chat/completions"

    async def call(number: int) -> None:
        reply = await client.post(whole, content=bodies[number % len(bodies)], headers=HEADERS)
        assert reply.content

    return call, client.aclose


async def bare_aiohttp(url: str, bodies: list[bytes]) -> Opened:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    whole = f"{url}/v1/chat/completions"

    async def call(number: int) -> None:
        async with session.post(whole, data=bodies[number % len(bodies)], headers=HEADERS) as reply:
            assert await reply.read()

    return call, session.close


CLIENTS: dict[str, Callable[[str, list[bytes]], Awaitable[Opened]]] = {
    "litellm": litellm_router,
    "httpx-aiohttp": httpx_aiohttp,
    "aiohttp": bare_aiohttp,
}


def obey(open_client: Callable[[str, list[bytes]], Awaitable[Opened]], bodies: list[bytes]) -> None:
    """Runs what stdin asks for, one run a line, until it ends."""
    import uvloop

    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)

        async def run(asked: dict[str, Any] = asked) -> dict[str, float]:
            call, close = await open_client(asked["url"], bodies)
            try:
                await call(0)
                return await measured(call, asked["seconds"], asked["in_flight"])
            finally:
                await close()

        print(json.dumps(uvloop.run(run())), flush=True)


if __name__ == "__main__":
    with open(sys.argv[2], "rb") as file:
        obey(CLIENTS[sys.argv[1]], file.read().splitlines())
