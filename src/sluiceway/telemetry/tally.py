"""Tallies: what every job counts, kept in plain dicts and added to Prometheus's counters when somebody looks.

A counter of Prometheus checks itself and takes a lock each time, and each job counts on a dozen of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Tally(dict[Labels, int]):
    """What was counted since somebody looked, by the labels of one counter; `scale`: what that is worth there."""

    def __init__(self, counter: Counter, scale: Callable[[int], float] = float) -> None:
        super().__init__()
        self._counter = counter
        self._scale = scale
        self._series: dict[Labels, Counter] = {}

    def __missing__(self, labels: Labels) -> int:
        self._series[labels] = self._counter.labels(*labels)  # the series begins now, whoever looks when
        return 0

    def carry(self) -> None:
        """Adds it to the counter."""
        for labels, series in self._series.items():
            series.inc(self._scale(self[labels]))
            self[labels] = 0


class Tallies(Collector):
    """The tallies of one registry, which carries them whenever it is read. To be made before its metrics are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tallies: list[Tally] = []
        registry.register(self)  # a registry asks its collectors in the order they came

    def of(self, counter: Counter, scale: Callable[[int], float] = float) -> Tally:
        made = Tally(counter, scale)
        self._tallies.append(made)
        return made

    def describe(self) -> Iterable[Metric]:
        """Nothing: it has no series of its own."""
        return ()

    def collect(self) -> Iterable[Metric]:
        for tally in self._tallies:
            tally.carry()
        return ()
