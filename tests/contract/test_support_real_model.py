"""The real model answers as a model API does: what tests of the pipeline may rely on it for."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from tests.support.real_model import RealModel

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["billing", "login", "refund"]}},
    "required": ["label"],
    "additionalProperties": False,
}


async def ask(model: RealModel, text: str, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    said = [{"role": "system", "content": "Classify the ticket."}, {"role": "user", "content": text}]
    body = {"model": model.model, "messages": said, "max_tokens": 40, "temperature": 0, "response_format": form} | more
    async with aiohttp.ClientSession() as session, session.post(model.url + "/v1/chat/completions", json=body) as reply:
        assert reply.status == 200
        return dict(await reply.json())


async def test_it_answers_by_the_schema_with_logprobs_and_usage(real_model: RealModel) -> None:
    reply = await ask(real_model, "I cannot log in to my account", logprobs=True, top_logprobs=3)
    choice = reply["choices"][0]
    jsonschema_rs.validate(SCHEMA, json.loads(choice["message"]["content"]))
    said = choice["logprobs"]["content"]
    assert choice["message"]["content"].encode() in b"".join(bytes(token["bytes"]) for token in said)
    assert all(0 < math.exp(token["logprob"]) <= 1 for token in said)
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] >= len(said) > 0


async def test_a_prompt_read_before_is_metered_as_cached(real_model: RealModel) -> None:
    await ask(real_model, "the same ticket twice")
    again = await ask(real_model, "the same ticket twice")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_the_same_question_gets_the_same_answer_at_temperature_nought(real_model: RealModel) -> None:
    answers = [(await ask(real_model, "Where is my refund?"))["choices"][0]["message"]["content"] for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.skipif(os.environ.get("SLUICEWAY_REQUIRE_REAL") != "1", reason="only where real parts are required")
def test_where_real_parts_are_required_they_are_here(real_model: RealModel) -> None:
    assert real_model.url.startswith("http://127.0.0.1:")
