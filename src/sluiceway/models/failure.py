"""An HTTP error response as a Failure: which of the three retry classes it belongs to, and its short code.

Details come from a closed set: known error codes, else `http_STATUS`. An endpoint's own text is read, never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sluiceway.core.call import Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.models import headers as header_values

_TRANSIENT = frozenset({408, 409, 425, 500, 502, 504, 520, 521, 522, 523, 524})
_OVERLOADED = frozenset({429, 503, 529})

_CODES = {
    "invalid_api_key": "invalid_api_key",
    "authentication_error": "invalid_api_key",
    "permission_error": "permission_denied",
    "insufficient_quota": "insufficient_quota",
    "billing_error": "insufficient_quota",
    "billing_hard_limit_reached": "insufficient_quota",
    "billing_not_active": "insufficient_quota",
    "model_not_found": "model_not_found",
    "context_length_exceeded": "context_length_exceeded",
    "exceed_context_size_error": "context_length_exceeded",  # llama.cpp
    "content_filter": "content_filter",  # Azure
    "content_policy_violation": "content_filter",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "rate_limit_error": "rate_limit_exceeded",
    "overloaded_error": "overloaded",
}
# Servers that give no code of their own for it: vLLM, Anthropic, DeepSeek, Ollama.
_CONTEXT_PHRASES = ("maximum context length", "context window", "prompt is too long", "context length")


def of_response(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Reply | Failure:
    """What a response other than 2xx means. A filter's refusal to answer is a declined Reply, the rest a Failure."""
    return of_error(status, _error_of(body), headers, now)


def of_error(status: int, error: Mapping[str, Any], headers: Mapping[str, str], now: float) -> Reply | Failure:
    """The same, for an error object that stands in a body; some servers send it with status 200."""
    detail = _detail(status, error)
    if detail == "content_filter":
        return Reply(text="", usage=Usage(), finish=FinishReason.DECLINED)
    kind = _kind(status, detail)
    said = header_values.should_retry(headers)
    if said is False:
        kind = FailureKind.INVALID
    elif said is True and kind is FailureKind.INVALID and detail != "insufficient_quota":
        kind = FailureKind.TRANSIENT
    wait = None if kind is FailureKind.INVALID else header_values.retry_after(headers, now)
    return Failure(kind, detail, wait)


def _kind(status: int, detail: str) -> FailureKind:
    if detail == "insufficient_quota":
        return FailureKind.INVALID
    if status in _OVERLOADED:
        return FailureKind.OVERLOADED
    if status in _TRANSIENT or status >= 500:
        return FailureKind.TRANSIENT
    return FailureKind.INVALID


def _detail(status: int, error: Mapping[str, Any]) -> str:
    for name in ("code", "type"):
        code = error.get(name)
        if isinstance(code, str) and code in _CODES:
            return _CODES[code]
    if status == 402:
        return "insufficient_quota"
    if status == 401:
        return "invalid_api_key"
    if 300 <= status < 400:
        return "redirect"
    message = error.get("message")
    if status in (400, 413, 422) and isinstance(message, str):
        said = message[:2000].lower()
        if any(phrase in said for phrase in _CONTEXT_PHRASES):
            return "context_length_exceeded"
    return f"http_{status}"


def _error_of(body: bytes) -> Mapping[str, Any]:
    """The error object of a body: `{"error": {...}}`, or the body itself; {} where it is neither."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed)
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else {}
