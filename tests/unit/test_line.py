"""The line before a model: callers who are cancelled leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from sluiceway.core.catalog import Limits
from sluiceway.core.permit import Allowance, Ended, Ending, Need, Permit, Permits
from sluiceway.models.line import Line


class Clock:
    """Stands still."""

    def now(self) -> float:
        return 1000.0

    async def sleep_until(self, time: float) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("waiting", [300, 3000])
async def test_however_many_are_cancelled_at_once_each_permit_comes_back(waiting: int) -> None:
    """A revoke or a stop cancels all jobs in one turn of the loop: each permit passes through all who are gone."""
    permits = Permits([Allowance(Limits(max_parallel_requests=4), 1000.0)], 1000.0)
    line = Line(permits, Clock())

    async def call() -> None:
        permit = await line.permit(Need("triage", "", 2000.0, 10, 10))
        assert isinstance(permit, Permit)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            line.end(permit, Ended(Ending.IGNORED))

    calls = [asyncio.ensure_future(call()) for _ in range(4 + waiting)]
    await asyncio.sleep(0)
    assert (permits.in_flight, permits.waiting) == (4, waiting)
    for each in calls:
        each.cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    line.close()
    assert {type(each) for each in found} == {asyncio.CancelledError}
    assert (permits.in_flight, permits.waiting) == (0, 0)
