"""The rows that a run can be asked for, by the names that --only takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.faults import brokers, clocks, endpoints, inputs, kills, orders, outputs, soak, stops, storms
from tests.faults.finding import Finding
from tests.faults.stage import Stage

Row = Callable[[Stage], Awaitable[list[Finding]]]

ROWS: dict[str, Row] = {
    "1": kills.killed,
    "1-stock": kills.stock_killed,
    "1-random": kills.killed_at_random,
    "1-points": kills.killed_at_points,
    "2": storms.drained_storm,
    "3": brokers.restarted,
    "4-freeze": brokers.frozen,
    "4-proxy": brokers.cut_off,
    "5": endpoints.hung,
    "5-endpoint": endpoints.hung_endpoint,
    "6": endpoints.stormed,
    "7": endpoints.broken,
    "8": inputs.poisoned,
    "9": clocks.jumped,
    "10": inputs.published_again,
    "13": stops.drained,
    "13-twice": stops.stopped_twice,
    "17-large": outputs.too_large,
    "17-missing": outputs.missing,
    "17-forbidden": outputs.forbidden,
    "18": soak.soaked,
    "order": orders.by_key,
}


def storm(jobs: int, partitions: int, workers: int, restarts: int, minutes: float) -> Row:
    """The great storm at a size of one's own."""

    async def row(stage: Stage) -> list[Finding]:
        return await storms.great_storm(stage, jobs, partitions, workers, restarts, minutes)

    return row
