"""A world's jobs: published in bursts, some of them bad, some of them twice."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import orjson

from sluiceway.core.held import Order
from tests.support.evidence import Published

if TYPE_CHECKING:
    from tests.sim.world import World

JOBS = 200  # at least
MAX_BYTES = 6000  # of a record, by the task's limit and by the escalations topic


async def feed(world: World) -> None:
    """Publishes the world's jobs in bursts, some of them bad, some of them twice."""
    dice = world.dice["jobs"]
    count = JOBS + dice.randint(0, 20)
    topic = world.topics.jobs[0]
    keys = [b"a", b"b", b"c", b"d", b"e"] if world.setup.limits.order is Order.KEY else []
    number = 0
    while number < count:
        for _ in range(dice.choice((1, 5, 20, 40))):
            if number >= count:
                break
            job_id, value = _job(world, dice, number)
            number += 1
            copies = 1
            if dice.random() < world.copying:
                copies = 2
                world.note("published_twice")
            for _ in range(copies):
                key = dice.choice(keys) if keys else dice.choice((None, job_id.encode()))
                place = world.broker.append(topic, dice.randrange(4), key, value, (), world.wall())
                if value is None:
                    world.answered.add(place)
                else:
                    if job_id not in world.jobs:
                        world.bad[place] = job_id.split("-")[0]
                    world.published.append(Published(job_id if job_id in world.jobs else None, place))
        await asyncio.sleep(dice.random() * 1.6)


def _job(world: World, dice: Random, number: int) -> tuple[str, bytes | None]:
    job_id = f"j{number}"
    throw = dice.random()
    text = f"ticket {number} of world {world.seed}"
    if throw < 0.004:
        text += " POISON"
        world.note("job_poison")
    elif throw < 0.008:
        text += " SILENCE"
        world.note("job_silence")
    elif throw < 0.016:
        text += " x" * 2900  # fits the task's limit, and not the escalations topic once it has a trail
        world.note("job_big")
    elif throw < 0.02:
        world.note("job_undecodable")
        return f"undecodable-{number}", b'{"id": "j' + str(number).encode()
    elif throw < 0.024:
        world.note("job_unknown_task")
        job_id = f"unknown_task-{number}"
        return job_id, orjson.dumps({"id": job_id, "task": "nobody", "input": "?"})
    elif throw < 0.028:
        world.note("job_too_large")
        job_id = f"too_large-{number}"
        return job_id, orjson.dumps({"id": job_id, "task": "triage", "input": "y" * MAX_BYTES})
    elif throw < 0.034:
        world.note("job_tombstone")
        return f"none-{number}", None
    job: dict[str, object] = {"id": job_id, "task": dice.choice(("triage", "triage", "tag")), "input": text}
    tenant = dice.choice((None, None, "acme", "globex"))
    if tenant is not None:
        job["tenant"] = tenant
    if dice.random() < 0.05:
        job["round"] = world.rounds[job_id] = dice.randint(1, 3)
    world.jobs[job_id] = text
    return job_id, orjson.dumps(job)
