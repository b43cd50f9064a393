"""Metered tokens, normalised: each provider's count becomes disjoint fields (wire-formats, sections 1, 4 and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluiceway.core.call import Call, Usage
from sluiceway.models import tokens

_NONE: Mapping[str, Any] = {}


def openai_usage(raw: object, call: Call, text: str) -> Usage | None:
    """`prompt_tokens` includes the cached ones. None where the response has no count at all.

    Where one half is missing `total_tokens` tells it, else our own count of `call` or of the answer's `text`. DeepSeek
    names its cache hits `prompt_cache_hit_tokens`. xAI leaves reasoning out of `completion_tokens`: its total tells.
    Counts that contradict each other are held to their sum, so that nothing is billed twice.
    """
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    total = _count(raw.get("total_tokens"))
    if prompt is None:
        prompt = call.request.input_tokens if total is None else max(0, total - (completion or 0))
    if completion is None:
        completion = _counted(text) if total is None else max(0, total - prompt)
    details = _part(raw, "prompt_tokens_details")
    cached = _count(details.get("cached_tokens"))
    if cached is None:
        cached = _count(raw.get("prompt_cache_hit_tokens")) or 0
    cached = min(cached, prompt)
    written = min(_count(details.get("cache_write_tokens")) or 0, prompt - cached)
    reasoning = _count(_part(raw, "completion_tokens_details").get("reasoning_tokens")) or 0
    if reasoning and total == prompt + completion + reasoning:
        spoken = completion
    else:
        reasoning = min(reasoning, completion)
        spoken = completion - reasoning
    return Usage(
        input_uncached=prompt - cached - written,
        input_cache_read=cached,
        input_cache_write_5m=written,
        output_text=spoken,
        output_reasoning=reasoning,
    )


def anthropic_usage(raw: object, call: Call, text: str) -> Usage | None:
    """`input_tokens` excludes what was cached. None where the response has no count at all.

    A half that is missing is our own count: of `call`, less what was cached, or of the answer's `text`.
    """
    if not isinstance(raw, dict):
        return None
    fresh, output = _count(raw.get("input_tokens")), _count(raw.get("output_tokens"))
    if fresh is None and output is None:
        return None
    written = _count(raw.get("cache_creation_input_tokens")) or 0
    read = _count(raw.get("cache_read_input_tokens")) or 0
    fresh = max(0, call.request.input_tokens - written - read) if fresh is None else fresh
    output = _counted(text) if output is None else output
    creation = _part(raw, "cache_creation")
    hour = min(_count(creation.get("ephemeral_1h_input_tokens")) or 0, written)
    reasoning = min(_count(_part(raw, "output_tokens_details").get("reasoning_tokens")) or 0, output)
    return Usage(
        input_uncached=fresh,
        input_cache_read=read,
        input_cache_write_5m=written - hour,
        input_cache_write_1h=hour,
        output_text=output - reasoning,
        output_reasoning=reasoning,
    )


def estimated(call: Call, text: str) -> Usage:
    """Our own count, where an endpoint gives none: better than a call that seems free."""
    return Usage(input_uncached=call.request.input_tokens, output_text=_counted(text))


def _counted(text: str) -> int:
    return tokens.default().count(text)


def _part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = raw.get(name)
    return part if isinstance(part, dict) else _NONE


def _count(value: object) -> int | None:
    """A count of tokens; negative ones and other types are no count."""
    return value if type(value) is int and value >= 0 else None
