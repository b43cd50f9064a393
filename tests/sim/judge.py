"""The laws, held to what a world left behind: those of tests/support/laws.py, and some that only a simulation sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from sluiceway.core.catalog import Price
from tests.sim.faults import FLOOD
from tests.sim.models import truth
from tests.support import laws
from tests.support.core import CHEAP_PRICE, FRONTIER_PRICE
from tests.support.evidence import Outcome, read_outcomes

if TYPE_CHECKING:
    from tests.sim.world import World


def judge(world: World) -> None:
    """Tells the world which of its laws were broken, by ids."""
    outcomes = read_outcomes(world.outputs)
    world.disturbance.kills, world.disturbance.in_flight = 1, world.redo
    for law, found in {
        "L1 no loss": laws.no_loss(world.published, outcomes),
        "L2 no invention": laws.no_invention(world.published, outcomes),
        "L3 one outcome": laws.one_outcome(
            outcomes,
            world.disturbance,
            jobs=len(world.jobs),
            published_again=len(world.published) - len({p.job_id or p.place for p in world.published}) + world.retried,
            may_differ=len(outcomes),
        ),
        "L4 no early commit": laws.no_early_commit(world.published, world.samples),
        "L8 progress": laws.progress(world.lags, world.ends),
    }.items():
        for what in found:
            world.breach(law, what)
    _retries(world)
    _answers(world)
    _money(world, outcomes)
    _floods(world)
    world.note("redone", allowed=world.redo)


def _retries(world: World) -> None:
    """A record goes out again only where the broker left its first copy in doubt."""
    doubts = sum(world.counts[kind] for kind in ("produce_ack_lost", "produce_timeout", "produce_out_of_step"))
    if world.retried and not doubts:
        world.breach("L3 one outcome", f"{world.retried} records were sent again after their ack")


def _floods(world: World) -> None:
    """Bad records that one owner met one after another have held their partition."""
    if world.setup.limits.flood is not FLOOD:
        return
    for since, places in world.bursts:
        topic, partition, _ = places[0]
        until = max(world.answers.get(place, (1e9, None))[0] for place in places)
        changed = any(since - 3.0 < at < until for at in world.rebalanced)
        if not changed and (topic, partition) not in world.holds.floods:
            world.breach("flood", f"{len(places)} bad records at {places[0]} did not hold their partition")


def _answers(world: World) -> None:
    """L3: an accepted answer is the one of its own job."""
    for seen in world.outputs:
        if seen.topic in world.topics.results.values():
            body = orjson.loads(seen.value or b"")
            if body["status"] == "answered" and body["answer"]["label"] != truth(world.jobs[body["job_id"]]):
                world.breach("L3 one outcome", f"{body['job_id']} has another job's answer")


def _money(world: World, outcomes: list[Outcome]) -> None:
    rates = {"cheap": _rates(CHEAP_PRICE), "other": _rates(CHEAP_PRICE), "frontier": _rates(FRONTIER_PRICE)}
    # A dead letter tells of its attempts in a header, without what they cost.
    done = {run.number for run in world.runs if run.appended and not run.dead}
    lost = {
        response
        for response, run in world.models.made_in.items()
        if run not in done or response in world.models.undelivered
    }
    for what in laws.money(outcomes, world.models.entries, rates, lost=lost, lost_allowed=len(lost)):
        world.breach("L6 money", what)
    for what in world.twice:
        world.breach("L6 money", f"paid twice for {what}")
    for what in world.models.unrecorded:
        world.breach("L6 money", f"{what} was called and is not on record")
    _amplification(world)


def _amplification(world: World) -> None:
    """L7 in every stretch of time, by process and model: second tries come from the retry budget alone.

    It holds ten at least, else a fifth of what is in flight; it earns a fifth of each first call, and a tenth of what
    it may hold each second.
    """
    for line in world.models.lines.values():
        most = max(10.0, 0.2 * line.most)
        again = [number for number, (_, retry) in enumerate(line.made) if retry]
        for place, start in enumerate(again):
            for count, end in enumerate(again[place:], 1):
                firsts = end - start + 1 - count
                span = line.made[end][0] - line.made[start][0]
                earned = most + 1 + most * 0.1 * span
                if count > earned + 0.2 * firsts:
                    for what in laws.amplification(count + firsts, firsts, int(earned)):
                        world.breach("L7 amplification", f"{line.who}, {span:.1f} s: {what}")
                    return


def _rates(price: Price) -> laws.Rates:
    write = price.cache_write_mtok
    return laws.Rates.of(
        float(price.input_mtok),
        float(price.cache_read_mtok if price.cache_read_mtok is not None else price.input_mtok),
        float(price.output_mtok),
        None if write is None else float(write),
    )
