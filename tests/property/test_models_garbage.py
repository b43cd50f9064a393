"""Whatever bytes an endpoint sends, a reply is a Reply or a Failure: nothing raises, and its laws hold."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.call import Call, Failure, Reply, Request
from sluiceway.core.catalog import Api, Model
from sluiceway.models.anthropic import AnthropicFormat
from sluiceway.models.openai import OpenAIFormat

NOW = 1_790_000_000.0
MODEL = Model(name="m", provider="openai", model="m")
CALL = Call(MODEL, Request("s", "u", None, "n", 10, "u"), 0, NOW + 30, "j", True)
FORMATS = (OpenAIFormat(MODEL), AnthropicFormat(Model(name="m", model="m", api=Api.ANTHROPIC)))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["stop", "length", "refusal", "tool_use", "text", "content_filter", "insufficient_quota"]),
)
NAMES = st.sampled_from(
    [
        *(
            "choices",
            "message",
            "content",
            "finish_reason",
            "logprobs",
            "usage",
            "error",
            "code",
            "type",
            "text",
            "token",
        ),
        *("logprob", "bytes", "top_logprobs", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "input"),
        *("cached_tokens", "input_tokens", "output_tokens", "cache_creation", "tool_calls", "function", "arguments"),
        *("refusal", "model", "id", "stop_reason"),
    ]
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=40
)
NUMBER = st.one_of(st.none(), st.integers(-5, 2**40), st.floats(-9999, 1), JSON)


@st.composite
def near_replies(draw: st.DrawFn) -> Any:
    """Bodies that look right, with garbage where a value belongs."""
    some = st.one_of(JSON, st.text(max_size=6))
    token = st.fixed_dictionaries({"token": some, "logprob": NUMBER, "bytes": JSON, "top_logprobs": JSON})
    message = {"content": draw(some), "refusal": draw(JSON), "tool_calls": draw(JSON)}
    logprobs = {"content": draw(st.lists(token, max_size=4))}
    usage = draw(
        st.dictionaries(NAMES, NUMBER, max_size=4)
        | st.fixed_dictionaries({"prompt_tokens": NUMBER, "completion_tokens": NUMBER, "input_tokens": NUMBER})
    )
    choice = {"message": message, "finish_reason": draw(JSON), "logprobs": logprobs}
    return {"choices": [choice], "content": draw(st.lists(JSON, max_size=3)), "usage": usage, "stop_reason": draw(JSON)}


def _held(body: bytes, status: int, headers: dict[str, str]) -> None:
    for wire in FORMATS:
        found = wire.decode(status, headers, body, CALL, NOW)
        assert isinstance(found, Reply | Failure)
        if isinstance(found, Reply):
            usage = found.usage
            assert min(usage.input_uncached, usage.input_cache_read, usage.output_text, usage.output_reasoning) >= 0
            joined = b"".join(token.token for token in found.logprobs)
            assert joined in (b"", found.text.encode())
            assert all(token.logprob <= 0 for token in found.logprobs)
        else:
            assert found.retry_after is None or found.retry_after >= 0
            assert found.detail.replace("_", "").isalnum()
            assert len(found.detail) <= 32


@given(st.binary(max_size=200), st.integers(200, 599))
def test_any_bytes_give_a_reply_or_a_failure(body: bytes, status: int) -> None:
    """Bytes that are no JSON at all."""
    _held(body, status, {})


@given(JSON, st.sampled_from([200, 400, 401, 404, 429, 500, 529]), st.text(max_size=12))
def test_any_json_gives_a_reply_or_a_failure(body: Any, status: int, wait: str) -> None:
    """JSON of any shape under the names that the formats use."""
    _held(orjson.dumps(body), status, {"retry-after": wait, "x-should-retry": wait})


@settings(max_examples=300)
@given(near_replies())
def test_a_reply_with_garbage_inside_keeps_its_laws(body: Any) -> None:
    """Counts are never negative; logprobs spell the text or are not there."""
    _held(orjson.dumps(body), 200, {})
