"""Tokens that an endpoint says it has metered are in the ledger, whatever else its reply lacks."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sluiceway.core.call import Call, Failure, FinishReason, Reply, Request, Usage
from sluiceway.core.catalog import Api, Model, Params
from sluiceway.models import tokens
from sluiceway.models.anthropic import AnthropicFormat
from sluiceway.models.openai import OpenAIFormat

MODEL = Model(name="m", provider="openai", model="m", params=Params(max_tokens=10))
CALL = Call(MODEL, Request("s", "u", None, "t", 40, "u"), 0, 1e9, "j")
METERED = {"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007}
ANSWER = "word " * 200


def openai(body: dict[str, Any]) -> Reply | Failure:
    return OpenAIFormat(MODEL).decode(200, {}, orjson.dumps(body), CALL, 0.0)


def anthropic(body: dict[str, Any]) -> Reply | Failure:
    of = MODEL.model_copy(update={"api": Api.ANTHROPIC})
    return AnthropicFormat(of).decode(200, {}, orjson.dumps({"type": "message", **body}), CALL, 0.0)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [{"index": 0, "finish_reason": "content_filter"}]},
        {"choices": [{"index": 0, "message": None}]},
        {"choices": [{"index": 0, "message": {"content": None}}]},
        {"error": {"code": "content_filter"}},
        {"error": {"code": 502}},
    ],
)
def test_what_was_metered_of_a_200_without_an_answer_is_paid_for(body: dict[str, Any]) -> None:
    """A filter, an empty list, an upstream's error: the tokens were counted all the same."""
    assert openai({**body, "usage": METERED}).usage == Usage(input_uncached=1000, output_text=7)


@pytest.mark.parametrize("body", [{"content": None, "stop_reason": "refusal"}, {"error": {"type": "api_error"}}])
def test_what_anthropic_metered_without_an_answer_is_paid_for(body: dict[str, Any]) -> None:
    """The same in its format."""
    found = anthropic({**body, "usage": {"input_tokens": 1000, "output_tokens": 7, "cache_read_input_tokens": 5}})
    assert found.usage == Usage(input_uncached=1000, input_cache_read=5, output_text=7)


@pytest.mark.parametrize("body", [{"choices": []}, {"error": {"code": 502}}, {"error": {"code": "content_filter"}}])
def test_a_200_without_an_answer_and_without_a_count_costs_nothing(body: dict[str, Any]) -> None:
    """No tokens are made up for it."""
    assert openai(body).usage == openai({**body, "usage": {"prompt_tokens": -1}}).usage == Usage()
    assert anthropic(body).usage == Usage()


def test_a_missing_half_of_a_count_is_what_the_total_says_else_our_own_count() -> None:
    """It would be billed as nothing."""
    counted = tokens.default().count(ANSWER)
    assert counted > 100

    def used(**usage: Any) -> Usage:
        return openai({"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}], "usage": usage}).usage

    assert used(prompt_tokens=1000) == Usage(input_uncached=1000, output_text=counted)
    assert used(prompt_tokens=1000, completion_tokens=None) == Usage(input_uncached=1000, output_text=counted)
    assert used(prompt_tokens=1000, completion_tokens=-3) == Usage(input_uncached=1000, output_text=counted)
    assert used(prompt_tokens=True, completion_tokens=7) == Usage(input_uncached=40, output_text=7)
    assert used(prompt_tokens=1000, completion_tokens=0) == Usage(input_uncached=1000), "a count of none is a count"
    assert used(completion_tokens=7) == Usage(input_uncached=40, output_text=7)
    assert used(prompt_tokens=1000, total_tokens=1009) == Usage(input_uncached=1000, output_text=9)
    assert used(completion_tokens=7, total_tokens=1009) == Usage(input_uncached=1002, output_text=7)
    assert used(prompt_tokens=1000, total_tokens=9) == Usage(input_uncached=1000)


def test_a_missing_half_of_anthropics_count_is_our_own_count() -> None:
    """Of the input, what was cached is told apart from the rest as it always is."""

    def used(**usage: int) -> Usage:
        found = anthropic({"content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn", "usage": usage})
        assert isinstance(found, Reply)
        assert found.finish is FinishReason.STOP
        return found.usage

    assert used(input_tokens=1000) == Usage(input_uncached=1000, output_text=tokens.default().count(ANSWER))
    assert used(output_tokens=7) == Usage(input_uncached=40, output_text=7)
    assert used(output_tokens=7, cache_read_input_tokens=30) == Usage(10, 30, output_text=7)
    assert used(output_tokens=7, cache_read_input_tokens=90) == Usage(0, 90, output_text=7)
