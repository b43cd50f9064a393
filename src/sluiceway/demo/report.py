"""What a run comes to, in numbers: who answered, what it cost beside the frontier alone, how good it was, how fast.

Pure: rows in, figures out. What nobody knows is None. Money is pico-dollars, shares are in 0..1, times are seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sluiceway.core import ledger
from sluiceway.core.outcome import BAR_NOT_PROVED
from sluiceway.demo import curve
from sluiceway.demo.curve import Point, Tally, right
from sluiceway.demo.rows import NO_ANSWER, Row

THIRD = 1 / 3
"""Of the all-frontier cost: where runs are compared."""
_CURVE_SHOWN = 11


@dataclass(frozen=True, slots=True)
class Figures:
    """A run in numbers. `reference_cost` is the all-frontier cost. Accuracy is against gold, agreement with the
    reference's answers; both count a job that ended without an answer as wrong. `seconds` is the whole run's time.
    """

    jobs: int
    answered: Mapping[str, int]  # by model
    tiers: Mapping[str, int]
    spent: Mapping[str, int]  # pico-dollars by model
    escalated: Mapping[str, int]  # by reason
    refused: int
    reviews: int
    dead_letters: int
    cost: int
    reference_cost: int | None
    saving: float | None
    accuracy: float | None
    agreement: float | None
    cheap_accuracy: float | None
    reference_accuracy: float | None
    p50: float | None
    p99: float | None
    seconds: float | None = None
    curve: tuple[Point, ...] = field(default=(), repr=False)
    accuracy_at_third: float | None = None
    bar: str | None = None

    @property
    def jobs_per_second(self) -> float | None:
        return self.jobs / self.seconds if self.seconds else None

    @property
    def cost_share(self) -> float | None:
        """Of the all-frontier cost."""
        return self.cost / self.reference_cost if self.reference_cost else None

    def as_json(self) -> dict[str, Any]:
        """For scripts: money in USD as well, the curve thinned."""
        apart = ("curve", "cost", "reference_cost", "spent")
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in apart},
            "jobs_per_second": self.jobs_per_second,
            "spent_usd": {model: ledger.usd(pico) for model, pico in self.spent.items()},
            "cost_picousd": self.cost,
            "cost_usd": ledger.usd(self.cost),
            "reference_cost_picousd": self.reference_cost,
            "reference_cost_usd": None if self.reference_cost is None else ledger.usd(self.reference_cost),
            "curve": [
                {name: getattr(point, name) for name in Point.__slots__}
                for point in curve.thin(self.curve, _CURVE_SHOWN)
            ],
        }


def figures(rows: Sequence[Row], *, seconds: float | None = None, bar: bool = False) -> Figures:
    """The figures of a run that took `seconds`; `rows` holds each job once. `bar`: its task declares one."""
    cost = sum(one.cost for one in rows)
    spent: Counter[str] = Counter()
    for one in rows:
        spent.update(one.spent)
    costs = [one.reference_cost for one in rows if one.kind != "dead_letter"]
    alone = None if None in costs else sum(each or 0 for each in costs)
    points = curve.trace(rows)
    times = sorted(one.seconds for one in rows if one.seconds is not None)
    tried = all(one.tried for one in rows)
    return Figures(
        jobs=len(rows),
        answered=_counts(one.model for one in rows),
        tiers=_counts(one.tier for one in rows),
        spent=spent,
        escalated=_counts(one.escalated for one in rows),
        refused=sum(one.kind == "refused" for one in rows),
        reviews=sum(one.kind == "review" for one in rows),
        dead_letters=sum(one.kind == "dead_letter" for one in rows),
        cost=cost,
        reference_cost=alone,
        saving=1 - cost / alone if alone else None,
        accuracy=Tally(right(one.answer, one.gold) for one in rows).share(),
        agreement=Tally(_agrees(one) for one in rows).share(),
        cheap_accuracy=Tally(right(one.cheap, one.gold) for one in rows).share() if tried else None,
        reference_accuracy=Tally(
            None if one.reference is None else right(one.reference, one.gold) for one in rows
        ).share(),
        p50=quantile(times, 0.50),
        p99=quantile(times, 0.99),
        seconds=seconds,
        curve=points,
        accuracy_at_third=curve.accuracy_at(points, THIRD),
        bar=BAR_NOT_PROVED if bar else None,
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of the ordered values that at least `share` of them do not exceed; None without any."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _agrees(one: Row) -> bool | None:
    return False if one.reference == NO_ANSWER else right(one.answer, one.reference)


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(name for name in names if name is not None).most_common())
