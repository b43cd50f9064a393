"""The JSON Schema of an answer, as the strict modes of providers take it.

OpenAI's and Anthropic's strict modes know a subset of JSON Schema: every object closed, every property required, few
keywords. What may be left out of the copy that is sent is left out, because core.answer holds each reply to the whole
schema anyway; where the subset would change what an answer may be, the schema goes out unchanged and not strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Annotations and checks that a provider's strict mode refuses; leaving one out only widens what the model may write.
OPENAI_DROPS = frozenset(
    {"$schema", "$id", "$comment", "default", "examples", "title", "uniqueItems"}
    | {"minLength", "maxLength", "minProperties", "maxProperties"}
)
ANTHROPIC_DROPS = OPENAI_DROPS | frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minItems", "maxItems", "pattern", "format"}
)
# Where one of these stands, closing objects and requiring every property could forbid answers that are valid.
_UNFIT = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties"}
    | {"propertyNames", "prefixItems", "contains", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"}
)


class _UnfitError(Exception):
    """This schema has no strict form."""


def strict(schema: Mapping[str, Any], *, dropped: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """A strict form of `schema` that allows no answer the schema forbids (but for the `dropped` keywords), or None."""
    if schema.get("type") != "object":
        return None  # both providers want an object at the root
    try:
        return _closed(schema, dropped)
    except (_UnfitError, RecursionError):
        return None


def _closed(schema: Any, dropped: frozenset[str]) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or not _UNFIT.isdisjoint(schema):
        raise _UnfitError
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in dropped:
            continue
        if key in ("properties", "$defs", "definitions"):
            out[key] = {name: _closed(part, dropped) for name, part in value.items()}
        elif key == "items":
            out[key] = _closed(value, dropped)
        elif key == "anyOf":
            out[key] = [_closed(part, dropped) for part in value]
        else:
            out[key] = value
    if "properties" in schema or _has_type(schema, "object"):
        _close(schema, out)
    return out


def _close(schema: Mapping[str, Any], out: dict[str, Any]) -> None:
    """An optional property may become required only where null says the same as its absence."""
    properties = schema.get("properties") or {}
    if schema.get("additionalProperties", False) is not False or not properties:
        raise _UnfitError
    required = set(schema.get("required", ()))
    for name, part in properties.items():
        if name not in required and not _nullable(part):
            raise _UnfitError
    out["additionalProperties"] = False
    out["required"] = list(properties)


def _has_type(schema: Mapping[str, Any], name: str) -> bool:
    kind = schema.get("type")
    return kind == name or (isinstance(kind, list) and name in kind)


def _nullable(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    if _has_type(schema, "null") or None in schema.get("enum", ()):
        return True
    return any(_nullable(part) for part in schema.get("anyOf", ()))


def only_property(schema: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]] | None:
    """Name and schema of the property that a bare answer belongs under: the only one, else the only one with an enum.

    None where there is no such property.
    """
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return None
    found = [(name, part) for name, part in properties.items() if isinstance(part, Mapping)]
    if len(found) != 1:
        found = [(name, part) for name, part in found if "enum" in part]
    return found[0] if len(found) == 1 else None
