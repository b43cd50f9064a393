"""A bound in time: as `asyncio.timeout` keeps it, beside which each law is held to both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sluiceway.models.deadlines import Deadlines

Bound = Callable[[float, Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]


async def _ours(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    return await Deadlines().within(seconds, work)


async def _asyncio(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await work


@pytest.fixture(params=[_ours, _asyncio], ids=["ours", "asyncio"])
def bound(request: pytest.FixtureRequest) -> Bound:
    made: Bound = request.param
    return made


def _cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_what_comes_in_time_is_given(bound: Bound) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "came"

    assert await bound(60, work()) == "came"


async def test_what_takes_longer_is_cancelled(bound: Bound) -> None:
    """The work sees the cancellation, its caller a TimeoutError, and the task is not left cancelled."""
    seen = []

    async def work() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        await bound(0.001, work())
    assert (seen, _cancelling()) == (["cancelled"], 0)
    await asyncio.sleep(0)


async def test_a_cancellation_from_outside_stays_one(bound: Bound) -> None:
    task = asyncio.ensure_future(bound(60, _for_ever()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_is_a_cancellation(bound: Bound) -> None:
    """Who was told to stop must not take its own bound for the reason and go on."""
    stopping = asyncio.Event()

    async def work() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            task.cancel()  # from outside, before the first one has been seen to its end
            stopping.set()
            raise

    task = asyncio.ensure_future(bound(0.001, work()))
    await stopping.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_that_ends_in_spite_of_it_has_ended(bound: Bound) -> None:
    """Its result counts, and the cancellation that it swallowed haunts nobody."""

    async def work() -> str:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            return "came all the same"
        raise AssertionError

    assert await bound(0.001, work()) == "came all the same"
    assert _cancelling() == 0


async def test_an_error_of_the_work_is_raised(bound: Bound) -> None:
    async def work() -> None:
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        await bound(60, work())


async def test_bounds_stand_within_bounds(bound: Bound) -> None:
    """The outer one ends the inner one's work, and only the outer one says so."""
    inner = []

    async def work() -> None:
        try:
            await bound(60, _for_ever())
        except TimeoutError:
            inner.append("inner")
            raise

    with pytest.raises(TimeoutError):
        await bound(0.001, work())
    assert (inner, _cancelling()) == ([], 0)


async def test_each_of_many_has_its_own_time() -> None:
    """One timer serves all: the shorter end first, whichever began first, and what came in time is left alone."""
    deadlines, ended = Deadlines(), []

    async def one(name: str, seconds: float, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await deadlines.within(seconds, work)
            ended.append(f"{name} came")
        except TimeoutError:
            ended.append(f"{name} late")

    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def coming() -> None:
        await came

    kept = asyncio.ensure_future(one("kept", 60, coming()))
    late = [
        asyncio.ensure_future(one("long", 0.05, _for_ever())),
        asyncio.ensure_future(one("short", 0.001, _for_ever())),
    ]
    await asyncio.gather(*late)
    came.set_result(None)
    await kept
    assert ended == ["short late", "long late", "kept came"]


async def test_what_is_late_together_ends_in_the_order_in_which_it_began() -> None:
    """So that a simulated world is the same in each run."""
    deadlines, ended = Deadlines(), []

    async def one(number: int) -> None:
        try:
            await deadlines.within(0.001, _for_ever())
        except TimeoutError:
            ended.append(number)

    await asyncio.gather(*(one(number) for number in range(50)))
    assert ended == list(range(50))
