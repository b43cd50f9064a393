"""The reader of outcomes, on both brokers: each round's outcome once, across its own restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from tests.support.topics import Address, create_topics, publish

from sluiceway.core.outcome import Result, Review, ReviewReason, Status, encode, outcome_id
from sluiceway.core.trail import Trail
from sluiceway.kafka import outcomes as outcomes_module
from sluiceway.kafka.outcomes import outcomes

_TRAIL = Trail("o", 0.0, 0.0)
_QUICK = ("session.timeout.ms=6000", "rebalance.timeout.ms=6000")


def result(job: str, at: float = 0.0) -> bytes:
    return encode(Result(outcome_id(job, 0), job, 0, "t", Status.ANSWERED, "p", at, _TRAIL, 0, 0.0))


def review(job: str) -> bytes:
    reason = ReviewReason.UNSETTLED
    return encode(Review(outcome_id(job, 0), job, 0, "t", reason, "p", 0.0, _TRAIL, 0, 0.0, {"id": job}))


@pytest.mark.slow_on_embedded
async def test_duplicates_are_dropped_also_after_a_restart(any_kafka: Address, prefix: str) -> None:
    """What was handled never comes again, though its duplicates do; only what the loop was busy with is repeated."""
    results, reviews = f"{prefix}results", f"{prefix}reviews"
    await create_topics(any_kafka, {results: 1, reviews: 1})

    async def read_to(*wanted: tuple[str, str], final: bool = False) -> list[tuple[str, str]]:
        """What comes until all of `wanted` has come."""
        found: list[tuple[str, str]] = []
        group = f"{prefix}final" if final else f"{prefix}all"
        reader = outcomes(any_kafka, group=group, results=(results,), reviews=reviews, final=final, settings=_QUICK)
        async with aclosing(reader), asyncio.timeout(60):
            async for outcome in reader:
                found.append((type(outcome).__name__, outcome.job_id))
                if set(wanted) <= set(found):
                    break
        return found

    a, b, c, d = (("Result", job) for job in "abcd")
    await publish(any_kafka, results, [result("a"), result("a", 1.0), result("b")])
    assert await read_to(b) == [a, b]
    await publish(any_kafka, results, [result("a", 2.0), result("b", 2.0), result("c")])
    assert await read_to(c) == [b, c]  # the loop was busy with b
    await publish(any_kafka, reviews, [review("d"), review("d")])
    assert sorted(await read_to(c, ("Review", "d"))) == [c, ("Review", "d")]
    await publish(any_kafka, results, [result("d")])
    fourth = await read_to(d)
    assert fourth[-1] == d
    assert set(fourth) <= {c, d, ("Review", "d")}
    assert len(set(fourth)) == len(fourth)
    assert await read_to(d, final=True) == [a, b, c, d]


@pytest.mark.slow_on_embedded
async def test_a_reader_that_joins_repeats_nothing(
    any_kafka: Address, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one has handled it commits as its partitions go, though its next commit is an hour away."""
    monkeypatch.setattr(outcomes_module, "_COMMIT", 3600.0)
    results, reviews = f"{prefix}results", f"{prefix}reviews"
    await create_topics(any_kafka, {results: 2, reviews: 2})
    found: list[tuple[str, str]] = []
    news = asyncio.Event()

    async def read(name: str) -> None:
        settings = (*_QUICK, "heartbeat.interval.ms=500")
        reader = outcomes(any_kafka, group=f"{prefix}g", results=(results,), reviews=reviews, settings=settings)
        async with aclosing(reader):
            async for outcome in reader:
                found.append((name, outcome.job_id))
                news.set()

    async def until(wanted: Callable[[], bool]) -> None:
        while not wanted():
            news.clear()
            await news.wait()

    readers = [asyncio.create_task(read("first"))]
    try:
        async with asyncio.timeout(90):
            jobs = [f"a{number}" for number in range(20)]
            await publish(any_kafka, results, [result(job) for job in jobs])
            await until(lambda: len(found) >= len(jobs))
            readers.append(asyncio.create_task(read("second")))
            while "second" not in dict(found):
                jobs.append(f"b{len(jobs)}")
                await publish(any_kafka, results, [result(jobs[-1])])
                await until(lambda: set(jobs) <= {job for _, job in found})
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    assert sorted(job for _, job in found) == sorted(jobs)
