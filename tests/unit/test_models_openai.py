"""The OpenAI format: what every dialect's reply means."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.support.openai_calls import NOW, call, model

from sluiceway.core.call import Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.models.openai import OpenAIFormat


def read(body: Any, status: int = 200, headers: dict[str, str] | None = None, **given: Any) -> Reply | Failure:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return OpenAIFormat(model()).decode(status, headers or {}, raw, call(**given), NOW)


def completion(content: Any = '{"label":"login"}', **given: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **given.pop("message", {})}
    choice = {"index": 0, "finish_reason": "stop", "message": message, **given.pop("choice", {})}
    usage = {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55}
    return {"id": "chatcmpl-1", "model": "gpt-5.4-mini-2026", "choices": [choice], "usage": usage, **given}


def reply(body: Any, **given: Any) -> Reply:
    found = read(body, **given)
    assert isinstance(found, Reply), found
    return found


def failed(body: Any, status: int, headers: dict[str, str] | None = None) -> Failure:
    found = read(body, status, headers)
    assert isinstance(found, Failure), found
    return found


def test_a_plain_reply_is_read_whole() -> None:
    """Text, usage, the model that really answered, and the response's id."""
    found = reply(completion())
    assert (found.text, found.finish) == ('{"label":"login"}', FinishReason.STOP)
    assert (found.model_served, found.response_id) == ("gpt-5.4-mini-2026", "chatcmpl-1")
    assert found.usage == Usage(input_uncached=50, output_text=5)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(30, 60, 10, 0, 10, 20),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None},
            Usage(input_uncached=9, output_text=2),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": None}},
            Usage(input_uncached=9, output_text=2),
        ),
        # DeepSeek
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 1,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
            },
            Usage(input_uncached=36, input_cache_read=64, output_text=1),
        ),
        # xAI: reasoning stands beside completion_tokens
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "total_tokens": 20,
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            Usage(input_uncached=10, output_text=3, output_reasoning=7),
        ),
        # more cached than there was
        (
            {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(input_cache_read=10),
        ),
    ],
)
def test_usage_becomes_disjoint_counts_in_every_dialect(raw: dict[str, Any], usage: Usage) -> None:
    """The sum of the fields is what was billed, whatever is null or absent."""
    assert reply(completion(usage=raw)).usage == usage


def test_a_reply_without_usage_is_billed_by_our_own_count() -> None:
    """It would otherwise seem free."""
    found = reply(completion(usage=None))
    assert found.usage.input_uncached == 40
    assert found.usage.output_text > 0


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        (completion(choice={"finish_reason": "length"}), '{"label":"login"}', FinishReason.LENGTH),
        (completion(None, choice={"finish_reason": "content_filter"}), "", FinishReason.DECLINED),
        (completion(None, message={"refusal": "I can't."}), "I can't.", FinishReason.DECLINED),
        (completion(None), "", FinishReason.STOP),
        (completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", FinishReason.STOP),
        (
            completion(None, message={"tool_calls": [{"function": {"name": "t", "arguments": '{"a":1}'}}]}),
            '{"a":1}',
            FinishReason.STOP,
        ),
        (
            completion("", message={"tool_calls": [{"function": {"name": "t", "arguments": {"a": 1}}}]}),
            '{"a":1}',
            FinishReason.STOP,
        ),
    ],
)
def test_text_and_finish_are_read_wherever_the_dialect_puts_them(body: Any, text: str, finish: FinishReason) -> None:
    """Content, parts, tool arguments, refusals."""
    found = reply(body)
    assert (found.text, found.finish) == (text, finish)


def logprobs(*tokens: tuple[str, float], **given: Any) -> dict[str, Any]:
    entries = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": [], **given}
        for token, logprob in tokens
    ]
    return {"choice": {"logprobs": {"content": entries}}}


def test_logprobs_joined_are_the_text() -> None:
    """End tokens, stripped white space and a reasoning part do not count; what can't be aligned is dropped."""
    text = '{"label":"login"}'
    exact = [('{"label":"', -0.1), ("login", -0.2), ('"}', 0.0)]
    around = [
        ([], []),
        ([("<think>x</think>", -1.0)], []),
        ([("\n", -1.0)], [("<|im_end|>", -0.5)]),
        (
            [("```", -8.0), ("json", -1.0), ("\n", -1.0)],
            [("\n```", -2.0)],
        ),  # llama.cpp strips the fence, not its tokens
    ]
    for before, after in around:
        found = reply(completion(text, **logprobs(*before, *exact, *after)))
        assert [(token.token.decode(), token.logprob) for token in found.logprobs] == exact
    glued = reply(completion(text, **logprobs((" " + '{"label":"', -0.1), *exact[1:])))
    assert b"".join(token.token for token in glued.logprobs) == text.encode()
    assert reply(completion(text, **logprobs(("other", -0.1)))).logprobs == ()


