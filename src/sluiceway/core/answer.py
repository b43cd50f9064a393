"""The answer: reply text -> Answer | Malformed, by the task's JSON Schema. Never raises for what a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

from sluiceway.core import tree
from sluiceway.core.task import Kind, Task
from sluiceway.core.value import value

Span = tuple[int, int]

_SHORT, _KEPT = 256, 1024  # characters of a reply that is remembered, and how many such replies
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)


@value
class Answer:
    """A parsed, schema-valid reply. `compared` is what decides whether two answers are the same."""

    value: Any
    compared: bytes


@dataclass(frozen=True, slots=True)
class Malformed:
    """A reply that is no answer; `problem` is a short code, never the reply's own text."""

    problem: str


class AnswerReader:
    """Reads one task's replies; the schema is compiled once."""

    def __init__(self, task: Task) -> None:
        self._kind = task.kind
        self._labels = frozenset(task.labels or ())
        self._limit = task.text or 0
        self.compared = task.compared  # the fields that make two answers the same
        self._valid = validator(task.schema_)
        # Where an answer is one of a few labels, replies are the same few texts each time.
        self._again = lru_cache(_KEPT)(self._read) if task.kind is Kind.LABEL else self._read

    def read(self, text: str) -> Answer | Malformed:
        """The answer in `text`: JSON, JSON in a Markdown fence, a bare label, or for free text the text itself."""
        return self._again(text) if len(text) <= _SHORT else self._read(text)

    def _read(self, text: str) -> Answer | Malformed:
        if self._kind is Kind.TEXT:
            return self._free(text)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = self._lenient(text)
        if not isinstance(value, dict):
            return Malformed("not_json_object")
        if self._kind is Kind.TAGS and isinstance(value.get("tags"), list):
            value = {**value, "tags": _once(value["tags"])}
        if self._kind is Kind.EXTRACTION and tree.deeper(value, tree.DEPTH):
            return Malformed("too_deep")
        if not self._valid(value):
            return Malformed("schema_violation")
        return Answer(value, self.compare(value))

    def compare(self, value: Mapping[str, Any]) -> bytes:
        """Bytes that are equal for two answers exactly when the task holds them to be the same."""
        chosen = {name: value.get(name) for name in self.compared}
        if self._kind is Kind.TAGS:
            chosen = {name: sorted(part, key=str) if isinstance(part, list) else part for name, part in chosen.items()}
        return orjson.dumps(chosen, option=orjson.OPT_SORT_KEYS)

    def _free(self, text: str) -> Answer | Malformed:
        text = text.strip()
        if not text:
            return Malformed("empty")
        if len(text) > self._limit:
            return Malformed("too_long")
        value = {"text": text}
        try:
            return Answer(value, orjson.dumps(value))
        except TypeError:  # lone surrogates, which no record can hold
            return Malformed("not_unicode")

    def _lenient(self, text: str) -> Any:
        if self._kind is Kind.LABEL and text.strip() in self._labels:
            return {"label": text.strip()}
        match = _FENCED.match(text)
        if match is not None:
            try:
                return orjson.loads(match.group(1))
            except orjson.JSONDecodeError:
                return None
        return None


def validator(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """Whether a value follows `schema`. Raises ValueError where the schema can't be compiled.

    Linear-time patterns, and no schema from elsewhere: a schema must not hang or open a socket.
    """
    options = jsonschema_rs.RegexOptions()
    return jsonschema_rs.validator_for(schema, pattern_options=options, retriever=_no_retrieval).is_valid


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to {uri}")


def _once(tags: list[Any]) -> list[Any]:
    """Each tag once; a list with something else in it is left to the schema."""
    return list(dict.fromkeys(tags)) if all(isinstance(tag, str) for tag in tags) else tags


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def spans(text: str) -> dict[str, list[Span]]:
    """Where in `text` each top-level field's value stands: one span, or for an array one an element.

    Strings are without their quotes; an empty array or object, a number or a literal is whole. Empty where `text`
    holds no JSON object.
    """
    found: dict[str, list[Span]] = {}
    at = text.find("{")
    if at < 0:
        return found
    try:
        at = _skip(text, at + 1)
        while text[at] == '"':
            name, at = json.decoder.scanstring(text, at + 1)  # type: ignore[attr-defined]  # stdlib, not in its stub
            at = _skip(text, _skip(text, at) + 1)
            found[name], at = _value(text, at)
            at = _skip(text, at)
            if text[at] != ",":
                break
            at = _skip(text, at + 1)
    except (ValueError, IndexError, RecursionError):
        return {}
    return found


def _value(text: str, at: int) -> tuple[list[Span], int]:
    value, end = _DECODER.raw_decode(text, at)
    if not isinstance(value, list) or not value:
        return [_inside(value, at, end)], end
    elements: list[Span] = []
    first = _skip(text, at + 1)
    for element in value:
        _, last = _DECODER.raw_decode(text, first)
        elements.append(_inside(element, first, last))
        first = _skip(text, _skip(text, last) + 1)
    return elements, end


def _inside(value: object, first: int, last: int) -> Span:
    return (first + 1, last - 1) if isinstance(value, str) and value else (first, last)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
