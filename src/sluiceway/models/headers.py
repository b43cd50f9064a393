"""What an endpoint says in its response headers: how long to wait, and how much of its limits is left.

Pure: the time is an argument. Nonsense is None, never an exception.

Two families of limit headers (wire-formats, sections 1 and 4): `x-ratelimit-*` with reset times as durations ("6m0s",
OpenAI and most compatible servers) and `anthropic-ratelimit-*` with reset times as RFC 3339 instants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from sluiceway.core.ratelimit import RateLimit as RateLimit
from sluiceway.core.ratelimit import RateLimits as RateLimits

MAX_RETRY_AFTER = 60.0  # seconds; an endpoint that asks for more is treated as asking for this

_NUMBER = re.compile(r"\s*([+-]?\d{1,18}(?:\.\d{1,9})?)\s*")
_GO_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ns|us|µs|ms|s|m|h|d)")
_GO_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def retry_after(headers: Mapping[str, str], now: float, longest: float = MAX_RETRY_AFTER) -> float | None:
    """Seconds from `now` that the endpoint asks to wait, within 0..`longest`; None where it says nothing readable.

    In this order: retry-after-ms, x-ms-retry-after-ms (Azure), retry-after in seconds, retry-after as an HTTP date.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            return min(max(milliseconds / 1000, 0.0), longest)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is None:
        instant = _http_date(text)
        if instant is None:
            return None
        seconds = instant - now
    return min(max(seconds, 0.0), longest)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What `x-should-retry` says, or None."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def rate_limits(headers: Mapping[str, str], now: float) -> RateLimits | None:
    """The limits that `headers` tell of, or None."""
    if "ratelimit" not in "".join(headers).lower():
        return None
    found = RateLimits(
        "anthropic",
        _limit(headers, "anthropic-ratelimit-requests-{}", now),
        _limit(headers, "anthropic-ratelimit-tokens-{}", now),
        _limit(headers, "anthropic-ratelimit-input-tokens-{}", now),
        _limit(headers, "anthropic-ratelimit-output-tokens-{}", now),
    )
    if _any(found):
        return found
    found = RateLimits(
        "openai",
        _limit(headers, "x-ratelimit-{}-requests", now),
        _limit(headers, "x-ratelimit-{}-tokens", now),
        _limit(headers, "x-ratelimit-{}-tokens-prompt", now),  # Fireworks
        _limit(headers, "x-ratelimit-{}-tokens-generated", now),
    )
    if found.requests or found.input_tokens or found.output_tokens:
        return found
    a_second = _limit(headers, "x-ratelimit-{}", now)
    if a_second:
        tokens = found.tokens and replace(found.tokens, period=1.0)
        return RateLimits("together", replace(a_second, period=1.0), tokens)
    return found if _any(found) else None


def _any(limits: RateLimits) -> bool:
    return bool(limits.requests or limits.tokens or limits.input_tokens or limits.output_tokens)


def _limit(headers: Mapping[str, str], name: str, now: float) -> RateLimit | None:
    limit = _positive(headers.get(name.format("limit")))
    remaining = _positive(headers.get(name.format("remaining")))
    if limit is None and remaining is None:
        return None
    return RateLimit(limit, remaining, _reset(headers.get(name.format("reset")), now))


def _reset(text: str | None, now: float) -> float | None:
    """Seconds from now: a Go duration, a number of seconds, an epoch in seconds or milliseconds, or RFC 3339."""
    if text is None:
        return None
    number = _number(text)
    if number is not None:
        if number > 1e11:
            number = number / 1000 - now
        elif number > 1e9:
            number -= now
        return max(number, 0.0)
    return _duration(text) if _duration(text) is not None else _instant(text, now)


def _duration(text: str) -> float | None:
    """Seconds of a Go duration such as 8.64s, 1ms or 2m30s; None where the whole text is not one."""
    text = text.strip()
    total, end = 0.0, 0
    while part := _GO_PART.match(text, end):
        total += float(part[1]) * _GO_SECONDS[part[2]]
        end = part.end()
    return total if end and end == len(text) and math.isfinite(total) else None


def _instant(text: str, now: float) -> float | None:
    try:
        instant = datetime.fromisoformat(text.strip())
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return max(instant.timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return None


def _http_date(text: str) -> float | None:
    try:
        instant = parsedate_to_datetime(text)
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return instant.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    match = _NUMBER.fullmatch(text) if text is not None else None
    return float(match[1]) if match else None


def _positive(text: str | None) -> float | None:
    number = _number(text)
    return number if number is not None and number >= 0 else None
