"""What endpoints say in headers: waits and limits, in every form, and nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.models.headers import MAX_RETRY_AFTER, RateLimit, RateLimits, rate_limits, retry_after, should_retry

NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ms-retry-after-ms": "700", "retry-after": "9"}, 0.7),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}, 30.0),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "86400"}, MAX_RETRY_AFTER),
        ({"retry-after": "99999999999999999999"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "x", "retry-after": "3"}, 3.0),
        ({}, None),
    ],
)
def test_a_wait_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Nonsense is no wait; a past date is none either; an absurd one is cut."""
    assert retry_after(headers, NOW) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_text_breaks_the_reading(value: str, other: str) -> None:
    """Any text gives a bounded wait or none, and limits or none."""
    wait = retry_after({"retry-after": value, "retry-after-ms": other}, NOW)
    assert wait is None or 0.0 <= wait <= MAX_RETRY_AFTER
    rate_limits({"x-ratelimit-limit-tokens": value, "x-ratelimit-reset-tokens": other}, NOW)
    rate_limits({"anthropic-ratelimit-tokens-limit": "1", "anthropic-ratelimit-tokens-reset": other}, NOW)
    assert should_retry({"x-should-retry": value}) in (True, False, None)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_reset_is_never_negative(number: int, unit: str) -> None:
    """Durations are read whatever their unit."""
    limits = rate_limits({"x-ratelimit-limit-requests": "1", "x-ratelimit-reset-requests": f"{number}{unit}"}, NOW)
    assert limits is not None
    assert limits.requests is not None
    assert limits.requests.reset is not None
    assert limits.requests.reset >= 0


def test_openai_tells_durations() -> None:
    """Go's notation: 6m0s, 8.64s, 1ms."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert rate_limits(headers, NOW) == RateLimits("openai", RateLimit(60, 59, 1.0), RateLimit(150000, 149984, 360.0))


def test_anthropic_tells_instants() -> None:
    """RFC 3339; a reset in the past is now."""
    headers = {
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:25Z",
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1998000",
        "anthropic-ratelimit-input-tokens-reset": "2026-09-21T14:13:00Z",
    }
    limits = rate_limits(headers, NOW)
    assert limits is not None
    assert limits.requests == RateLimit(4000, 3999, 5.0)
    assert limits.input_tokens == RateLimit(2_000_000, 1_998_000, 0.0)
    assert limits.tokens is None


def test_other_dialects_are_told_apart() -> None:
    """Together's limits are a second's; Fireworks counts prompt and generated tokens; Azure names no limit."""
    together = rate_limits({"x-ratelimit-limit": "10", "x-ratelimit-limit-tokens": "3000"}, NOW)
    assert together == RateLimits("together", RateLimit(10, None, None, 1.0), RateLimit(3000, None, None, 1.0))
    fireworks = rate_limits({"x-ratelimit-limit-tokens-prompt": "900000"}, NOW)
    assert fireworks is not None
    assert fireworks.input_tokens == RateLimit(900000, None, None)
    azure = rate_limits({"x-ratelimit-remaining-tokens": "7"}, NOW)
    assert azure == RateLimits("openai", tokens=RateLimit(None, 7, None))
    assert rate_limits({"content-type": "text/html"}, NOW) is None
