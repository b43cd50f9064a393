"""Anthropic's messages format.

Pure: a Call to body bytes, and a response's bytes to a Reply or a Failure. Any bytes give one of the two, never an
exception. This API has no logprobs. Field names: wire-formats, section 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.core.catalog import JsonMode, Model, Price
from sluiceway.models import failure, schema, tokens
from sluiceway.models.body import Template, Templates, keep_reserved
from sluiceway.models.usage import anthropic_usage, estimated

VERSION = "2023-06-01"
_CACHED_FROM = 1024  # tokens; a shorter prefix is not cached, and marking it would buy nothing
_RESERVED = frozenset({"model", "messages", "system", "stream", "tools", "tool_choice", "max_tokens"})


class AnthropicFormat:
    """One model's requests and replies in this format."""

    def __init__(self, model: Model) -> None:
        keep_reserved(model, _RESERVED, "json_mode, params and the prompt")
        self._model = model
        self._templates = Templates(self._template)

    def path(self, base_url: str) -> str:
        """The whole URL of a message, whether or not `base_url` ends in /v1."""
        base = base_url.rstrip("/")
        if base.endswith("/messages"):
            return base
        return f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key is not None else {})

    def encode(self, call: Call) -> bytes:
        """The request's body. Raises InputError where the text can't be written as UTF-8 (a lone surrogate)."""
        return self._templates.fill(call)

    def _template(self, call: Call) -> Template:
        model, request, params = self._model, call.request, self._model.params
        system: dict[str, Any] = {"type": "text", "text": request.system}
        if self._caches(request.system):
            system["cache_control"] = {"type": "ephemeral"}
        # A packed call's longest answer is its own: it holds those of several jobs.
        longest = call.model.params.max_tokens
        body: dict[str, Any] = {"model": model.model, "max_tokens": longest, "system": [system]}
        for name in ("temperature", "service_tier"):
            value = getattr(params, name)
            if value is not None:
                body[name] = value
        output: dict[str, Any] = {}
        if params.reasoning_effort is not None:
            output["effort"] = params.reasoning_effort
        wanted = request.schema
        strict = schema.strict(wanted, dropped=schema.ANTHROPIC_DROPS) if wanted is not None else None
        if wanted is not None and (model.json_mode is JsonMode.TOOL or (self._is_strict and strict is None)):
            # A schema without a strict form still holds the model as a tool's input.
            name = re.sub(r"[^A-Za-z0-9_-]", "_", request.schema_name)[:64] or "answer"
            body["tools"] = [{"name": name, "description": "Give the answer.", "input_schema": strict or dict(wanted)}]
            body["tool_choice"] = {"type": "tool", "name": name}
        elif strict is not None and self._is_strict:
            output["format"] = {"type": "json_schema", "schema": strict}
        if output:
            body["output_config"] = output
        body |= model.extra_body
        body["messages"] = []
        return Template.of(body)

    @property
    def _is_strict(self) -> bool:
        return self._model.json_mode is JsonMode.STRICT

    def _caches(self, system: str) -> bool:
        """Whether a cached prefix can pay: the model has a price for it, and the prefix is long enough."""
        price = self._model.price
        priced = isinstance(price, Price) and price.cache_read_mtok is not None
        return priced and tokens.default().count(system) >= _CACHED_FROM

    def decode(self, status: int, headers: Mapping[str, str], body: bytes, call: Call, now: float) -> Reply | Failure:
        """What the response means. `now`, in seconds, dates a Retry-After."""
        if not 200 <= status < 300:
            return failure.of_response(status, headers, body, now)
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Failure(FailureKind.TRANSIENT, "not_json")
        if not isinstance(parsed, dict):
            return Failure(FailureKind.TRANSIENT, "not_json")
        content = parsed.get("content")
        if not isinstance(content, list):
            usage = anthropic_usage(parsed.get("usage"), call, "") or Usage()
            if isinstance(error := parsed.get("error"), dict):
                return replace(failure.of_error(500, error, headers, now), usage=usage)
            return Failure(FailureKind.TRANSIENT, "no_choices", usage=usage)
        text = _text(content)
        served, response_id = parsed.get("model"), parsed.get("id")
        return Reply(
            text=text,
            usage=anthropic_usage(parsed.get("usage"), call, text) or estimated(call, text),
            finish=_finish(parsed.get("stop_reason")),
            model_served=served if isinstance(served, str) else "",
            response_id=response_id if isinstance(response_id, str) else "",
        )


def _text(content: list[Any]) -> str:
    """The input of the first tool call, else all text blocks; thinking blocks are no answer."""
    texts = []
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") == "tool_use" and isinstance(block.get("input"), dict):
            return orjson.dumps(block["input"]).decode()
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
    return "".join(texts)


def _finish(reason: object) -> FinishReason:
    if reason in ("max_tokens", "model_context_window_exceeded"):
        return FinishReason.LENGTH
    return FinishReason.DECLINED if reason == "refusal" else FinishReason.STOP
