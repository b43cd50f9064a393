"""The worker's stop: what is acked while it stops is known after it, and nothing holds it beyond its budget."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from tests.sim.loop import VirtualLoop
from tests.support.stores import a_record, a_store

from sluiceway.archive.flight import StoreFlight
from sluiceway.core.cascade import Role
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import read_connection
from sluiceway.worker import STOP_BUDGET, WorkOptions, _Worker


def a_worker(budget: float = STOP_BUDGET) -> _Worker:
    return _Worker(WorkOptions(Path("policy.yaml"), read_connection("broker:9092", (), None, {}), stop_budget=budget))


class Undrained:
    """A role that leaves a job unsettled."""

    async def stop(self, _budget: float) -> bool:
        return False


async def test_an_ack_that_comes_while_the_publisher_stops_is_remembered(tmp_path: Path) -> None:
    """Its job was left running by the drain, and is not published again by the next process."""
    store = a_store(tmp_path)
    flight = StoreFlight(store, "g")
    flight.take(a_record(1), alone=False)
    flight.take(a_record(2), alone=False)
    store.flush()

    class Acking:
        async def stop(self, _budget: float) -> bool:
            flight.publish(a_record(1))
            return True

    worker = a_worker()
    worker._store = store
    worker._consumers[Role.JOBS] = cast(RoleConsumer, Undrained())
    assert await worker._stop(cast(Publisher, Acking()), (), ()) == (False, True)
    store.close()
    after = a_store(tmp_path)
    try:
        flight = StoreFlight(after, "g")
        assert flight.was_published(a_record(1))
        assert not flight.was_published(a_record(2))
    finally:
        after.close()


class Hung:
    """A part that takes no notice of its budget, nor of being cancelled."""

    def __init__(self) -> None:
        self.given: list[float] = []

    async def stop(self, budget: float) -> bool:
        self.given.append(budget)
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize("budget", [STOP_BUDGET, 8.0, 1.0])
def test_the_parts_of_a_stop_fit_its_budget_together(budget: float) -> None:
    """Even if all of them hang, each of them with its time, and what hangs is not taken for ended."""
    loop, hung = VirtualLoop(), Hung()

    async def stop() -> tuple[tuple[bool, bool], float]:
        worker = a_worker(budget)
        worker._consumers = cast(dict[Role, RoleConsumer], dict.fromkeys(Role, hung))
        began = loop.time()
        found = await worker._stop(cast(Publisher, hung), [hung.stop, hung.stop], [hung.stop, hung.stop])
        return found, loop.time() - began

    found, took = loop.run(cast(Any, stop()))
    assert found == (False, False)
    assert took <= budget
    assert len(hung.given) == len(Role) + 5
    assert all(0 < given < budget for given in hung.given)