def test_a_character_split_over_two_tokens_is_joined_from_their_bytes() -> None:
    """The token strings hold U+FFFD there; the bytes field is the truth."""
    entries = [
        {"token": "\ufffd", "logprob": -0.1, "bytes": [0xC3]},
        {"token": "\ufffd", "logprob": 0, "bytes": [0xA9]},
    ]
    found = reply(completion("\u00e9", choice={"logprobs": {"content": entries}}))
    assert [token.token for token in found.logprobs] == [b"\xc3", b"\xa9"]


def test_alternatives_outside_the_top_20_are_dropped_and_missing_bytes_are_taken_from_the_token() -> None:
    """OpenAI and vLLM write -9999 there."""
    top = [{"token": "b", "logprob": -0.1}, {"token": "c", "logprob": -9999.0, "bytes": None}]
    found = reply(completion("a", **logprobs(("a", -0.1), bytes=None, top_logprobs=top)))
    assert found.logprobs[0].top == ((b"b", -0.1),)
    outside = reply(completion("a", **logprobs(("a", -0.1), bytes=None, top_logprobs=top[1:])))
    assert outside.logprobs[0].top == ()


@pytest.mark.parametrize(
    "entry", [None, {}, {"token": "a"}, {"token": None, "logprob": -1}, {"token": "a", "logprob": "x"}]
)
def test_one_unreadable_token_drops_all_logprobs_and_keeps_the_reply(entry: Any) -> None:
    """A gap would shift every other token."""
    found = reply(completion("aa", choice={"logprobs": {"content": [{"token": "a", "logprob": -1}, entry]}}))
    assert (found.text, found.logprobs) == ("aa", ())


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"<html>502</html>", "not_json"),
        (b"", "not_json"),
        (b'{"choices": [{"mess', "not_json"),
        (b"[]", "not_json"),
        (b'{"choices": []}', "no_choices"),
        (b'{"choices": {}, "ok": true}', "no_choices"),
        (b'{"choices": [{"message": "hi"}]}', "no_choices"),
        (b'{"error": {"message": "upstream"}}', "http_500"),
    ],
)
def test_a_200_without_an_answer_is_transient(body: bytes, detail: str) -> None:
    """A proxy's page or a cut body may be whole the next time."""
    assert failed(body, 200) == Failure(FailureKind.TRANSIENT, detail)


@pytest.mark.parametrize(
    ("status", "error", "kind", "detail"),
    [
        (408, {}, "transient", "http_408"),
        (409, {}, "transient", "http_409"),
        (500, {"type": "server_error"}, "transient", "http_500"),
        (502, {}, "transient", "http_502"),
        (504, {}, "transient", "http_504"),
        (429, {"code": "rate_limit_exceeded"}, "overloaded", "rate_limit_exceeded"),
        (429, {}, "overloaded", "http_429"),
        (503, {}, "overloaded", "http_503"),
        (529, {"type": "overloaded_error"}, "overloaded", "overloaded"),
        (429, {"code": "insufficient_quota"}, "invalid", "insufficient_quota"),
        (402, {}, "invalid", "insufficient_quota"),
        (400, {"type": "invalid_request_error"}, "invalid", "http_400"),
        (400, {"code": "context_length_exceeded"}, "invalid", "context_length_exceeded"),
        (400, {"message": "This model's maximum context length is 8192"}, "invalid", "context_length_exceeded"),
        (400, {"type": "exceed_context_size_error", "code": 400}, "invalid", "context_length_exceeded"),
        (401, {"code": "invalid_api_key"}, "invalid", "invalid_api_key"),
        (403, {}, "invalid", "http_403"),
        (404, {"code": "model_not_found"}, "invalid", "model_not_found"),
        (413, {}, "invalid", "http_413"),
        (422, {}, "invalid", "http_422"),
        (302, {}, "invalid", "redirect"),
    ],
)
def test_each_status_has_its_retry_class_and_a_code_from_a_closed_set(
    status: int, error: dict[str, Any], kind: str, detail: str
) -> None:
    """The endpoint's own text never becomes a detail."""
    found = failed({"error": error}, status)
    assert (found.kind, found.detail) == (FailureKind(kind), detail)


def test_a_filter_that_refuses_with_400_is_a_declined_reply() -> None:
    """Azure's content filter: the model would not answer, which is no fault of the request's form."""
    found = reply({"error": {"code": "content_filter"}}, status=400)
    assert (found.finish, found.usage) == (FinishReason.DECLINED, Usage())


def test_x_should_retry_is_believed_both_ways_but_never_against_an_empty_account() -> None:
    """The server knows better than the status."""
    assert failed({}, 400, {"x-should-retry": "true"}).kind is FailureKind.TRANSIENT
    assert failed({}, 500, {"x-should-retry": "false"}).kind is FailureKind.INVALID
    quota = failed({"error": {"code": "insufficient_quota"}}, 429, {"x-should-retry": "true", "retry-after": "5"})
    assert (quota.kind, quota.retry_after) == (FailureKind.INVALID, None)


def test_the_error_of_an_upstream_in_a_200_has_the_upstreams_class() -> None:
    """OpenRouter answers 200 with the error of the provider behind it."""
    found = failed({"error": {"code": 429, "message": "slow down"}}, 200, {"retry-after": "2"})
    assert (found.kind, found.retry_after) == (FailureKind.OVERLOADED, 2.0)
