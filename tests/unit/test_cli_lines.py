"""What `tail` shows: one line a record, whatever is in it."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import core
from tests.support.core import climb, job, plan, reply

from sluiceway.cli import lines
from sluiceway.cli.show import plain, usd
from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Failure, Reply
from sluiceway.core.cascade import Role
from sluiceway.core.outcome import Escalation
from sluiceway.ports import Headers, Record


def record(value: bytes | None, headers: Headers = (), key: bytes | None = b"k") -> Record:
    return Record("sluiceway.results", 3, 7, 1_700_000_000.0, key, value, headers)


def test_a_result_an_escalation_and_a_review_each_say_who_what_and_why() -> None:
    """Job, task, tier and model, answer, score, cost, reason."""
    answered = climb(plan(), job(), lambda _: reply("billing", 0.95)).record
    shown = lines.line(record(outcomes.encode(answered))).plain
    for part in ("j1", "triage", "small/cheap", "billing", "0.950", "$"):
        assert part in shown
    doubted = climb(plan(), job(), lambda _: reply("billing", 0.3)).record
    assert isinstance(doubted, Escalation)
    shown = lines.line(record(outcomes.encode(doubted))).plain
    for part in ("j1", "small/cheap", "billing", "0.300", "uncertain"):
        assert part in shown
    held = climb(plan(), job(), lambda _: Reply("?", core.USAGE), Role.ESCALATIONS, resumed=doubted).record
    shown = lines.line(record(outcomes.encode(held))).plain
    assert "uncertain: unsettled" in shown


def test_a_refusal_says_that_it_is_one() -> None:
    """With its reason."""
    refused = climb(plan(), job(expires_at=1.0), lambda _: Failure(core.FailureKind.TRANSIENT, "x")).record
    assert "refused: expired" in lines.line(record(outcomes.encode(refused))).plain


def test_a_dead_letter_shows_its_facts_and_never_its_bytes() -> None:
    """Neither on a terminal nor as JSON: the bytes may hold anything."""
    headers = (
        ("__dlq.errors.topic", b"sluiceway.jobs"),
        ("__dlq.errors.partition", b"2"),
        ("__dlq.errors.offset", b"9"),
        ("__dlq.errors.message", b"not JSON"),
        ("sluiceway.reason", b"undecodable"),
        ("authorization", b"canary"),
    )
    dead = record(b'{"trail": "canary', headers)
    shown = lines.line(dead).plain
    assert "undecodable: not JSON" in shown
    assert "sluiceway.jobs/2/9" in shown
    told = lines.as_json(dead)
    assert orjson.loads(told)["reason"] == "undecodable"
    assert "canary" not in shown
    assert b"canary" not in told


def test_what_a_model_wrote_moves_no_cursor_and_is_no_markup() -> None:
    """Escape codes and brackets of an answer are only text."""
    assert plain("\x1b[2Jgone\r\n[red]x") == " [2Jgone  [red]x"


@settings(deadline=None)
@given(st.none() | st.binary(max_size=80) | st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["trail", "steps", "status", "answer", "model", "score"]), inner, max_size=4),
    max_leaves=8,
).map(orjson.dumps))  # fmt: skip
def test_any_bytes_of_a_topic_are_one_line(value: bytes | None) -> None:
    """A foreign record on our topic does not stop the watcher."""
    assert "\n" not in lines.line(record(value, key=None)).plain
    orjson.loads(lines.as_json(record(value)))


def test_money_is_shown_as_finely_as_it_is_spent() -> None:
    """A millionth of a dollar is not nothing."""
    assert [usd(pico) for pico in (162_750_000, 2 * 10**10, 123 * 10**12)] == ["$0.00016275", "$0.0200", "$123.00"]
