"""How fast the fake model server is: `python -m tests.support.fake_load [SECONDS]` prints requests a second.

One fake process on one core, one raw-socket client on another, 64 connections, journal on disk, JSON-schema answers
with log-probabilities. The client is kept raw so that the fake is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.support.fake_journal import read_journal
from tests.support.fake_process import FakeProcess

SCHEMA = {"type": "object", "properties": {"label": {"enum": [f"label_{n}" for n in range(40)]}}, "required": ["label"]}


def request(number: int) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    messages = [{"role": "system", "content": "Classify. " * 40}, {"role": "user", "content": f"ticket {number} " * 20}]
    body = json.dumps(
        {"model": "m", "messages": messages, "logprobs": True, "top_logprobs": 5, "response_format": form}
    ).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "authorization: Bearer k", f"content-length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


async def client(port: int, until: float, requests: list[bytes]) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while time.monotonic() < until:
        writer.write(requests[done % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        done += 1
    writer.close()
    return done


async def load(port: int, seconds: float) -> float:
    prepared = [[request(1000 * number + place) for place in range(50)] for number in range(64)]
    started = time.monotonic()
    done = await asyncio.gather(*(client(port, started + seconds, requests) for requests in prepared))
    return sum(done) / (time.monotonic() - started)


def main() -> None:
    import uvloop

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeProcess(Path(folder) / "journal.jsonl", "labels doubt=10%") as fake,
    ):
        rate = uvloop.run(load(int(fake.url.rpartition(":")[2]), seconds))
        print(f"{rate:,.0f} requests/s, {len(read_journal(fake.journal)):,} journaled")


if __name__ == "__main__":
    main()
