"""The strict form of a schema: what it closes, and where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from sluiceway.models.schema import ANTHROPIC_DROPS, OPENAI_DROPS, only_property, strict


def test_open_objects_are_closed_and_nullable_properties_required() -> None:
    """Null says the same as absence there, so nothing valid is lost but the open end."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "who": {"type": "string", "maxLength": 40},
            "when": {"type": ["string", "null"]},
            "items": {
                "type": "array",
                "uniqueItems": True,
                "items": {"type": "object", "properties": {"n": {"type": "null"}}},
            },
        },
        "required": ["who", "items"],
    }
    item = {"type": "object", "properties": {"n": {"type": "null"}}, "additionalProperties": False, "required": ["n"]}
    assert strict(schema, dropped=OPENAI_DROPS) == {
        "type": "object",
        "properties": {
            "who": {"type": "string"},
            "when": {"type": ["string", "null"]},
            "items": {"type": "array", "items": item},
        },
        "required": ["who", "when", "items"],
        "additionalProperties": False,
    }


def test_a_property_named_like_a_keyword_is_no_keyword() -> None:
    """Names of properties are data."""
    schema = {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "^a"}}, "required": ["pattern"]}
    found = strict(schema, dropped=ANTHROPIC_DROPS)
    assert found is not None
    assert found["properties"] == {"pattern": {"type": "string"}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}},  # optional, and null is not allowed
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True},
        {"type": "object"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}]}}, "required": ["a"]},
        {"type": "object", "properties": {"a": True}, "required": ["a"]},
        {
            "type": "object",
            "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}},
            "required": ["a"],
        },
    ],
)
def test_a_schema_that_would_change_its_meaning_has_no_strict_form(schema: dict[str, Any]) -> None:
    """It goes out as it is, and not strict."""
    assert strict(schema) is None


def test_the_only_property_is_found_or_there_is_none() -> None:
    """Recorded and local answers are written under it."""
    assert only_property({"properties": {"label": {"enum": ["a"]}}}) == ("label", {"enum": ["a"]})
    assert only_property({"properties": {"why": {}, "label": {"enum": ["a"]}}}) == ("label", {"enum": ["a"]})
    others: list[Any] = [None, {}, {"properties": {}}, {"properties": {"a": {}, "b": {}}}]
    for other in others:
        assert only_property(other) is None
