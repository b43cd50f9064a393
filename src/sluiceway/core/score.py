"""The score: a measured confidence in 0..1 of one answer, from logprobs, from votes or from a local classifier.

Never the model's own word about its confidence. A score that can't be computed is None: the gate's `on_error` decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from sluiceway.core.answer import Span, spans
from sluiceway.core.call import Reply, TokenLogprob
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.core.trail import Score

_WHOLE = frozenset((ScoreKind.MEAN_LOGPROB, ScoreKind.ANSWER_LOGPROB))
_SHORT = 256  # characters; texts up to it are remembered


def from_logprobs(gate: Gate, reply: Reply, compared: Sequence[str], *, per_field: bool) -> Score:
    """The gate's score of a reply that carries the logprobs of its tokens.

    label_logprob: the product of the probabilities of the tokens that overlap a compared field's value; of several
    fields or elements the lowest. margin: that product less the best alternative's, each alternative being the tokens
    before it times the best other token there. mean_logprob, answer_logprob: geometric mean, product over all tokens.
    """
    tokens = reply.logprobs
    if not tokens:
        return _score(gate, None, {})
    words, logprobs, _ = zip(*tokens, strict=True)
    total, kind = sum(logprobs), gate.score
    features = {"mean_logprob": _p(total / len(words)), "answer_logprob": _p(total)}
    if kind in _WHOLE:
        return _score(gate, features[kind], features)
    text = reply.text
    if b"".join(words) != text.encode("utf-8", "surrogatepass"):
        return _score(gate, None, features)
    found = (_short_spans(text) if len(text) <= _SHORT else spans(text)) or _bare(text, compared)
    fields: dict[str, float] = {}
    least = 1.0  # of the margins
    for name in compared:
        values = found.get(name)
        if not values:
            return _score(gate, None, features)
        lowest = 1.0
        for span in values:
            probability, margin = _span(tokens, _in_bytes(text, span))
            if probability < lowest:
                lowest = probability
            if margin < least:
                least = margin
        fields[name] = lowest
    features["label_logprob"] = min(fields.values())
    features["margin"] = least
    return _score(gate, features[kind], features, fields if per_field else None)


@lru_cache(maxsize=1024)
def _short_spans(text: str) -> Mapping[str, Sequence[Span]]:
    """`spans`, kept: a label task's replies are the same few texts."""
    return spans(text)


def from_votes(gate: Gate, draws: Sequence[bytes | None]) -> tuple[Score, bytes | None]:
    """The share of the gate's votes that gave the most common answer, and that answer.

    None stands for a draw without one. A vote that was not taken, for want of time, agrees with nothing.
    """
    (answer, count), *_ = Counter(draws).most_common(1)
    if answer is None:
        return _score(gate, 0.0, {"draws": float(len(draws))}), None
    votes = max(gate.votes, len(draws))  # more were cast where it came back under a policy that asks for fewer
    return _score(gate, count / votes, {"draws": float(len(draws))}), answer


def from_distribution(gate: Gate, label: str, distribution: Mapping[str, float] | None) -> Score:
    """What a local classifier gives `label`; None where it gave no distribution."""
    if distribution is None:
        return _score(gate, None, {})
    return _score(gate, distribution.get(label, 0.0), {})


def _score(
    gate: Gate, value: float | None, features: Mapping[str, float], fields: Mapping[str, float] | None = None
) -> Score:
    return Score(str(gate.score), value, gate.threshold, features, fields)


def _p(logprob: float) -> float:
    return 1.0 if logprob >= 0.0 else math.exp(logprob)


def _bare(text: str, compared: Sequence[str]) -> dict[str, list[Span]]:
    """A label that stands alone, as a model says it that is held to no JSON."""
    word = text.strip()
    first = text.find(word)
    return {compared[0]: [(first, first + len(word))]} if word and len(compared) == 1 else {}


def _in_bytes(text: str, span: Span) -> Span:
    if text.isascii():
        return span
    first = len(text[: span[0]].encode("utf-8", "surrogatepass"))
    return first, first + len(text[span[0] : span[1]].encode("utf-8", "surrogatepass"))


def _span(tokens: Sequence[TokenLogprob], span: Span) -> tuple[float, float]:
    """Probability and margin of the tokens that overlap the bytes of `span`."""
    first, last = span
    before, best_other = 0.0, -math.inf
    begin = 0
    for word, logprob, top in tokens:
        if begin >= last:
            break
        begin += len(word)
        if begin > first:
            for other, instead in top:
                if before + instead > best_other and other != word:
                    best_other = before + instead
            before += logprob
    probability = _p(before)
    margin = probability - _p(best_other)
    return probability, margin if margin > 0.0 else 0.0
