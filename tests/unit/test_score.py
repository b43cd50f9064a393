"""Scores: measured from logprobs, votes and distributions; None where they can't be."""

from __future__ import annotations

import math

import pytest

from sluiceway.core import score as scores
from sluiceway.core.call import Reply, TokenLogprob, Usage
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.core.trail import Score

NOTHING = Usage()


def tokens(*parts: tuple[str, float] | tuple[str, float, dict[str, float]]) -> list[TokenLogprob]:
    """Tokens by text and probability, with the alternatives seen beside them."""
    return [
        TokenLogprob(
            part[0].encode(),
            math.log(part[1]),
            tuple((other.encode(), math.log(p)) for other, p in (part[2] if len(part) > 2 else {}).items()),
        )
        for part in parts
    ]


def measure(
    kind: str, made: list[TokenLogprob], *fields: str, text: str | None = None, per_field: bool = False
) -> Score:
    text = b"".join(token.token for token in made).decode() if text is None else text
    gate = Gate(score=ScoreKind(kind), threshold=0.5)
    return scores.from_logprobs(gate, Reply(text, NOTHING, logprobs=made), fields or ("label",), per_field=per_field)


LABEL = tokens(
    ('{"', 0.9), ('label":"', 0.9), ("bill", 0.8, {"ref": 0.15, "bill": 0.8}), ("ing", 0.5, {"et": 0.4}), ('"}', 0.9)
)


def test_a_label_is_as_sure_as_its_own_tokens() -> None:
    """What stands around it, and costs nothing to guess, does not count."""
    assert measure("label_logprob", LABEL).value == pytest.approx(0.8 * 0.5)


def test_the_margin_is_the_lead_over_the_best_other_label() -> None:
    """An alternative is the tokens before it times the other token there."""
    assert measure("margin", LABEL).value == pytest.approx(0.8 * 0.5 - 0.8 * 0.4)
    assert measure("margin", tokens(('{"label":"', 1.0), ("a", 0.3, {"b": 0.6}), ('"}', 1.0))).value == 0.0
    alone = tokens(('{"label":"', 1.0), ("a", 0.7), ('"}', 1.0))
    assert measure("margin", alone).value == pytest.approx(0.7)


def test_whole_answer_scores_count_every_token() -> None:
    """Geometric mean and product."""
    product = 0.9 * 0.9 * 0.8 * 0.5 * 0.9
    assert measure("answer_logprob", LABEL).value == pytest.approx(product)
    assert measure("mean_logprob", LABEL).value == pytest.approx(product ** (1 / 5))


def test_of_several_fields_the_weakest_counts() -> None:
    """Each has its own score; a null has one like any value."""
    made = tokens(('{"name":', 1.0), ("null", 0.6), (',"total":', 1.0), ("12", 0.9), ("}", 1.0))
    score = measure("label_logprob", made, "name", "total", per_field=True)
    assert score.value == pytest.approx(0.6)
    assert score.fields == pytest.approx({"name": 0.6, "total": 0.9})


def test_of_several_tags_the_weakest_counts() -> None:
    """And none of them is as sure as the empty list."""
    made = tokens(('{"tags":["', 1.0), ("oil", 0.9), ('","', 1.0), ("trade", 0.7), ('"]}', 1.0))
    assert measure("label_logprob", made, "tags").value == pytest.approx(0.7)
    empty = tokens(('{"tags":', 1.0), ("[]", 0.8), ("}", 1.0))
    assert measure("label_logprob", empty, "tags").value == pytest.approx(0.8)


def test_a_bare_label_is_scored_as_a_whole() -> None:
    """A model held to no JSON says the word alone."""
    assert measure("label_logprob", tokens((" bill", 0.8), ("ing", 0.5), ("\n", 0.2))).value == pytest.approx(0.4)


@pytest.mark.parametrize("kind", ["label_logprob", "margin", "mean_logprob", "answer_logprob"])
def test_without_logprobs_there_is_no_score(kind: str) -> None:
    """None, and the gate's on_error decides."""
    assert measure(kind, [], text='{"label":"x"}').value is None


def test_tokens_that_are_not_the_text_give_no_score() -> None:
    """A score of the wrong tokens would look like one."""
    assert measure("label_logprob", LABEL, text='{"label":"refunds"}').value is None
    assert measure("label_logprob", LABEL[:-1], text='{"label":"billing"}').value is None
    assert measure("label_logprob", LABEL, "total").value is None


def test_a_label_in_another_alphabet_is_found_by_its_bytes() -> None:
    """Tokens are bytes: a character may be cut apart."""
    text = '{"label":"größe"}'
    raw = text.encode()
    cut = raw.index("ö".encode()) + 1
    made = [TokenLogprob(raw[:10], 0.0, ()), TokenLogprob(raw[10:cut], math.log(0.5), ())]
    made += [TokenLogprob(raw[cut:-2], math.log(0.5), ()), TokenLogprob(raw[-2:], math.log(0.1), ())]
    assert measure("label_logprob", made, text=text).value == pytest.approx(0.25)


def test_scores_stay_between_zero_and_one() -> None:
    """Whatever a server sends for a logprob."""
    for logprob in (-9999.0, -1e308, 0.0, 5.0):
        made = [TokenLogprob(b'{"label":"', 0.0, ()), TokenLogprob(b"a", logprob, ((b"b", logprob),))]
        made.append(TokenLogprob(b'"}', 0.0, ()))
        for kind in ("label_logprob", "margin", "mean_logprob", "answer_logprob"):
            value = measure(kind, made).value
            assert value is not None
            assert 0.0 <= value <= 1.0


VOTES = Gate(score=ScoreKind.VOTES, threshold=0.6, votes=3)


@pytest.mark.parametrize(
    ("draws", "share", "winner"),
    [
        ([b"a", b"a", b"a"], 1.0, b"a"),
        ([b"a", b"b", b"a"], 2 / 3, b"a"),
        ([b"a", b"b", b"c"], 1 / 3, b"a"),
        ([None, b"a", b"a"], 2 / 3, b"a"),
        ([None, None, b"a"], 0.0, None),
        ([None, None, None], 0.0, None),
        ([b"a"], 1 / 3, b"a"),
        ([b"a", None], 1 / 3, b"a"),
        ([b"a", b"a", b"a", b"b"], 3 / 4, b"a"),
    ],
)
def test_votes_are_a_share_of_all_draws(draws: list[bytes | None], share: float, winner: bytes | None) -> None:
    """A draw without an answer is a vote for none, and so is one that was never made."""
    score, chosen = scores.from_votes(VOTES, draws)
    assert (score.value, chosen) == (pytest.approx(share), winner)


def test_a_distribution_scores_the_answer_that_was_given() -> None:
    """Zero for a label that the classifier does not know, None without a distribution."""
    gate = Gate(score=ScoreKind.LOCAL, threshold=0.5)
    assert scores.from_distribution(gate, "a", {"a": 0.4, "b": 0.6}).value == 0.4
    assert scores.from_distribution(gate, "c", {"a": 0.4}).value == 0.0
    assert scores.from_distribution(gate, "a", None).value is None
