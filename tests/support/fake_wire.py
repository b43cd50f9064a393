"""The two wire formats, as bytes: requests in, replies and errors out. No socket, no clock.

Sources: OpenAI chat completions and Anthropic messages, field names as in the vendors' Python SDKs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from tests.support.fake_journal import Metered
from tests.support.fake_scripts import FakeAnswer, FakeFault, FakeRequest, JsonMode
from tests.support.fake_tokens import Spoken, meter, speak

PATHS: Mapping[str, Literal["openai", "anthropic"]] = {
    "/v1/chat/completions": "openai",
    "/chat/completions": "openai",
    "/v1/messages": "anthropic",
}

# A fence is a pair of equal-named tags on lines of their own. Ours hold the job in `data-...` tags, one for each field
# that a template asks for; of any other fences the last one holds it.
_FENCE = re.compile(
    r"^<(?P<tag>[A-Za-z][\w-]*)(?:\s[^>\n]*)?>\n(?P<text>.*?)\n</(?P=tag)(?:\s[^>\n]*)?>[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_OPEN = re.compile(r"<(?P<tag>data-[\w-]*)>\n")


def job_text(user: str) -> str:
    """The job's text inside its fence or fences; the whole user message where there is no fence.

    Of several jobs in one message all texts, joined.
    """
    # One fence around all of it, as nearly always: the pattern takes ten milliseconds for a megabyte, for which every
    # other caller of this server would wait.
    if opened := _OPEN.match(user):
        close = f"\n</{opened['tag']}>"
        if user.endswith(close) and user.find(close[:-1], opened.end()) == len(user) - len(close):
            return user[opened.end() : -len(close)]
    fences = [(found["tag"], found["text"]) for found in _FENCE.finditer(user)]
    if user.startswith("<job-"):
        return "\n".join([job_text(text) for tag, text in fences if tag.startswith("job-")])
    data = [text for tag, text in fences if tag.startswith("data-")]
    return "\n".join(data) if data else fences[-1][1] if fences else user


def digest(text: str | bytes) -> str:
    """The first 32 hex digits of the text's SHA-256."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(raw).hexdigest()[:32]


class BadRequestError(ValueError):
    """The body is not a request of this API; the fake answers 400 as a vendor would."""


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def decode(api: Literal["openai", "anthropic"], body: bytes, headers: Mapping[str, str], seq: int) -> FakeRequest:
    """The request. BadRequestError where a vendor would answer 400."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as cause:
        raise BadRequestError("the body is not JSON") from cause
    if not isinstance(raw, dict) or not isinstance(raw.get("messages"), list) or not isinstance(raw.get("model"), str):
        raise BadRequestError("model and messages are required")
    if api == "anthropic" and not isinstance(raw.get("max_tokens"), int):
        raise BadRequestError("max_tokens: Field required")
    if raw.get("top_logprobs") is not None and not raw.get("logprobs"):
        raise BadRequestError("top_logprobs requires logprobs")
    messages = [message for message in raw["messages"] if isinstance(message, dict)]
    roles = ("system", "developer")
    system = _content(raw.get("system")) + "".join(
        _content(m.get("content")) for m in messages if m.get("role") in roles
    )
    user = "\n".join(_content(m.get("content")) for m in messages if m.get("role") == "user")
    schema, mode = (_openai_schema if api == "openai" else _anthropic_schema)(raw)
    return FakeRequest(
        seq=seq,
        api=api,
        model=raw["model"],
        system=system,
        user=user,
        text=job_text(user),
        schema=schema,
        json_mode=mode,
        logprobs=bool(raw.get("logprobs")),
        top_logprobs=int(raw.get("top_logprobs") or 0),
        max_tokens=raw.get("max_completion_tokens") or raw.get("max_tokens"),
        headers=headers,
        body=raw,
    )


def _openai_schema(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, JsonMode]:
    wanted = raw.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        named = wanted.get("json_schema") or {}
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(named.get("name", ""))) or not isinstance(
            named.get("schema"), dict
        ):
            raise BadRequestError("response_format.json_schema needs a name of [A-Za-z0-9_-]{1,64} and a schema")
        return named["schema"], "strict"
    if wanted.get("type") == "json_object":
        # llama.cpp takes a schema here too.
        return wanted.get("schema"), "on"
    if raw.get("tools"):
        return raw["tools"][0]["function"].get("parameters"), "tool"
    return None, "off"


def _anthropic_schema(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, JsonMode]:
    if raw.get("tools"):
        return raw["tools"][0].get("input_schema"), "tool"
    wanted = (raw.get("output_config") or {}).get("format") or raw.get("output_format") or {}
    return (wanted["schema"], "strict") if wanted.get("type") == "json_schema" else (None, "off")


def render(request: FakeRequest, answer: FakeAnswer, response_id: str) -> tuple[bytes, Metered]:
    """The reply's body and what it is metered; an answer past `max_tokens` is cut there, as vendors do."""
    spoken = [] if answer.refusal is not None else speak(answer, request)
    finish: str = answer.finish
    if request.max_tokens is not None and len(spoken) > request.max_tokens:
        spoken, finish = spoken[: request.max_tokens], "length"
    text = b"".join(token.token for token in spoken).decode("utf-8", "replace")
    output = len(spoken) if answer.refusal is None else 8
    metered = meter(request, answer, output)
    body = _openai_reply if request.api == "openai" else _anthropic_reply
    return orjson.dumps(body(request, answer, response_id, text, finish, spoken, metered)), metered


