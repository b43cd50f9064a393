"""Anthropic's format: what is sent, and what its replies and errors mean."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request, Usage
from sluiceway.core.catalog import Api, JsonMode, Model, Params, Price
from sluiceway.core.errors import InputError
from sluiceway.models.anthropic import AnthropicFormat

LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "login"], "minLength": 1}},
    "required": ["label"],
}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
NOW = 1_790_000_000.0


def model(**given: Any) -> Model:
    base = {"name": "frontier", "provider": "anthropic", "model": "claude-opus-4-8", "api": Api.ANTHROPIC}
    return Model(**{**base, "params": Params(max_tokens=200), **given})


def call(schema: Any = LABEL, system: str = "Classify.") -> Call:
    return Call(model(), Request(system, "My card", schema, "triage", 40, "My card"), 0, NOW + 30, "job-1")


def sent(of: Model, schema: Any = LABEL, system: str = "Classify.") -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(AnthropicFormat(of).encode(call(schema, system)))
    return body


def read(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply | Failure:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return AnthropicFormat(model()).decode(status, headers or {}, raw, call(), NOW)


def reply(**given: Any) -> Reply:
    body = {
        "id": "msg_1",
        "type": "message",
        "model": "claude-opus-4-8",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": '{"label":"login"}'}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 50, "output_tokens": 5},
    }
    found = read({**body, **given})
    assert isinstance(found, Reply), found
    return found


def test_the_body_holds_the_prompt_and_a_closed_schema() -> None:
    """Strict output by output_config; checks that the API refuses are left out of the copy."""
    closed = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["billing", "login"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
    assert sent(model(params=Params(max_tokens=200, reasoning_effort="low", temperature=0))) == {
        "model": "claude-opus-4-8",
        "max_tokens": 200,
        "system": [{"type": "text", "text": "Classify."}],
        "temperature": 0.0,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": closed}},
        "messages": [{"role": "user", "content": "My card"}],
    }


def test_a_tool_is_forced_in_tool_mode_and_where_the_schema_has_no_strict_form() -> None:
    """The tool's input is then the answer."""
    for body, schema in ((sent(model(json_mode=JsonMode.TOOL), OPEN), OPEN), (sent(model(), OPEN), OPEN)):
        assert body["tools"][0]["input_schema"] == schema
        assert body["tool_choice"] == {"type": "tool", "name": "triage"}
        assert "output_config" not in body


@pytest.mark.parametrize("mode", [JsonMode.ON, JsonMode.OFF])
def test_other_modes_rely_on_the_prompt(mode: JsonMode) -> None:
    """This API has no plain JSON mode."""
    assert not {"tools", "output_config"} & set(sent(model(json_mode=mode)))


def test_only_a_long_prefix_that_has_a_cache_price_is_marked() -> None:
    """A mark costs a cache write; it must be able to pay."""
    long = "Classify the ticket by these rules. " * 400
    price = Price(input_mtok=Decimal(5), cache_read_mtok=Decimal("0.5"), output_mtok=Decimal(25))
    assert sent(model(price=price), system=long)["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in sent(model(price=price))["system"][0]
    assert "cache_control" not in sent(model(price="free"), system=long)["system"][0]


def test_usage_is_disjoint_as_the_api_gives_it() -> None:
    """input_tokens excludes the cached ones; the hour's cache writes are counted apart."""
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 200,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        "output_tokens": 7,
    }
    assert reply(usage=usage).usage == Usage(10, 200, 10, 20, 7, 0)
    sparse = {"input_tokens": 10, "cache_creation": None, "cache_read_input_tokens": None, "output_tokens": 7}
    assert reply(usage=sparse).usage == Usage(input_uncached=10, output_text=7)
    assert reply(usage=None).usage.input == 40


def test_text_is_joined_without_thinking_and_a_tools_input_wins() -> None:
    """Blocks of other kinds are no answer."""
    assert reply().text == '{"label":"login"}'
    blocks = [{"type": "text", "text": "So:"}, {"type": "tool_use", "name": "triage", "input": {"label": "login"}}, 7]
    assert reply(content=blocks).text == '{"label":"login"}'
    assert reply(content=[]).text == ""


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", FinishReason.STOP),
        ("tool_use", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("refusal", FinishReason.DECLINED),
        (None, FinishReason.STOP),
    ],
)
def test_stop_reasons(reason: str | None, finish: FinishReason) -> None:
    """A refusal is declined, a cut answer is cut."""
    assert reply(stop_reason=reason).finish is finish


@pytest.mark.parametrize(
    ("status", "kind", "error", "retry"),
    [
        (529, "overloaded", "overloaded_error", "overloaded"),
        (429, "overloaded", "rate_limit_error", "rate_limit_exceeded"),
        (500, "transient", "api_error", "http_500"),
        (504, "transient", "timeout_error", "http_504"),
        (400, "invalid", "invalid_request_error", "http_400"),
        (401, "invalid", "authentication_error", "invalid_api_key"),
        (402, "invalid", "billing_error", "insufficient_quota"),
        (403, "invalid", "permission_error", "permission_denied"),
        (413, "invalid", "request_too_large", "http_413"),
    ],
)
def test_errors_have_their_retry_class(status: int, kind: str, error: str, retry: str) -> None:
    """By status and type."""
    body = {"type": "error", "error": {"type": error, "message": "secret job text"}}
    found = read(body, status, {"retry-after": "3"})
    assert isinstance(found, Failure)
    wait = None if kind == "invalid" else 3.0
    assert (found.kind, found.detail, found.retry_after) == (FailureKind(kind), retry, wait)


def test_a_prompt_that_is_too_long_has_its_own_code() -> None:
    """The cascade can then choose a model with a larger window."""
    body = {"error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}
    found = read(body, 400)
    assert isinstance(found, Failure)
    assert found.detail == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"7", b'{"content": 7}', b'{"content"'])
def test_a_200_without_an_answer_is_transient(body: bytes) -> None:
    """It may be whole the next time."""
    found = read(body)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.TRANSIENT


def test_urls_and_headers() -> None:
    """With or without /v1 in the base URL."""
    wire = AnthropicFormat(model())
    for base in ("https://api.anthropic.com", "https://api.anthropic.com/", "https://api.anthropic.com/v1"):
        assert wire.path(base) == "https://api.anthropic.com/v1/messages"
    assert wire.headers("k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    with pytest.raises(InputError, match="system"):
        AnthropicFormat(model(extra_body={"system": "x"}))
