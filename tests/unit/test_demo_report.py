"""The demo's arithmetic: rows, figures and the cost-quality curve."""

from __future__ import annotations

import random

import pytest

from sluiceway.demo import curve, report
from sluiceway.demo.rows import NO_ANSWER, Row, said


def ticket(number: int, *, score: float | None, cheap: str, reference: str, gold: str, escalated: bool) -> Row:
    """A job whose cheap answer costs 1 and whose reference costs 10."""
    answer = reference if escalated else cheap
    return Row(
        id=str(number),
        kind="review" if answer == NO_ANSWER else "answered",
        model=None if answer == NO_ANSWER else "big" if escalated else "small",
        tier=None if answer == NO_ANSWER else "frontier" if escalated else "cheap",
        answer=None if answer == NO_ANSWER else answer,
        escalated="uncertain" if escalated else None,
        cost=11 if escalated else 1,
        cheap=cheap,
        cheap_cost=1,
        score=score,
        reference=reference,
        reference_cost=10,
        gold=gold,
        seconds=number / 1000,
        spent={"small": 1, "big": 10} if escalated else {"small": 1},
    )


def made(seed: int, threshold: float, count: int = 60) -> list[Row]:
    dice = random.Random(seed)
    found = []
    for number in range(count):
        score = None if dice.random() < 0.1 else round(dice.random(), 1)  # few values, so that scores tie
        found.append(
            ticket(
                number,
                score=score,
                cheap=dice.choice("ab"),
                reference=dice.choice(["a", "b", NO_ANSWER]),
                gold=dice.choice("ab"),
                escalated=score is None or score < threshold,
            )
        )
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_curve_at_a_run_s_own_threshold_is_that_run(seed: int) -> None:
    """Cost, accuracy, agreement and escalations of a real run at a threshold are what the curve foretells for it."""
    for threshold in (0.2, 0.5, 0.9):
        rows = made(seed, threshold)
        run = report.figures(rows)
        points = [point for point in run.curve if point.threshold >= threshold]
        if not points:
            continue
        foretold = points[0]
        assert foretold.escalated == pytest.approx(sum(run.escalated.values()) / run.jobs)
        assert foretold.cost == pytest.approx(run.cost_share)
        assert foretold.accuracy == pytest.approx(run.accuracy)
        assert foretold.agreement == pytest.approx(run.agreement, abs=0.25)


@pytest.mark.parametrize("seed", range(20))
def test_the_curve_does_not_depend_on_where_the_gate_stood(seed: int) -> None:
    """The same record gives the same curve whatever threshold it was made under, and in whatever order."""
    strict, mild = made(seed, 0.9), made(seed, 0.2)
    random.Random(seed).shuffle(mild)
    assert curve.trace(strict) == curve.trace(mild)


@pytest.mark.parametrize("seed", range(10))
def test_the_curve_runs_from_the_least_to_every_job_escalated(seed: int) -> None:
    """Thresholds and costs rise along the curve; unscored answers are escalated at its first point, all at its last."""
    rows = made(seed, 0.5)
    points = curve.trace(rows)
    assert [point.threshold for point in points] == sorted(point.threshold for point in points)
    assert [point.cost for point in points] == sorted(point.cost for point in points)
    assert points[0].escalated == sum(row.score is None for row in rows) / len(rows)
    assert points[-1].escalated == 1.0


def test_ties_are_escalated_together() -> None:
    """A threshold can't stand between two equal scores."""
    rows = [ticket(n, score=0.5, cheap="a", reference="b", gold="a", escalated=False) for n in range(4)]
    assert [point.escalated for point in curve.trace(rows)] == [0.0, 1.0]


