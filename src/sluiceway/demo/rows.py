"""One job's outcome as a report needs it: who answered, what each rung said and cost, and what is true.

Answers are texts; what nobody knows is None, and never guessed. Money is pico-dollars, times are seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sluiceway.core.outcome import Result, Review, Status
from sluiceway.core.trail import Attempt

NO_ANSWER = ""
"""The reference is known to give no valid answer."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of one job from elsewhere: its gold answer, and what the reference says where it is on record."""

    gold: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """`cheap` is the last cheap rung's answer and `score` its score, `reference` the reference's answer and
    `reference_cost` what that alone costs. `model` is who answered, None for what ended without an answer.
    """

    id: str
    kind: str  # answered, refused, review, dead_letter
    model: str | None = None
    tier: str | None = None
    answer: str | None = None
    escalated: str | None = None
    cost: int = 0
    cheap: str | None = None
    cheap_cost: int = 0
    score: float | None = None
    reference: str | None = None
    reference_cost: int | None = None
    gold: str | None = None
    seconds: float | None = None
    spent: Mapping[str, int] = field(default_factory=dict)  # by model

    @property
    def tried(self) -> bool:
        """Whether a cheap model was called for it."""
        return self.cheap is not None or self.cheap_cost > 0


def said(answer: Any) -> str | None:
    """An answer as one text that gold can be compared with: a lone property's value, tags sorted, else its JSON."""
    if answer is None:
        return None
    if isinstance(answer, Mapping) and len(answer) == 1:
        (answer,) = answer.values()
    if isinstance(answer, list):
        return ",".join(sorted(str(part) for part in answer))
    return answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True, separators=(",", ":"))


def row(outcome: Result | Review, reference: str, truth: Truth, seconds: float | None = None) -> Row:
    """The row of an outcome; `reference` names the ladder's last model."""
    attempts = outcome.trail.attempts
    cheap = _last(attempt for attempt in attempts if attempt.model != reference)
    frontier = _last(attempt for attempt in attempts if attempt.model == reference)
    spent: Counter[str] = Counter()
    for attempt in attempts:
        spent[attempt.model] += attempt.cost_picousd
    paid = spent[reference]
    result = outcome if isinstance(outcome, Result) else None
    answered = result is not None and result.status is Status.ANSWERED
    known = truth.reference
    if known is None and frontier is not None:
        known = said(frontier.answer) or NO_ANSWER
    return Row(
        id=outcome.job_id,
        kind="review" if result is None else "answered" if answered else "refused",
        model=result.model if result is not None and answered else None,
        tier=result.tier if result is not None and answered else None,
        answer=said(result.answer) if result is not None and answered else None,
        escalated=outcome.escalated.value if outcome.escalated is not None else None,
        cost=outcome.cost_picousd,
        cheap=said(cheap.answer) if cheap is not None else None,
        cheap_cost=outcome.cost_picousd - paid,
        score=cheap.score.value if cheap is not None and cheap.score is not None else None,
        reference=known,
        reference_cost=paid or (result.reference_cost_picousd if result is not None else None),
        gold=truth.gold,
        seconds=seconds,
        spent=spent,
    )


def _last(attempts: Iterable[Attempt]) -> Attempt | None:
    found = None
    for found in attempts:  # noqa: B007  the last one is wanted
        pass
    return found
