"""A model server that allows so much a minute, a process of its own: `python -m tests.bench._limited SETTINGS`.

SETTINGS is JSON: `rpm` and `tpm`; `headers` openai or anthropic, which is also the format of its answers; `windows`
true for fixed minutes instead of buckets refilled continuously (five seconds' burst). Beyond either limit it answers
429. It prints its port as its first line, and has two control requests: POST /limits {"rpm", "tpm"} changes both from
now on, POST /journal gives [[steady seconds, tokens, admitted], ...] of every request and [[steady seconds, rpm, tpm],
...] of every limit. A call's tokens are a fourth of its characters and its answer's: not what our own counter says.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from datetime import UTC, datetime
from typing import Any

from tests.support.limited_server import ContinuousMeter, Meter, WindowMeter

ANSWER = '{"label":"billing"}'
ANSWER_TOKENS = 5
DELAY = (0.1, 0.5)  # seconds of an answer, at random between these
_OWN = 40  # characters of a body's text that are no words of it


def text_of(body: Any) -> int:
    """The characters that a request in either format asks about."""
    if isinstance(body, str):
        return len(body)
    if isinstance(body, list):
        return sum([text_of(part) for part in body])
    return text_of(body.get("text") or body.get("content") or "")


def tokens_of(body: dict[str, Any]) -> int:
    """What the server counts for a request, its answer included."""
    return (text_of(body.get("system", "")) + text_of(body["messages"]) + _OWN) // 4 + ANSWER_TOKENS


class Server:
    """The meter, its journal, and what it tells in headers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.family = settings["headers"]
        self.windows = bool(settings.get("windows"))
        self.rpm, self.tpm = float(settings["rpm"]), float(settings["tpm"])
        self._dice = random.Random(5)
        self._requests: list[tuple[float, int, bool]] = []
        self._limits = [(time.monotonic(), self.rpm, self.tpm)]
        self._meter: Meter = (
            WindowMeter(self.rpm, self.tpm)
            if self.windows
            else ContinuousMeter(self.rpm, self.tpm, self.family, at=time.time())
        )

    def answer(self, path: bytes, body: bytes) -> tuple[float, bytes]:
        """The seconds until the answer goes out, and the answer."""
        if path.startswith(b"/limits"):
            wanted = json.loads(body)
            self.rpm = self._meter.rpm = wanted["rpm"]  # type: ignore[attr-defined]  # both kinds have it
            self.tpm = self._meter.tpm = wanted["tpm"]  # type: ignore[attr-defined]  # both kinds have it
            self._limits.append((time.monotonic(), self.rpm, self.tpm))
            return 0.0, _http(200, {}, b"{}")
        if path.startswith(b"/journal"):
            return 0.0, _http(200, {}, json.dumps({"requests": self._requests, "limits": self._limits}).encode())
        tokens = tokens_of(json.loads(body))
        wait = self._meter.admit(tokens, time.time())
        self._requests.append((time.monotonic(), tokens, wait is None))
        headers = self._told(time.time())
        if wait is None:
            return self._dice.uniform(*DELAY), _http(200, headers, self._reply(tokens - ANSWER_TOKENS))
        headers["retry-after"] = str(int(wait) + 1)
        return 0.0, _http(429, headers, self._refusal())

    def _told(self, now: float) -> dict[str, str]:
        """The limits, what is left of them, and when each is whole again: in the provider's own words."""
        if isinstance(self._meter, WindowMeter):
            left = (self.rpm - self._meter.requests, self.tpm - self._meter.tokens)
            resets = (60.0 - now % 60.0,) * 2
        else:
            assert isinstance(self._meter, ContinuousMeter)
            self._meter.told(now)  # refills it
            left = (self._meter.requests, self._meter.tokens)
            resets = tuple(  # type: ignore[assignment]  # two of two
                (limit / 60 * self._meter.burst - has) / (limit / 60)
                for limit, has in zip((self.rpm, self.tpm), left, strict=True)
            )
        kinds = zip(("requests", "tokens"), (self.rpm, self.tpm), left, resets, strict=True)
        if self.family == "openai":
            return {
                f"x-ratelimit-{what}-{kind}": value
                for kind, limit, has, reset in kinds
                for what, value in (("limit", f"{limit:.0f}"), ("remaining", f"{int(has)}"), ("reset", f"{reset:.3f}s"))
            }
        told = {}
        for kind, limit, has, reset in kinds:
            # Of tokens Anthropic tells thousands, and of both when they are whole, to the second.
            shown = int(has) if kind == "requests" else round(has, -3)
            told[f"anthropic-ratelimit-{kind}-limit"] = f"{limit:.0f}"
            told[f"anthropic-ratelimit-{kind}-remaining"] = f"{shown:.0f}"
            told[f"anthropic-ratelimit-{kind}-reset"] = f"{datetime.fromtimestamp(now + reset, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return told

    def _reply(self, given: int) -> bytes:
        if self.family == "anthropic":
            tree: dict[str, Any] = {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "bench",
                "content": [{"type": "text", "text": ANSWER}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": given, "output_tokens": ANSWER_TOKENS},
            }
        else:
            tree = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1_790_000_000,
                "model": "bench",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": given,
                    "completion_tokens": ANSWER_TOKENS,
                    "total_tokens": given + ANSWER_TOKENS,
                },
            }
        return json.dumps(tree).encode()

    def _refusal(self) -> bytes:
        said = "Rate limit reached for this minute"
        if self.family == "anthropic":
            return json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": said}}).encode()
        error = {"message": said, "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
        return json.dumps({"error": error}).encode()


def _http(status: int, headers: dict[str, str], body: bytes) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Too Many Requests'}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Connection(asyncio.Protocol):
    """One request after another: its clients send the next when they have their answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
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
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            seconds, answer = self._server.answer(head.split(b" ", 2)[1], body)
            if seconds:
                asyncio.get_running_loop().call_later(seconds, self._send, answer)
            else:
                self._send(answer)

    def _send(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def serve(settings: dict[str, Any]) -> None:
    one = Server(settings)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(one), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it closes it


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(json.loads(sys.argv[1])))
