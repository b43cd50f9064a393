"""Replies of every kind: an answer or a malformed one; and values stand where their spans say."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.core import policy

from sluiceway.core.answer import Answer, AnswerReader, Malformed, spans

NONE = {"labels": None, "gate": {"score": "none"}}
READERS = [
    AnswerReader(policy(task).tasks["triage"])
    for task in (
        {},
        {**NONE, "tags": ["oil", "trade", "größe"]},
        {**NONE, "text": 30},
        {**NONE, "output": {"type": "object", "properties": {"a": {}, "b": {"type": "number"}}}, "agree_on": ["a"]},
    )
]
PROBLEMS = {"not_json_object", "schema_violation", "too_deep", "empty", "too_long", "not_unicode"}
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)
NAMES = st.one_of(st.sampled_from(["label", "tags", "a", "b"]), st.text(max_size=5))
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


@st.composite
def written(draw: st.DrawFn, tree: Any) -> str:
    """The tree as some model may write it: with white space, escapes, a fence, or cut."""
    text = json.dumps(tree, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1, "\t"])))
    if draw(st.booleans()):
        text = f"```json\n{text}\n```"
    return text


@given(
    text=st.one_of(
        st.text(st.characters(), max_size=60),
        OBJECTS.flatmap(written),
        OBJECTS.flatmap(written).flatmap(lambda text: st.integers(0, len(text)).map(lambda cut: text[:cut])),
        st.builds(lambda n, word: '{"a":' + word * n, st.integers(0, 3000), st.sampled_from(["[", '{"a":'])),
        st.builds(lambda n: '{"a":' + "[" * n + "]" * n + "}", st.integers(0, 1500)),
    )
)
@settings(max_examples=500, deadline=None)
def test_any_reply_is_an_answer_or_malformed(text: str) -> None:
    """Never an exception; an answer can be written, read and compared."""
    for reader in READERS:
        read = reader.read(text)
        if isinstance(read, Answer):
            assert orjson.loads(orjson.dumps(read.value)) == read.value
            assert reader.compare(read.value) == read.compared
        else:
            assert isinstance(read, Malformed)
            assert read.problem in PROBLEMS
    spans(text)


@given(tree=OBJECTS, data=st.data())
@settings(max_examples=400, deadline=None)
def test_spans_agree_with_the_parser(tree: dict[str, Any], data: st.DataObject) -> None:
    """What stands in a span is the value: strings by their escapes, arrays element by element."""
    text = data.draw(written(tree))
    found = spans(text)
    assert set(found) == set(tree)
    for name, value in tree.items():
        parts = [text[first:last] for first, last in found[name]]
        if isinstance(value, list) and value:
            assert len(parts) == len(value)
            for part, element in zip(parts, value, strict=True):
                assert _value(part, element) == element
        else:
            assert len(parts) == 1
            assert _value(parts[0], value) == value


def _value(part: str, value: object) -> object:
    return json.loads(f'"{part}"' if isinstance(value, str) and value else part)


@given(tags=st.lists(st.sampled_from(["oil", "trade", "größe"]), max_size=8), order=st.randoms())
@settings(max_examples=100, deadline=None)
def test_tags_are_compared_as_a_set(tags: list[str], order: Any) -> None:
    """Whatever the order, however often."""
    shuffled = tags * 2
    order.shuffle(shuffled)
    first, second = (READERS[1].read(json.dumps({"tags": one})) for one in (tags, shuffled))
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert first.compared == second.compared
    assert len(second.value["tags"]) == len(set(tags))
