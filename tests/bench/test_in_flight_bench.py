"""The in-flight bench runs to its end, with few jobs; what it finds is printed, and holds nothing to it."""

from __future__ import annotations

import pytest

from tests.bench.in_flight import judged
from tests.bench.test_stream_benches import run


@pytest.mark.slow
@pytest.mark.usefixtures("apache_kafka")
def test_the_in_flight_bench_counts_results_and_weighs_the_worker() -> None:
    """From topic to topic, and beside it bare aiohttp on the same server."""
    found = run("in_flight", "--seconds", "3", "--in-flight", "50")
    assert found["little_per_s"] == 50
    assert 0 < found["jobs_per_s"] < 60
    assert min(found["aiohttp_per_s"]) > 0
    assert found["connections"] > 25
    assert found["peak_rss"] >= found["rss"] > 10_000_000
    assert len(found["laws"]) == 2


def test_the_share_is_of_what_is_possible_be_it_by_littles_law_or_by_the_machine() -> None:
    """And neither a slow worker nor a heavy one passes."""
    worker = {"jobs_per_s": 95.0, "peak_rss": 399_000_000}
    assert judged(worker, [120.0, 120.0], 100)["share"] == 0.95
    assert judged(worker, [80.0, 120.0], 100)["held"]
    assert judged(worker, [40.0, 60.0], 100)["share"] == 1.9
    assert not judged({**worker, "jobs_per_s": 94.0}, [120.0, 120.0], 100)["held"]
    assert not judged({**worker, "peak_rss": 400_000_000}, [120.0, 120.0], 100)["held"]