def _openai_reply(
    request: FakeRequest,
    answer: FakeAnswer,
    response_id: str,
    text: str,
    finish: str,
    spoken: list[Spoken],
    metered: Metered,
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if answer.refusal is not None:
        message |= {"content": None, "refusal": answer.refusal}
    elif finish == "content_filter":
        message |= {"content": None}
    elif request.json_mode == "tool":
        name = request.body["tools"][0]["function"]["name"]
        call = {"id": f"call_{response_id}", "type": "function", "function": {"name": name, "arguments": text}}
        message |= {"content": None, "tool_calls": [call]}
        finish = "tool_calls" if finish == "stop" else finish
    logprobs = None
    if request.logprobs and answer.logprobs and answer.refusal is None:
        logprobs = {"content": [_logprob(token, request.top_logprobs) for token in spoken], "refusal": None}
    return {
        "id": response_id,
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": answer.model_served or request.model,
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [{"index": 0, "finish_reason": finish, "message": message, "logprobs": logprobs}],
        "usage": {
            "prompt_tokens": metered.input,
            "completion_tokens": metered.output,
            "total_tokens": metered.input + metered.output,
            "prompt_tokens_details": {
                "cached_tokens": metered.input_cache_read,
                "cache_write_tokens": metered.input_cache_write_5m + metered.input_cache_write_1h,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {"reasoning_tokens": metered.output_reasoning, "audio_tokens": 0},
        },
    }


def _logprob(spoken: Spoken, top: int) -> dict[str, Any]:
    return {
        "token": spoken.token.decode("utf-8", "replace"),
        "logprob": spoken.logprob,
        "bytes": list(spoken.token),
        "top_logprobs": [
            {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
            for token, logprob in spoken.top[:top]
        ],
    }


def _anthropic_reply(
    request: FakeRequest,
    answer: FakeAnswer,
    response_id: str,
    text: str,
    finish: str,
    _spoken: list[Spoken],
    metered: Metered,
) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    stop = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[finish]
    if answer.refusal is not None:
        content, stop = [], "refusal"
    elif request.json_mode == "tool":
        try:
            given = orjson.loads(text)
        except orjson.JSONDecodeError:
            given = {}
        name = request.body["tools"][0]["name"]
        content = [{"type": "tool_use", "id": f"toolu_{response_id}", "name": name, "input": given}]
        stop = "tool_use" if finish == "stop" else stop
    return {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": answer.model_served or request.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": metered.input_uncached,
            "cache_creation_input_tokens": metered.input_cache_write_5m + metered.input_cache_write_1h,
            "cache_read_input_tokens": metered.input_cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": metered.input_cache_write_5m,
                "ephemeral_1h_input_tokens": metered.input_cache_write_1h,
            },
            "output_tokens": metered.output,
            "service_tier": "standard",
        },
    }


_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("invalid_request_error", "authentication_error"),
    403: ("invalid_request_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_exceeded", "rate_limit_error"),
    529: ("server_error", "overloaded_error"),
}


def error_body(api: str, status: int, code: str, text: str) -> bytes:
    """An error in the API's own shape."""
    openai, anthropic = _TYPES.get(status, ("server_error", "api_error"))
    if api == "anthropic":
        return orjson.dumps(
            {"type": "error", "error": {"type": code or anthropic, "message": text}, "request_id": "req_fake"}
        )
    return orjson.dumps({"error": {"message": text, "type": openai, "param": None, "code": code or openai}})


def error_status(fault: FakeFault) -> int:
    return {"status": fault.status, "redirect": 302}.get(fault.kind, 200)
