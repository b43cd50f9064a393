"""The strict form of a schema allows no answer that the schema forbids."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.models.schema import ANTHROPIC_DROPS, strict

NAMES = st.sampled_from(["a", "b", "type", "items", "pattern", "required"])
LEAVES = st.sampled_from(
    [
        {"type": "string", "enum": ["x", "y"]},
        {"type": ["string", "null"]},
        {"type": "integer", "minimum": 3},
        {"enum": ["x", None]},
        {"type": "null"},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"oneOf": [{"type": "string"}]},
    ]
)


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, parts, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if draw(st.booleans()):
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.sampled_from([False, True, {"type": "string"}]))
    return schema


SCHEMAS = objects(
    st.recursive(
        LEAVES,
        lambda inner: objects(inner) | st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        max_leaves=4,
    )
)
VALUES = st.recursive(
    st.sampled_from(["x", "z", None, 1, 5, True]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(SCHEMAS, st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=3, max_size=8))
def test_what_fits_the_strict_form_fits_the_schema(schema: dict[str, Any], answers: list[Any]) -> None:
    """Closing and requiring only narrows; with dropped keywords, the schema without them is meant."""
    narrowed, widened = strict(schema), strict(schema, dropped=ANTHROPIC_DROPS)
    assert (narrowed is None) == (widened is None)
    if narrowed is None or widened is None:
        return
    original, inner, outer = (jsonschema_rs.validator_for(one) for one in (schema, narrowed, widened))
    for answer in answers:
        if inner.is_valid(answer):
            assert original.is_valid(answer)
            assert outer.is_valid(answer)
    _is_strict(narrowed)


def _is_strict(schema: dict[str, Any]) -> None:
    """Every object is closed and requires all its properties."""
    if "properties" in schema:
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
    for part in [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]:
        _is_strict(part)
    if "items" in schema:
        _is_strict(schema["items"])
