"""Rules: a small closed grammar over measured facts."""

from __future__ import annotations

import pytest

from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.errors import InputError
from sluiceway.core.rule import Facts, parse

FACTS = Facts(
    tokens=100,
    chars=400,
    context=2,
    stakes=Level.HIGH,
    priority=Level.NORMAL,
    risk=Level.LOW,
    clearance=Clearance.INTERNAL,
    fields=frozenset(("text", "subject-line")),
    language="en",
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("tokens > 99", True),
        ("tokens>100", False),
        ("tokens >= 100", True),
        ("tokens <= 99.5", False),
        ("chars == 400 and context != 0", True),
        ("stakes >= high", True),
        ("stakes > high", False),
        ("priority < 'high'", True),
        ("clearance >= confidential", False),
        ("language == en", True),
        ("language not in [de, fr]", True),
        ("language in [de, en]", True),
        ("stakes in [low, critical]", False),
        ("has(text)", True),
        ('has("subject-line")', True),
        ("not has(body)", True),
        ("tokens > 500 or stakes == high and risk == low", True),
        ("(tokens > 500 or stakes == high) and risk == high", False),
        ("not (tokens > 500 or stakes == high)", False),
        ("not not has(text)", True),
    ],
)
def test_rules_hold_as_they_read(text: str, holds: bool) -> None:
    """`and` binds closer than `or`, `not` closest."""
    assert parse(text).holds(FACTS) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "tokens",
        "tokens >",
        "tokens > many",
        "tokens > '²'",
        "tokens > '1.2.3'",
        "stakes >= 3",
        "stakes >= huge",
        "stakes => high",
        "language > en",
        "colour == red",
        "input == 'refund'",
        "text == 'x'",
        "tokens > 5 or",
        "and tokens > 5",
        "(tokens > 5",
        "tokens > 5)",
        "language in []",
        "language in [en",
        "has()",
        "has(>)",
        "has(text",
        "tokens > 5 tokens > 6",
        "tokens > 5; import os",
        "__import__('os')",
        "(" * 200 + "tokens > 5" + ")" * 200,
        "not " * 200 + "has(text)",
    ],
)
def test_what_is_no_rule_says_what_to_write(text: str) -> None:
    """The fault quotes the rule and lists the facts there are."""
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.reason == "rule"
    assert "stakes >= high" in caught.value.detail


def test_a_rule_tells_what_it_needs() -> None:
    """Language is told only where a rule asks for it."""
    assert parse("language == en or tokens > 5").facts == {"language", "tokens"}
    assert parse(" tokens > 5 ").text == "tokens > 5"


def test_no_rule_sees_a_text() -> None:
    """Facts hold numbers, levels, names of fields and a language: nothing that a text says."""
    assert set(Facts.__dataclass_fields__) == {
        *("tokens", "chars", "context", "stakes", "priority", "risk", "clearance", "fields", "language")
    }
