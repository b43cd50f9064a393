"""Scores do not depend on where a tokenizer cuts: bytes are bytes."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core import score as scores
from sluiceway.core.call import Reply, TokenLogprob, Usage
from sluiceway.core.task import Gate, ScoreKind

LABELS = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), st.just("größe"))


def measure(kind: ScoreKind, text: str, tokens: list[TokenLogprob], *fields: str) -> float | None:
    gate = Gate(score=kind, threshold=0.5)
    return scores.from_logprobs(gate, Reply(text, Usage(), logprobs=tokens), fields, per_field=True).value


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    """`raw` in tokens that end at `places`, inside characters too."""
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[first:last] for first, last in itertools.pairwise(edges)]


@given(label=LABELS, places=st.lists(st.integers(0, 10**6), max_size=12), ascii_only=st.booleans())
@settings(max_examples=500, deadline=None)
def test_a_label_counts_the_tokens_that_touch_it_and_no_others(label: str, places: list[int], ascii_only: bool) -> None:
    """However the reply is cut into tokens, between or inside characters."""
    text = json.dumps({"label": label}, ensure_ascii=ascii_only)
    raw = text.encode()
    first, last = len(b'{"label": "'), len(raw) - len(b'"}')
    tokens, wanted, at = [], 0.0, 0
    for number, part in enumerate(cut(raw, places)):
        logprob = -0.01 * (number + 1)
        tokens.append(TokenLogprob(part, logprob, ((b"\xff", logprob - 1),)))
        if at < last and at + len(part) > first:
            wanted += logprob
        at += len(part)
    value = measure(ScoreKind.LABEL_LOGPROB, text, tokens, "label")
    assert value == pytest.approx(math.exp(wanted))
    margin = measure(ScoreKind.MARGIN, text, tokens, "label")
    assert margin is not None
    assert 0 <= margin <= math.exp(wanted) + 1e-12


@given(
    text=st.one_of(st.text(max_size=40), st.just('{"label":"a"}')),
    tokens=st.lists(
        st.builds(
            TokenLogprob,
            st.binary(max_size=6),
            st.floats(-1e308, 10, allow_nan=False),
            st.lists(st.tuples(st.binary(max_size=3), st.floats(-1e308, 10, allow_nan=False)), max_size=3).map(tuple),
        ),
        max_size=8,
    ),
    whole=st.booleans(),
    kind=st.sampled_from([kind for kind in ScoreKind if "logprob" in kind.value or kind is ScoreKind.MARGIN]),
)
@settings(max_examples=500, deadline=None)
def test_any_logprobs_give_a_score_in_its_range_or_none(
    text: str, tokens: list[TokenLogprob], whole: bool, kind: ScoreKind
) -> None:
    """Whatever a server sends."""
    if whole:
        tokens = [*tokens, TokenLogprob(text.encode("utf-8", "surrogatepass"), -0.5, ())]
    value = measure(kind, text, tokens, "label")
    assert value is None or 0.0 <= value <= 1.0


@given(draws=st.lists(st.sampled_from([None, b"a", b"b", b"c"]), min_size=1, max_size=15))
@settings(max_examples=200, deadline=None)
def test_votes_are_the_share_of_the_most_common_answer(draws: list[bytes | None]) -> None:
    """Over all votes of the gate; None never wins with a share."""
    gate = Gate(score=ScoreKind.VOTES, threshold=0.5)
    score, winner = scores.from_votes(gate, draws)
    assert score.value is not None
    if winner is None:
        assert score.value == 0.0
        assert draws.count(None) >= max(draws.count(word) for word in (b"a", b"b", b"c"))
    else:
        assert score.value == draws.count(winner) / max(gate.votes, len(draws))
        assert draws.count(winner) >= max(draws.count(word) for word in draws)
