"""The gate: where an answer is held to its threshold."""

from __future__ import annotations

import pytest

from sluiceway.core import gate as gates
from sluiceway.core.answer import Answer, Malformed
from sluiceway.core.call import FinishReason
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.core.trail import EscalationReason, Score, VerdictKind

GATE = Gate(score=ScoreKind.LABEL_LOGPROB, threshold=0.8)


@pytest.mark.parametrize(
    ("value", "kind"), [(0.8, VerdictKind.ACCEPT), (0.7999999, VerdictKind.ESCALATE), (1.0, VerdictKind.ACCEPT)]
)
def test_a_score_must_reach_the_threshold(value: float, kind: VerdictKind) -> None:
    """The threshold itself is enough."""
    assert gates.judge(GATE, Score("label_logprob", value, 0.8)).kind is kind


def test_what_can_not_be_scored_is_doubted() -> None:
    """Unless the policy accepts it, or asks a person."""
    none = Score("label_logprob", None, 0.8)
    assert gates.judge(GATE, none) == gates.judge(GATE, None) == gates.escalate(EscalationReason.UNCERTAIN)
    assert gates.judge(GATE.model_copy(update={"on_error": "accept"}), none) is gates.ACCEPT
    assert gates.judge(GATE.model_copy(update={"on_error": "review"}), none).held


def test_no_gate_and_score_none_accept() -> None:
    """The schema has judged already."""
    assert gates.judge(None, None) is gates.judge(Gate(score=ScoreKind.NONE), None) is gates.ACCEPT


def test_a_declined_reply_is_declined_even_when_it_parses() -> None:
    """The model said no, whatever else it said."""
    answer = Answer({"label": "x"}, b"x")
    assert gates.unusable(FinishReason.DECLINED, answer) is EscalationReason.DECLINED
    assert gates.unusable(FinishReason.STOP, Malformed("x")) is EscalationReason.MALFORMED
    assert gates.unusable(FinishReason.STOP, answer) is None
