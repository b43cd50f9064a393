"""The bench's model server, a process of its own: one fixed answer to every POST, after a fixed delay.

`python -m tests.bench._server DELAY` prints its port as its first line. It reads only as much HTTP as its clients send.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

_TOKENS = ('{"', "label", '":"', "billing", '"}')


def answer() -> bytes:
    """A chat completion with log-probabilities, as a server sends it."""
    content = [
        {
            "token": token,
            "logprob": -0.01,
            "bytes": list(token.encode()),
            "top_logprobs": [
                {"token": other, "logprob": -0.01 - place, "bytes": list(other.encode())}
                for place, other in enumerate((token, "x", "y", "z", "w"))
            ],
        }
        for token in _TOKENS
    ]
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(_TOKENS), "refusal": None},
                "logprobs": {"content": content, "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 5, "total_tokens": 185},
    }
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\ncontent-length: {len(text)}"
    return head.encode() + b"\r\n\r\n" + text


class _Connection(asyncio.Protocol):
    def __init__(self, delay: float, reply: bytes) -> None:
        self._delay, self._reply = delay, reply
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._send)
            else:
                self._send()

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._reply)


async def serve(delay: float) -> None:
    reply = answer()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(delay, reply), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it closes it


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(float(sys.argv[1])))
