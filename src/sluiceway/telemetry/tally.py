"""Tallies: what every job counts, kept in plain dicts and shown to Prometheus when somebody looks.

A metric of Prometheus checks itself and takes a lock each time, and each job counts on a dozen of them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

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


class _Series:
    __slots__ = ("began", "counts", "total")

    def __init__(self, buckets: int) -> None:
        self.began = time.time()
        self.counts = [0] * buckets
        self.total = 0.0


class Distribution(Collector):
    """A histogram, to the letter what Prometheus's own shows. `bounds` of its buckets, the highest one left out."""

    def __init__(
        self, name: str, documentation: str, labels: Labels, *, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._labelnames = name, documentation, labels
        self._bounds = tuple(bounds)
        self._words = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]  # it has no types
        self._series: dict[Labels, _Series] = {}
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self._words))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, series in self._series.items():
            reached = map(float, accumulate(series.counts))
            family.add_metric(labels, list(zip(self._words, reached, strict=True)), series.total)
            names = dict(zip(self._labelnames, labels, strict=True))
            family.add_sample(f"{self._name}_created", names, series.began)
        return [family]
