"""The gate: attempt -> Verdict. The one place where an answer is held to its threshold."""

from __future__ import annotations

from sluiceway.core.answer import Answer, Malformed
from sluiceway.core.call import FinishReason
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.core.trail import EscalationReason, Score, VerdictKind
from sluiceway.core.value import value


@value
class Verdict:
    """accept, or escalate with a reason of the closed set; `held` sends the answer to a person at once."""

    kind: VerdictKind
    reason: EscalationReason | None = None
    held: bool = False


ACCEPT = Verdict(VerdictKind.ACCEPT)


def escalate(reason: EscalationReason) -> Verdict:
    return Verdict(VerdictKind.ESCALATE, reason)


def unusable(finish: FinishReason, answer: Answer | Malformed) -> EscalationReason | None:
    """Why a reply is no answer, None where there is one to be scored."""
    if finish is FinishReason.DECLINED:
        return EscalationReason.DECLINED
    return EscalationReason.MALFORMED if isinstance(answer, Malformed) else None


def judge(gate: Gate | None, score: Score | None) -> Verdict:
    """The verdict on a schema-valid answer: its score must reach the threshold."""
    if gate is None or gate.score is ScoreKind.NONE:
        return ACCEPT
    if score is not None and score.value is not None:
        return ACCEPT if score.value >= gate.threshold else escalate(EscalationReason.UNCERTAIN)
    if gate.on_error == "accept":
        return ACCEPT
    return Verdict(VerdictKind.ESCALATE, EscalationReason.UNCERTAIN, held=gate.on_error == "review")
