"""The laws, held to what a world left behind: those of tests/support/laws.py, and some that only a simulation sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from sluiceway.archive.flight import SUSPECT_DEATHS
from sluiceway.core.catalog import Price
from tests.sim.faults import FLOOD
from tests.sim.marks import run_of
from tests.sim.models import truth
from tests.support import laws
from tests.support.core import CHEAP_PRICE, FRONTIER_PRICE
from tests.support.evidence import Outcome, read_outcomes
from tests.support.topics import Seen

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
    _answers(world)
    _money(world, outcomes)
    _floods(world)
    world.note("redone", allowed=world.redo)


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
    """L3: an outcome is of its own job and round, and what it says of it is true."""
    for seen in world.outputs:
        if seen.topic == world.topics.dead_letters:
            _dead_letter(world, seen)
            continue
        body = orjson.loads(seen.value or b"")
        job = body["job_id"]
        if body["round"] != world.rounds.get(job, 0):
            world.breach("L3 one outcome", f"{job} has an outcome of round {body['round']}")
        answered = seen.topic != world.topics.reviews and body["status"] == "answered"
        if answered and body["answer"]["label"] != truth(world.jobs[job]):
            world.breach("L3 one outcome", f"{job} has another job's answer")
        _reason(world, job, body)


_REASONS = {"uncertain": "uncertain", "malformed": "malformed", "declined": "declined"}


def _reason(world: World, job: str, body: dict[str, Any]) -> None:
    """Why it was escalated is what the last cheap model did."""
    cheap = [step for step in body["trail"]["steps"] if step["step"] == "attempt" and step["model"] != "frontier"]
    if body["escalated"] is None or not cheap:
        return
    last = cheap[-1]
    said = world.models.said.get(last["response_id"], "")
    expected = "failed" if last["failure"] else _REASONS.get(said)
    # The next cheap model may be out of service, and is then climbed past without an attempt.
    skipped = body["escalated"] == "failed" and body["task"] == "tag" and last["model"] == "cheap"
    if body["escalated"] != expected and not skipped:
        world.breach("reason", f"{job} was escalated as {body['escalated']} where its model was {said or 'failing'}")


def _dead_letter(world: World, seen: Seen) -> None:
    """Its reason is the true one, and it keeps what its calls cost."""
    run = world.runs[run_of(seen.headers)]
    reason, expected = seen.header("sluiceway.reason"), world.bad.get(run.place, "too_large")
    if reason == "crashes":
        name = run.process.name
        deaths = [one for one in world.runs if one.place == run.place and one.process.name == name]
        if sum(one.process is not run.process and one.process.died < run.at for one in deaths) <= SUSPECT_DEATHS:
            world.breach("reason", f"{run.place} is a dead letter for crashes, and {name} did not die of it often")
    elif reason != expected:
        world.breach("reason", f"{run.place} is a dead letter as {reason}, not {expected}")
    kept = orjson.loads(seen.header("sluiceway.trail") or "[]")
    paid = {response: cost for _, _, cost, response in kept if response}
    models = {entry.response_id: entry for entry in world.models.entries if entry.metered is not None}
    for response, cost in paid.items():
        entry = models[response]
        if entry.metered is None or cost != RATES[entry.model].cost(entry.metered):
            world.breach("L6 money", f"the dead letter of {run.place} says {cost} for {response}")
    for response, made in world.models.made_in.items():
        if made == run.number and response not in paid and response not in world.models.undelivered:
            world.breach("L6 money", f"the dead letter of {run.place} does not tell of {response}")


def _money(world: World, outcomes: list[Outcome]) -> None:
    # A dead letter tells of its attempts in a header: see there.
    done = {run.number for run in world.runs if run.appended and not run.dead}
    lost = {
        response
        for response, run in world.models.made_in.items()
        if run not in done or response in world.models.undelivered
    }
    for what in laws.money(outcomes, world.models.entries, RATES, lost=lost, lost_allowed=len(lost)):
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


RATES = {"cheap": _rates(CHEAP_PRICE), "other": _rates(CHEAP_PRICE), "frontier": _rates(FRONTIER_PRICE)}
