"""Tallies: Prometheus shows at each look exactly what was counted by then."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from sluiceway.core import ledger
from sluiceway.telemetry.tally import Distribution, Tallies, Tally


def _made(scaled: bool = False) -> tuple[CollectorRegistry, Tally]:
    registry = CollectorRegistry()
    tallies = Tallies(registry)
    counter = Counter("eggs", "Eggs.", ("basket",), registry=registry)
    return registry, tallies.of(counter, ledger.usd) if scaled else tallies.of(counter)


def test_each_look_shows_what_was_counted_by_then() -> None:
    """Nothing is counted twice, and nothing waits for a second look."""
    registry, tally = _made()
    for count in range(1, 4):
        tally["red",] += 2
        tally["blue",] += 1
        assert registry.get_sample_value("eggs_total", {"basket": "red"}) == 2 * count
        assert f'eggs_total{{basket="blue"}} {count}.0\n' in generate_latest(registry).decode()
    assert registry.get_sample_value("eggs_total", {"basket": "red"}) == 6


def test_a_series_begins_with_its_first_count() -> None:
    """Even if that is nothing, as the cost of a free call is."""
    registry, tally = _made()
    assert registry.get_sample_value("eggs_total", {"basket": "red"}) is None
    tally["red",] += 0
    assert registry.get_sample_value("eggs_total", {"basket": "red"}) == 0


def test_money_is_summed_in_whole_pico_dollars() -> None:
    """A sum of many small amounts is not off by their rounding."""
    registry, tally = _made(scaled=True)
    for _ in range(100_000):
        tally["red",] += 100_000
    assert registry.get_sample_value("eggs_total", {"basket": "red"}) == 0.01


@pytest.mark.parametrize("values", [[], [0.0, 0.5, 1.0, 1.5, 2.0, 100.0], [0.1] * 10 + [1e-9]])
def test_a_distribution_shows_what_a_histogram_would(values: list[float]) -> None:
    """Letter for letter, values on a bound included, but for when each began."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("eggs_kg", "Weights.", ("basket", "hen"), bounds=(0.5, 1, 2_000_000), registry=ours)
    histogram = Histogram("eggs_kg", "Weights.", ("basket", "hen"), buckets=(0.5, 1, 2_000_000), registry=theirs)
    for number, value in enumerate(values):
        labels = ("red", str(number % 2))
        distribution.observe(labels, value)
        histogram.labels(*labels).observe(value)
    shown, expected = (re.sub(r"(_created{.*}) .*", r"\1", generate_latest(each).decode()) for each in (ours, theirs))
    assert shown == expected


def test_a_name_is_taken_once() -> None:
    """A distribution's series are its own, as those of every metric in the registry."""
    registry = CollectorRegistry()
    Distribution("eggs_kg", "Weights.", ("basket",), bounds=(1,), registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("eggs_kg", "Weights.", registry=registry)
