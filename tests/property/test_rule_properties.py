"""The rule parser on everything: a rule or an input error; and rules mean what Python would."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.errors import InputError
from sluiceway.core.rule import Facts, Rule, parse

FACTS = st.builds(
    Facts,
    tokens=st.integers(0, 20),
    chars=st.integers(0, 20),
    context=st.integers(0, 3),
    stakes=st.sampled_from(Level),
    priority=st.sampled_from(Level),
    risk=st.sampled_from(Level),
    clearance=st.sampled_from(Clearance),
    fields=st.frozensets(st.sampled_from(["text", "body"])),
    language=st.sampled_from(["en", "de", "und"]),
)
NAMES = ["tokens", "chars", "context", "stakes", "priority", "risk", "clearance", "language", "has", "text"]
SIGNS = ["not", "and", "or", "in", "(", ")", "[", "]", ",", ">=", "<=", ">", "<", "==", "!=", ";", "!"]
ODD = ["0", "7", "1.5", "high", "low", "restricted", "en", "'de'", '"x"', "²", "٣", "nan", "inf", "1e9", "-1", "é"]
WORDS = st.sampled_from([*NAMES, *SIGNS, *ODD])


def parsed(text: str) -> Rule | None:
    try:
        return parse(text)
    except InputError:
        return None


@given(text=st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=14).map(" ".join)), facts=FACTS)
@settings(max_examples=600, deadline=None)
def test_any_text_is_a_rule_or_an_input_error(text: str, facts: Facts) -> None:
    """And a rule can always be asked."""
    rule = parsed(text)
    if rule is not None:
        assert rule.holds(facts) in (True, False)
        assert parse(rule.text).holds(facts) == rule.holds(facts)


@st.composite
def rules(draw: st.DrawFn, depth: int = 3) -> tuple[str, str]:
    """A rule, and the same in Python."""
    kind = draw(st.sampled_from(["number", "level", "has", "language"] + (["and", "or", "not"] * 2 if depth else [])))
    sign = draw(st.sampled_from([">=", "<=", ">", "<", "==", "!="]))
    if kind == "number":
        name, value = draw(st.sampled_from(["tokens", "chars", "context"])), draw(st.integers(0, 20))
        return f"{name} {sign} {value}", f"(f.{name} {sign} {value})"
    if kind == "level":
        name, level = draw(st.sampled_from(["stakes", "priority", "risk"])), draw(st.sampled_from(Level))
        return f"{name} {sign} {level.name.lower()}", f"(f.{name} {sign} {int(level)})"
    if kind == "has":
        name = draw(st.sampled_from(["text", "body"]))
        return f"has({name})", f"({name!r} in f.fields)"
    if kind == "language":
        negated = draw(st.sampled_from(["", "not "]))
        return f"language {negated}in [en, und]", f"(f.language {negated}in ('en', 'und'))"
    first, second = draw(rules(depth - 1)), draw(rules(depth - 1))
    if kind == "not":
        return f"not ({first[0]})", f"(not {first[1]})"
    return f"({first[0]}) {kind} ({second[0]})", f"({first[1]} {kind} {second[1]})"


@given(rule=rules(), facts=FACTS)
@settings(max_examples=300, deadline=None)
def test_a_rule_holds_exactly_when_python_says_so(rule: tuple[str, str], facts: Facts) -> None:
    """An oracle for the operators and their nesting."""
    written, python = rule
    assert parse(written).holds(facts) == eval(python, {"f": facts})  # noqa: S307  built above, from closed words


TERMS = st.sampled_from(["tokens > 5", "has(text)", "stakes == high"])


@given(parts=st.lists(TERMS, min_size=3, max_size=3), facts=FACTS)
@settings(max_examples=100, deadline=None)
def test_and_binds_closer_than_or(parts: list[str], facts: Facts) -> None:
    """As everywhere."""
    a, b, c = parts
    assert parse(f"{a} or {b} and {c}").holds(facts) == parse(f"{a} or ({b} and {c})").holds(facts)
    assert parse(f"{a} and {b} or {c}").holds(facts) == parse(f"({a} and {b}) or {c}").holds(facts)
    assert parse(f"not {a} and {b}").holds(facts) == parse(f"(not {a}) and {b}").holds(facts)
