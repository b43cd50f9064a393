"""Answers: what in a reply is one, and where its values stand in the text."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.core import policy

from sluiceway.core.answer import Answer, AnswerReader, Malformed, spans


def reader(**task: Any) -> AnswerReader:
    kind = {"labels": None, "gate": {"score": "none"}} if task.keys() & {"tags", "output", "text"} else {}
    return AnswerReader(policy({**kind, **task}).tasks["triage"])


LABEL = reader()
FACTS = reader(
    output={
        "type": "object",
        "properties": {"name": {"type": ["string", "null"]}, "total": {"type": "number"}},
        "required": ["name"],
    },
    agree_on=["name"],
)


@pytest.mark.parametrize(
    "text",
    [
        '{"label":"login"}',
        ' {\n"label" : "login" }\n',
        '```json\n{"label":"login"}\n```',
        '```\n{"label": "login"}\n```  ',
        "login",
        " login\n",
        '{"label":"l\\u006fgin"}',
    ],
)
def test_a_label_is_read_however_it_is_wrapped(text: str) -> None:
    """JSON, JSON in a fence, or the bare word."""
    read = LABEL.read(text)
    assert isinstance(read, Answer)
    assert read.value == {"label": "login"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not_json_object"),
        ("I think it is login.", "not_json_object"),
        ('{"label":"login"', "not_json_object"),
        ('["login"]', "not_json_object"),
        ('"login"', "not_json_object"),
        ("null", "not_json_object"),
        ('{"label":"Login"}', "schema_violation"),
        ('{"label":"login","sure":true}', "schema_violation"),
        ('{"label":["login"]}', "schema_violation"),
        ("{}", "schema_violation"),
        ('{"label":NaN}', "not_json_object"),
        ('{"label":"\\ud800"}', "not_json_object"),
        ("\ud800", "not_json_object"),
    ],
)
def test_what_is_no_answer_is_malformed(text: str, problem: str) -> None:
    """With a short code, never the reply's own text."""
    assert LABEL.read(text) == Malformed(problem)


def test_nulls_are_values() -> None:
    """Where the schema allows them; the rest of the schema holds."""
    assert isinstance(FACTS.read('{"name":null,"total":1.5}'), Answer)
    assert FACTS.read('{"total":1.5}') == Malformed("schema_violation")
    assert FACTS.read('{"name":"x","total":"much"}') == Malformed("schema_violation")


def test_an_answer_too_deep_to_record_is_malformed() -> None:
    """It would be paid for and could not be written."""
    deep = '{"name":"x","extra":' + "[" * 100 + "]" * 100 + "}"
    assert FACTS.read(deep) == Malformed("too_deep")


def test_answers_are_the_same_where_the_task_compares_them() -> None:
    """agree_on names the fields; tags are a set; free text is compared whole."""
    first, second = FACTS.read('{"name":"x","total":1}'), FACTS.read('{"total":2,"name":"x"}')
    other = FACTS.read('{"name":"y","total":1}')
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert isinstance(other, Answer)
    assert first.compared == second.compared != other.compared
    tags = reader(tags=["oil", "trade"])
    one, two = tags.read('{"tags":["oil","trade"]}'), tags.read('{"tags":["trade","oil","trade"]}')
    assert isinstance(one, Answer)
    assert isinstance(two, Answer)
    assert one.compared == two.compared


def test_free_text_is_unicode() -> None:
    """What no record can hold is no answer."""
    text = reader(text=100)
    assert text.read("\ud800") == Malformed("not_unicode")
    assert text.read(" ") == Malformed("empty")
    assert text.read("x" * 101) == Malformed("too_long")
    assert isinstance(text.read("größer"), Answer)


def test_a_hostile_list_of_tags_costs_no_time_squared() -> None:
    """Two hundred thousand different words are looked at once each."""
    tags = reader(tags=["oil", "trade"])
    assert tags.read('{"tags":[' + ",".join(f'"{n}"' for n in range(200_000)) + "]}") == Malformed("schema_violation")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"label":"login"}', {"label": ["login"]}),
        ('{ "a" : 1.5 , "b":null,"c":true }', {"a": ["1.5"], "b": ["null"], "c": ["true"]}),
        ('{"tags":["oil", "trade"]}', {"tags": ["oil", "trade"]}),
        ('{"tags":[]}', {"tags": ["[]"]}),
        ('{"a":""}', {"a": ['""']}),
        ('{"a":{"b":[1,2]}}', {"a": ['{"b":[1,2]}']}),
        ('{"a":[[1,2],["x"]]}', {"a": ["[1,2]", '["x"]']}),
        ('{"a":"x\\"y"}', {"a": ['x\\"y']}),
        ('```json\n{"a":"ü"}\n```', {"a": ["ü"]}),
        ("{}", {}),
        ("no json", {}),
        ('{"a":', {}),
        ("{" * 3000, {}),
        ('{"a":' + "[" * 3000, {}),
    ],
)
def test_spans_say_where_values_stand(text: str, found: dict[str, list[str]]) -> None:
    """Strings without their quotes, an array one span an element."""
    assert {name: [text[first:last] for first, last in parts] for name, parts in spans(text).items()} == found
