"""What a world can be put through. Each fault strikes at its instant, and undoes itself or is undone by the healing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import orjson

from sluiceway.core.flood import Flood
from tests.sim.models import Moods
from tests.support.evidence import Published

if TYPE_CHECKING:
    from tests.sim.worker import SimWorker
    from tests.sim.world import World

FLOOD = Flood(run=6, ratio=0.6, window=30)
"""What holds a partition in most worlds."""

Fault = Callable[["World", Random], None]


def _living(world: World) -> list[SimWorker]:
    return [worker for worker in world.workers.values() if not worker.process.dead]


def _one(world: World, dice: Random) -> SimWorker | None:
    living = _living(world)
    return dice.choice(living) if living else None


def kill(world: World, dice: Random) -> None:
    worker = _one(world, dice)
    if worker is not None and world.kill(worker.process.name):
        world.broker.later(dice.choice((0.1, 1.0, 8.0)), world.start, worker.process.name)


def kill_all(world: World, dice: Random) -> None:
    for worker in _living(world):
        world.kill(worker.process.name)
        world.broker.later(dice.choice((0.1, 4.0)), world.start, worker.process.name)


def stop(world: World, dice: Random) -> None:
    """SIGTERM, and a successor; at times while calls hang."""
    if dice.random() < 0.4:
        _mood(hang=0.6)(world, dice)
    worker = _one(world, dice)
    if worker is not None:
        worker.asked.set()


def freeze(world: World, dice: Random) -> None:
    """SIGSTOP for a while: short of the session's end, or long past it."""
    worker = _one(world, dice)
    if worker is None:
        return
    worker.process.frozen = True

    def thaw() -> None:
        world.note("thawed", worker=worker.process.name)
        world.thawed_at = world.loop.time()
        world.loop.thaw(worker.process)

    world.broker.later(dice.choice((0.8, 3.0, 7.5, 14.0)), thaw)


def throw_out(world: World, dice: Random) -> None:
    """The coordinator loses members: they hear of it with their next heartbeat."""
    for name, group in list(world.broker.groups.items()):
        if group.members and dice.random() < 0.7:
            world.broker.leave(name, dice.choice(list(group.members)), "lost")


def revoke(world: World, dice: Random) -> None:
    """A worker joins for a while: two rebalances."""
    name = "w9"
    world.start(name)

    def leave() -> None:
        world.wanted.discard(name)
        worker = world.workers[name]
        if not worker.process.dead:
            worker.asked.set()

    world.broker.later(dice.choice((1.0, 5.0)), leave)


def storm(world: World, dice: Random) -> None:
    """Rebalances, one soon after another."""
    for number in range(4):
        world.broker.later(number * dice.choice((0.3, 1.5)), throw_out, world, dice)


def late_agent(world: World, dice: Random) -> None:
    """Batches lie about between fetch and intake while members lose their epochs."""
    _weather("agent_late", 0.5, 0.9)(world, dice)
    for seconds in (0.3, 1.5):
        world.broker.later(seconds, throw_out, world, dice)


def _weather(field: str, low: float, high: float) -> Fault:
    def change(world: World, dice: Random) -> None:
        weather = world.broker.weather
        usual = getattr(type(weather)(), field)
        setattr(weather, field, dice.uniform(low, high))
        # A healed world has another weather by then.
        world.broker.later(dice.uniform(2.0, 7.0), setattr, weather, field, usual)

    return change


def pause(world: World, dice: Random) -> None:
    """The broker is frozen."""
    world.broker.weather.paused_until = world.loop.time() + dice.choice((0.7, 2.5, 6.0))


def clock_jump(world: World, dice: Random) -> None:
    world.jumped += dice.choice((-7200.0, 7200.0, -1.0, 86_400.0))


def small_metadata(world: World, dice: Random) -> None:
    """The broker takes less commit text than we thought."""
    world.broker.metadata_limit = dice.choice((0, 20, 60))


def marker(world: World, dice: Random) -> None:
    for topic in (*world.topics.jobs, world.topics.escalations):
        for partition in range(len(world.broker.topics[topic])):
            if dice.random() < 0.5:
                world.broker.mark(topic, partition)


def _mood(**moods: float) -> Fault:
    def change(world: World, dice: Random) -> None:
        name = dice.choice(("cheap", "cheap", "other", "frontier"))
        world.models.moods[name] = Moods(**moods)

        def back() -> None:
            if not world.healed:
                world.models.moods[name] = Moods()

        world.broker.later(dice.uniform(2.0, 8.0), back)

    return change


def copies(world: World, dice: Random) -> None:
    world.copying = dice.uniform(0.2, 0.6)
    world.broker.later(6.0, setattr, world, "copying", 0.0)


def burst(world: World, dice: Random) -> None:
    """A publisher's mistake: bad records one after another; at times their partition gets a new owner while held."""
    if dice.random() < 0.5:
        world.broker.later(1.5, throw_out, world, dice)
    topic, partition = world.topics.jobs[0], dice.randrange(4)
    value = b"not a job"
    places = [world.broker.append(topic, partition, None, value, (), world.wall()) for _ in range(30)]
    world.bursts.append((world.loop.time(), places))
    world.bad |= dict.fromkeys(places, "undecodable")
    world.published.extend(Published(None, place) for place in places)


def crasher(world: World, dice: Random) -> None:
    """A job that every process dies of which calls a model for it. Without a store nobody would ever know."""
    if not world.setup.state or dice.random() < 0.5:
        kill(world, dice)
        return
    world.note("job_crash")
    world.ends += 60.0  # it takes eight deaths
    number = len(world.jobs)
    job_id = f"crash{number}"
    world.jobs[job_id] = f"ticket CRASH {number} of world {world.seed}"
    value = orjson.dumps({"id": job_id, "task": "triage", "input": world.jobs[job_id]})
    place = world.broker.append(world.topics.jobs[0], dice.randrange(4), job_id.encode(), value, (), world.wall())
    world.bad[place] = "crashes"
    world.published.append(Published(job_id, place))


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill_all": kill_all,
    "stop": stop,
    "freeze": freeze,
    "throw_out": throw_out,
    "revoke": revoke,
    "storm": storm,
    "late_agent": late_agent,
    "commit_error": _weather("commit_error", 0.3, 1.0),
    "commit_lost": _weather("commit_lost", 0.3, 0.9),
    "produce_error": _weather("produce_error", 0.2, 0.9),
    "produce_lost": _weather("produce_lost", 0.2, 0.8),
    "out_of_step": _weather("out_of_step", 0.1, 0.5),
    "fetch_error": _weather("fetch_error", 0.2, 0.9),
    "offsets_error": _weather("offsets_error", 0.3, 0.9),
    "fetched_again": _weather("refetch", 0.3, 0.9),
    "gap": _weather("gap", 0.2, 0.7),
    "marker": marker,
    "pause": pause,
    "clock_jump": clock_jump,
    "small_metadata": small_metadata,
    "model_fails": _mood(fail=0.9),
    "model_hangs": _mood(hang=0.5),
    "model_overloaded": _mood(overloaded=0.8),
    "model_slow": _mood(slow=0.5),
    "model_malformed": _mood(malformed=0.8),
    "model_uncertain": _mood(uncertain=0.9),
    "copies": copies,
    "burst": burst,
    "crasher": crasher,
}
