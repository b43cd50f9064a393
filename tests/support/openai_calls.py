"""A model that speaks the OpenAI format, and a call to it, for the tests of what is sent and of what is read."""

from __future__ import annotations

from typing import Any

from sluiceway.core.call import Call, Request
from sluiceway.core.catalog import Model

LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "login"]}},
    "required": ["label"],
    "additionalProperties": False,
}
NOW = 1_790_000_000.0


def model(**given: Any) -> Model:
    return Model(**{"name": "cheap", "provider": "openai", "model": "gpt-5.4-mini", **given})


def call(of: Model | None = None, *, logprobs: bool = False, **given: Any) -> Call:
    request = Request(
        **{
            "system": "Classify.",
            "user": "My card is lost",
            "schema": LABEL,
            "schema_name": "triage",
            "input_tokens": 40,
            "text": "My card is lost",
            **given,
        }
    )
    return Call(of or model(), request, 0, NOW + 30, "job-1", logprobs)
