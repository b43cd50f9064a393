"""The cost-quality curve: the same run at every other threshold, from what its models are on record to have said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sluiceway.demo.rows import NO_ANSWER, Row


@dataclass(frozen=True, slots=True)
class Point:
    """The whole run at another threshold: `escalated` is a share of jobs, `cost` a share of the all-frontier cost.

    `accuracy` and `agreement` (with the reference) are None where an answer that this threshold needs is not on record.
    """

    threshold: float
    escalated: float
    cost: float
    accuracy: float | None
    agreement: float | None


class Tally:
    """Counts of right, wrong and unknown."""

    def __init__(self, judged: Iterable[bool | None] = ()) -> None:
        self._counts = Counter(judged)

    def add(self, right: bool | None) -> None:
        self._counts[right] += 1

    def drop(self, right: bool | None) -> None:
        self._counts[right] -= 1

    def share(self) -> float | None:
        """Of right ones; None while one is unknown, or there is none."""
        known = self._counts[True] + self._counts[False]
        return None if self._counts[None] or not known else self._counts[True] / known


def right(answer: str | None, wanted: str | None) -> bool | None:
    """Whether an answer is the wanted one; None where nobody knows what is wanted."""
    return None if wanted is None else answer is not None and answer == wanted and answer != NO_ANSWER


def trace(rows: Sequence[Row]) -> tuple[Point, ...]:
    """The points of every threshold that changes something, cheapest first.

    An answer without a score (malformed, declined) is escalated at each of them. Empty where some job was never tried
    by a cheap model, or the reference's cost is unknown: then there is no such choice.
    """
    costs = [one.reference_cost for one in rows]
    alone = sum(cost or 0 for cost in costs)
    if not alone or None in costs or not all(one.tried for one in rows):
        return ()
    doubted = sorted(rows, key=lambda one: -1.0 if one.score is None else one.score)
    cost = sum(one.cheap_cost for one in rows)
    accuracy = Tally(right(one.cheap, one.gold) for one in rows)
    agreement = Tally(right(one.cheap, one.reference) for one in rows)
    points = []
    for place in range(len(doubted) + 1):
        if place:
            one = doubted[place - 1]  # it is escalated from here on
            cost += one.reference_cost or 0
            accuracy.drop(right(one.cheap, one.gold))
            accuracy.add(None if one.reference is None else right(one.reference, one.gold))
            agreement.drop(right(one.cheap, one.reference))
            agreement.add(one.reference != NO_ANSWER)
        if place == len(doubted) or _starts(doubted, place):
            threshold = 1.0 if place == len(doubted) else doubted[place].score or 0.0
            points.append(Point(threshold, place / len(rows), cost / alone, accuracy.share(), agreement.share()))
    return tuple(points)


def accuracy_at(points: Sequence[Point], cost: float) -> float | None:
    """The accuracy at that share of the all-frontier cost, on the straight line between the curve's two nearest points.

    Between them a coin would decide who is escalated. None where the curve does not reach that cost, or has no gold.
    """
    for left, after in pairwise(points):
        if left.cost <= cost <= after.cost and left.accuracy is not None and after.accuracy is not None:
            width = after.cost - left.cost
            part = (cost - left.cost) / width if width else 0.0
            return left.accuracy + part * (after.accuracy - left.accuracy)
    return None


def thin(points: Sequence[Point], count: int) -> list[Point]:
    """`count` of the points, evenly by the share that they escalate, first and last among them."""
    if len(points) <= count:
        return list(points)
    first, last = points[0].escalated, points[-1].escalated
    wanted = [first + (last - first) * step / (count - 1) for step in range(count)]
    return [min(points, key=lambda point: abs(point.escalated - share)) for share in wanted]


def _starts(ordered: Sequence[Row], place: int) -> bool:
    """Whether a threshold can stand before that row: it has a score, and another than the row before."""
    score = ordered[place].score
    return score is not None and (place == 0 or ordered[place - 1].score != score)
