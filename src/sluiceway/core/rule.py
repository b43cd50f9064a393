"""Rules: the small closed grammar in which a policy speaks about measured facts.

    stakes >= high or tokens > 6000
    language not in [en, de] and not has(body)

Facts are numbers, levels, a language code and which fields are present. No rule can read what a text says.

    rule   := clause ("or" clause)*          clause := term ("and" term)*
    term   := "not" term | "(" rule ")" | "has" "(" NAME ")" | FACT OP value | FACT ["not"] "in" "[" value, ... "]"
    OP     := ">=" | "<=" | ">" | "<" | "==" | "!="
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.errors import InputError
from sluiceway.core.value import value

NUMBERS = ("tokens", "chars", "context")
LEVELS = ("stakes", "priority", "risk")
FACTS = (*NUMBERS, *LEVELS, "clearance", "language")


@value
class Facts:
    """What was measured of a job, or declared by it: all that a rule can see.

    tokens and chars count the job's text before any trimming, context the passages that came with it,
    language is an ISO 639-1 code ("und" where it could not be told).
    """

    tokens: int
    chars: int
    context: int
    stakes: Level
    priority: Level
    risk: Level
    clearance: Clearance
    fields: frozenset[str]
    language: str = "und"


Test = Callable[[Facts], bool]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN = re.compile(r"\s*(>=|<=|==|!=|>|<|\(|\)|\[|\]|,|[A-Za-z_][\w./-]*|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\")")

_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")
_SIGNS = frozenset((*_OPERATORS, *"()[],"))


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed condition; `text` is how the user wrote it, and how a trail names it."""

    text: str
    facts: frozenset[str]
    test: Test

    def holds(self, facts: Facts) -> bool:
        return self.test(facts)


def parse(text: str) -> Rule:
    """The rule that `text` writes. Raises InputError("rule", ...) that names the fault and the mend."""
    parser = _Parser(text)
    test = parser.rule()
    if parser.peek() is not None:
        raise parser.fault(f"unexpected {parser.peek()!r}")
    return Rule(text=text.strip(), facts=frozenset(parser.facts), test=test)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        self.at = 0
        self.depth = 0
        self.facts: set[str] = set()
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.fault(f"cannot read {text[position:].strip()[:20]!r}")
            self.tokens.append(match.group(1))
            position = match.end()
        if not self.tokens:
            raise self.fault("it is empty")

    def fault(self, problem: str) -> InputError:
        return InputError(
            "rule",
            f"{self.text!r}: {problem}; write for example 'stakes >= high or tokens > 6000' "
            f"(facts: {', '.join(FACTS)}, has(field))",
        )

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def next(self, wanted: str | None = None) -> str:
        token = self.peek()
        if token is None:
            raise self.fault(f"it ends where {wanted or 'more'} was expected")
        if wanted is not None and token != wanted:
            raise self.fault(f"expected {wanted!r}, found {token!r}")
        self.at += 1
        return token

    def rule(self) -> Test:
        return self.joined("or", self.clause, any)

    def clause(self) -> Test:
        return self.joined("and", self.term, all)

    def joined(self, word: str, part: Callable[[], Test], join: Callable[..., bool]) -> Test:
        parts = [part()]
        while self.peek() == word:
            self.next()
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        return lambda facts: join(test(facts) for test in parts)

    def term(self) -> Test:
        self.depth += 1
        if self.depth > 50:
            raise self.fault("it is nested too deeply")
        try:
            return self.single()
        finally:
            self.depth -= 1

    def single(self) -> Test:
        word = self.next()
        if word == "not":
            test = self.term()
            return lambda facts: not test(facts)
        if word == "(":
            test = self.rule()
            self.next(")")
            return test
        if word == "has":
            self.next("(")
            name = self.next().strip("'\"")
            if name in _SIGNS:
                raise self.fault("has() needs a field's name")
            self.next(")")
            return lambda facts: name in facts.fields
        if word not in FACTS:
            raise self.fault(f"unknown fact {word!r}")
        self.facts.add(word)
        return self.membership(word) if self.peek() in ("in", "not") else self.comparison(word)

    def comparison(self, fact: str) -> Test:
        sign = self.next()
        if sign not in _OPERATORS:
            raise self.fault(f"expected a comparison after {fact!r}, found {sign!r}")
        if fact == "language" and sign not in ("==", "!="):
            raise self.fault("language can only be compared with == and !=")
        compare, value = _OPERATORS[sign], self.value(fact)
        return lambda facts: compare(getattr(facts, fact), value)

    def membership(self, fact: str) -> Test:
        negated = self.peek() == "not"
        if negated:
            self.next()
        self.next("in")
        self.next("[")
        values = {self.value(fact)}
        while self.peek() == ",":
            self.next()
            values.add(self.value(fact))
        self.next("]")
        return lambda facts: (getattr(facts, fact) in values) is not negated

    def value(self, fact: str) -> object:
        token = self.next().strip("'\"")
        if fact in NUMBERS:
            if not _NUMBER.fullmatch(token):
                raise self.fault(f"{fact} is compared with a number, not {token!r}")
            return float(token)
        if fact == "language":
            return token
        kind = Clearance if fact == "clearance" else Level
        if token.upper() not in kind.__members__:
            raise self.fault(f"{fact} is one of {', '.join(member.name.lower() for member in kind)}, not {token!r}")
        return kind[token.upper()]
