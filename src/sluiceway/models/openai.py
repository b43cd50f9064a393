"""OpenAI's chat completions format, as spoken by OpenAI, Azure, DeepSeek, Fireworks, vLLM, Ollama and llama.cpp.

Pure: a Call to body bytes, and a response's bytes to a Reply or a Failure. Any bytes give one of the two, never an
exception. Field names: wire-formats, sections 1 and 7.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request, Usage
from sluiceway.core.catalog import JsonMode, Model
from sluiceway.models import failure, schema, tokens
from sluiceway.models.body import Template, Templates, keep_reserved
from sluiceway.models.logprobs import aligned, read_logprobs
from sluiceway.models.usage import estimated, openai_usage

_OWN = frozenset({"openai", "azure.ai.openai"})
# Calls with one key go to machines that have their prefix; a shorter prefix is not cached. Other hosts, Azure's with
# some models among them, answer the key with a 400 (`extra_body` sends it there).
_CACHED_FROM = 1024  # tokens
_RESERVED = frozenset({"model", "messages", "stream", "n", "tools", "tool_choice", "response_format", "logprobs"})


class OpenAIFormat:
    """One model's requests and replies in this format."""

    def __init__(self, model: Model) -> None:
        keep_reserved(model, _RESERVED, "json_mode, params and the gate")
        self._model = model
        self._templates = Templates(self._template)

    def path(self, base_url: str) -> str:
        """The whole URL of a chat completion; `base_url` includes /v1."""
        base = base_url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def headers(self, key: str | None) -> dict[str, str]:
        if key is None:
            return {}
        if self._model.provider == "azure.ai.openai":
            return {"api-key": key}
        return {"authorization": f"Bearer {key}"}

    def encode(self, call: Call) -> bytes:
        """The request's body. Equal prompts give equal bytes up to the job's own text, so that prompt caches hit.

        Raises InputError where the text can't be written as UTF-8 (a lone surrogate).
        """
        return self._templates.fill(call)

    def _template(self, call: Call) -> Template:
        model, request, params = self._model, call.request, self._model.params
        body: dict[str, Any] = {"model": model.model}
        limit = "max_completion_tokens" if model.provider in _OWN else "max_tokens"
        body[limit] = call.model.params.max_tokens  # a packed call's own: it holds the answers of several jobs
        for name in ("temperature", "reasoning_effort", "seed", "service_tier"):
            value = getattr(params, name)
            if value is not None:
                body[name] = value
        if call.logprobs and model.logprobs is not False:
            body |= {"logprobs": True, "top_logprobs": 5}
        if request.schema is not None:
            body |= self._answer_form(request)
        if model.provider == "openai" and tokens.default().count(request.system) >= _CACHED_FROM:
            digest = hashlib.sha256(request.system.encode("utf-8", "surrogatepass"))
            body["prompt_cache_key"] = f"sluiceway-{digest.hexdigest()[:32]}"
        body |= model.extra_body
        # Last, so that the user's text is the last thing in the body and everything before it can be made once.
        body["messages"] = [{"role": "system", "content": request.system}]
        return Template.of(body)

    def _answer_form(self, request: Request) -> dict[str, Any]:
        wanted: Any = request.schema
        name = re.sub(r"[^A-Za-z0-9_-]", "_", request.schema_name)[:64] or "answer"
        drops = schema.OPENAI_DROPS if self._model.provider in _OWN else frozenset[str]()
        strict = schema.strict(wanted, dropped=drops)
        match self._model.json_mode:
            case JsonMode.STRICT:
                form = {"name": name, "schema": strict or dict(wanted), "strict": strict is not None}
                return {"response_format": {"type": "json_schema", "json_schema": form}}
            case JsonMode.TOOL:
                function = {"name": name, "parameters": strict or dict(wanted), "strict": strict is not None}
                if strict is None:
                    del function["strict"]
                return {
                    "tools": [{"type": "function", "function": function}],
                    "tool_choice": {"type": "function", "function": {"name": name}},
                }
            case JsonMode.ON:
                return {"response_format": {"type": "json_object"}}
            case JsonMode.OFF:
                return {}

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
        choices = parsed.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return _no_choice(parsed, headers, now, openai_usage(parsed.get("usage"), call, "") or Usage())
        message = choice.get("message")
        if not isinstance(message, dict):
            usage = openai_usage(parsed.get("usage"), call, "") or Usage()
            return Failure(FailureKind.TRANSIENT, "no_choices", usage=usage)
        text = _text(message)
        finish = _finish(choice.get("finish_reason"))
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal:
            finish, text = FinishReason.DECLINED, text or refusal
        return Reply(
            text=text,
            usage=openai_usage(parsed.get("usage"), call, text) or estimated(call, text),
            finish=finish,
            logprobs=aligned(read_logprobs(choice["logprobs"]), text) if choice.get("logprobs") else (),
            model_served=_string(parsed.get("model")),
            response_id=_string(parsed.get("id")),
        )


def _no_choice(parsed: Mapping[str, Any], headers: Mapping[str, str], now: float, usage: Usage) -> Reply | Failure:
    """A 2xx body without an answer, which may have been metered: some gateways put the upstream's error there."""
    error = parsed.get("error")
    if not isinstance(error, dict):
        return Failure(FailureKind.TRANSIENT, "no_choices", usage=usage)
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return replace(failure.of_error(status, error, headers, now), usage=usage)


def _text(message: Mapping[str, Any]) -> str:
    """The tool call's arguments where there is one, else the content: text, or a list of text parts (Mistral)."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[0], dict):
        function = calls[0].get("function")
        if isinstance(function, dict):
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                return arguments
            if isinstance(arguments, dict):  # Ollama
                return orjson.dumps(arguments).decode()
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _finish(reason: object) -> FinishReason:
    if reason == "length":
        return FinishReason.LENGTH
    if reason in ("content_filter", "refusal"):
        return FinishReason.DECLINED
    return FinishReason.STOP


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
