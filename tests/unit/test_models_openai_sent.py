"""The OpenAI format: what is sent, and where."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.support.openai_calls import LABEL, call, model

from sluiceway.core.catalog import JsonMode, Model, Params
from sluiceway.core.errors import InputError
from sluiceway.models.openai import OpenAIFormat


def sent(of: Model, **given: Any) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(OpenAIFormat(of).encode(call(of, **given)))
    return body


def test_the_prompt_goes_out_as_system_and_user_with_the_schema_held_strictly() -> None:
    """The body holds what the policy says and nothing else."""
    assert sent(model(params=Params(max_tokens=50, reasoning_effort="none", seed=7))) == {
        "model": "gpt-5.4-mini",
        "max_completion_tokens": 50,
        "reasoning_effort": "none",
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "triage", "strict": True, "schema": LABEL},
        },
        "messages": [
            {"role": "system", "content": "Classify."},
            {"role": "user", "content": "My card is lost"},
        ],
    }


def test_bodies_of_one_prompt_differ_only_after_the_same_prefix() -> None:
    """Prompt caches need a stable prefix; the job's text comes last, whatever it holds."""
    wire = OpenAIFormat(model(extra_body={"prompt_cache_key": "t"}))
    first, second = wire.encode(call(user='a "quoted" \u2603')), wire.encode(call(user='"}]} ,'))
    assert orjson.loads(first)["messages"][1]["content"] == 'a "quoted" \u2603'
    assert orjson.loads(second)["messages"][1]["content"] == '"}]} ,'
    assert first.split(b'{"role":"user"')[0] == second.split(b'{"role":"user"')[0]


def test_calls_of_one_long_prompt_share_a_prompt_cache_key() -> None:
    """Whatever their texts; a key that the policy's `extra_body` names wins."""
    long = "Classify this ticket with care. " * 400

    def key(of: Model, **given: Any) -> Any:
        return sent(of, **given).get("prompt_cache_key")

    assert key(model(), system=long).startswith("sluiceway-")
    assert len(key(model(), system=long)) <= 64
    assert key(model(), system=long, user="one") == key(model(), system=long, user="another")
    assert key(model(), system=long) != key(model(), system=f"{long}!")
    assert key(model(extra_body={"prompt_cache_key": "mine"}), system=long) == "mine"


@pytest.mark.parametrize("provider", ["azure.ai.openai", "vllm", "deepseek"])
def test_a_prompt_cache_key_goes_only_where_it_is_known_and_can_hit(provider: str) -> None:
    """Azure refuses it for some models with a 400; a short prefix is cached by nobody."""
    assert "prompt_cache_key" not in sent(model(provider=provider), system="Classify this ticket with care. " * 400)
    assert "prompt_cache_key" not in sent(model())


def test_another_schema_under_the_same_name_is_sent_as_it_is() -> None:
    """A template is never reused for a schema it was not made from."""
    wire = OpenAIFormat(model())
    other = {**LABEL, "properties": {"label": {"type": "string", "enum": ["x", "y"]}}}
    wire.encode(call())
    body = orjson.loads(wire.encode(call(schema=other)))
    assert body["response_format"]["json_schema"]["schema"] == other


@pytest.mark.parametrize(
    ("provider", "limit"),
    [("openai", "max_completion_tokens"), ("azure.ai.openai", "max_completion_tokens"), ("vllm", "max_tokens")],
)
def test_the_answer_is_bounded_by_the_name_that_the_provider_knows(provider: str, limit: str) -> None:
    """OpenAI has renamed the field; most compatible servers know the old name only."""
    assert sent(model(provider=provider))[limit] == 1024


def test_json_modes_ask_in_their_own_way() -> None:
    """on: any object; tool: a forced call; off and free text: nothing."""
    assert sent(model(json_mode=JsonMode.ON))["response_format"] == {"type": "json_object"}
    tool = sent(model(json_mode=JsonMode.TOOL))
    assert tool["tool_choice"] == {"type": "function", "function": {"name": "triage"}}
    assert tool["tools"][0]["function"]["parameters"] == LABEL
    for body in (sent(model(json_mode=JsonMode.OFF)), sent(model(), schema=None)):
        assert not {"response_format", "tools"} & set(body)


def test_a_schema_name_is_written_in_the_letters_that_the_api_takes() -> None:
    """Names are [A-Za-z0-9_-]{1,64}; a task may be called otherwise."""
    body = sent(model(), schema_name="tri\u00e4ge.v2")
    assert body["response_format"]["json_schema"]["name"] == "tri_ge_v2"


def test_logprobs_are_asked_for_only_where_the_gate_needs_them_and_the_model_has_them() -> None:
    """They cost bytes, and some servers answer 400 to the field."""
    assert "logprobs" not in sent(model())
    assert sent(model(), logprobs=True)["top_logprobs"] == 5
    assert "logprobs" not in sent(model(logprobs=False), logprobs=True)


def test_extra_body_is_sent_but_may_not_take_over_what_the_policy_decides() -> None:
    """A `stream: true` there would make every reply unreadable."""
    assert sent(model(extra_body={"top_k": 20}))["top_k"] == 20
    with pytest.raises(InputError, match="stream"):
        OpenAIFormat(model(extra_body={"stream": True}))


def test_text_that_is_not_unicode_is_an_input_error() -> None:
    """A lone surrogate can't be written as UTF-8."""
    with pytest.raises(InputError):
        OpenAIFormat(model()).encode(call(user="\ud800"))


def test_urls_and_keys_go_where_the_provider_expects_them() -> None:
    """The base URL includes /v1; Azure takes its key in a header of its own."""
    wire = OpenAIFormat(model())
    assert wire.path("https://api.openai.com/v1/") == "https://api.openai.com/v1/chat/completions"
    assert wire.headers("k") == {"authorization": "Bearer k"}
    assert wire.headers(None) == {}
    assert OpenAIFormat(model(provider="azure.ai.openai")).headers("k") == {"api-key": "k"}