def test_what_is_not_on_record_is_unknown() -> None:
    """A point that needs an answer nobody recorded has no accuracy; those that don't need it keep theirs."""
    known = ticket(1, score=0.1, cheap="a", reference="b", gold="b", escalated=True)
    unknown = ticket(2, score=0.9, cheap="a", reference="b", gold="a", escalated=False)
    unknown = Row(**{**{name: getattr(unknown, name) for name in Row.__slots__}, "reference": None})
    none, one, both = curve.trace([known, unknown])
    assert (none.accuracy, one.accuracy, both.accuracy) == (0.5, 1.0, None)
    assert report.figures([known, unknown]).reference_accuracy is None


def test_no_curve_where_a_job_had_no_cheap_answer() -> None:
    """Routed straight to the frontier, a job says nothing about thresholds: better no curve than a wrong one."""
    rows = made(1, 0.5)
    straight = Row("x", "answered", "big", "frontier", "a", "routed", 10, reference="a", reference_cost=10, gold="a")
    assert curve.trace(rows)
    assert curve.trace([*rows, straight]) == ()


def test_accuracy_between_points_lies_on_the_line_between_them() -> None:
    """Halfway in cost is halfway in accuracy; outside the curve nothing is known."""
    points = (curve.Point(0.1, 0.0, 0.1, 0.60, None), curve.Point(0.2, 0.5, 0.5, 0.70, None))
    assert curve.accuracy_at(points, 0.3) == pytest.approx(0.65)
    assert curve.accuracy_at(points, 0.5) == pytest.approx(0.70)
    assert curve.accuracy_at(points, 0.6) is None
    assert curve.accuracy_at(points, 0.05) is None


def test_a_job_without_an_answer_counts_as_wrong() -> None:
    """Neither accuracy nor agreement may look better for what a person has to do."""
    rows = [
        ticket(1, score=0.1, cheap="a", reference=NO_ANSWER, gold="a", escalated=True),
        ticket(2, score=0.9, cheap="a", reference="a", gold="a", escalated=False),
    ]
    figures = report.figures(rows)
    assert (figures.reviews, figures.accuracy, figures.agreement) == (1, 0.5, 0.5)


def test_a_dead_letter_counts_as_a_job_and_costs_nothing() -> None:
    """The all-frontier cost is of the jobs that a model could have seen."""
    rows = [
        ticket(1, score=0.9, cheap="a", reference="a", gold="a", escalated=False),
        Row("2", "dead_letter", gold="a"),
    ]
    figures = report.figures(rows)
    assert (figures.jobs, figures.dead_letters, figures.reference_cost, figures.accuracy) == (2, 1, 10, 0.5)


def test_money_is_conserved() -> None:
    """What the rungs cost adds up to what the run cost."""
    figures = report.figures(made(3, 0.5))
    assert sum(figures.spent.values()) == figures.cost
    assert figures.saving == pytest.approx(1 - figures.cost / (10 * 60))


def test_quantiles_are_values_that_were_seen() -> None:
    """Nearest rank: at least that share of the values is not above it."""
    assert report.quantile([], 0.5) is None
    assert report.quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert report.quantile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert report.quantile([7.0], 0.0) == 7.0


def test_answers_are_compared_as_text() -> None:
    """A lone property is its value, tags are sorted, anything richer is its JSON with sorted names."""
    assert said({"label": "billing"}) == "billing"
    assert said({"tags": ["oil", "gold"]}) == "gold,oil"
    assert said({"b": 1, "a": None}) == '{"a":null,"b":1}'
    assert said(None) is None


def test_figures_for_scripts_hold_every_number_and_a_short_curve() -> None:
    """JSON carries money both exactly and in USD, and at most eleven points, first and last among them."""
    figures = report.figures(made(5, 0.5), seconds=2.0, bar=True)
    tree = figures.as_json()
    assert tree["cost_picousd"] == figures.cost
    assert tree["jobs_per_second"] == 30.0
    assert tree["bar"] == "declared, not yet proved"
    assert 2 <= len(tree["curve"]) <= 11
    assert tree["curve"][0]["escalated"] == figures.curve[0].escalated
    assert tree["curve"][-1]["escalated"] == 1.0
