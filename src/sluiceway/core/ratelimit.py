"""What an endpoint tells of its own limits, as values: whichever headers they came in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One limit: its size, what is left, and the seconds until it is whole again. None: not said.

    `limit` holds for `period` seconds: a minute, but for Together's (a second) and Groq's requests (a day).
    """

    limit: float | None
    remaining: float | None
    reset: float | None
    period: float = 60.0


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits that one response told of. `family` says whose meaning its numbers have.

    `openai`: a minute's requests and tokens, reset when the bucket is full again. `anthropic`: `remaining` of tokens is
    rounded to thousands, and input tokens leave out what was read from a cache. `together`: a second's.
    """

    family: str
    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    input_tokens: RateLimit | None = None
    output_tokens: RateLimit | None = None
