"""The group's memory of held partitions, and the operator who looks at them and resumes.

A hold outlives its process. From the moment a process knows of one it starts nothing of that partition, and no owner
after it does, until the operator has resumed it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sluiceway.core.stream import Partition
from tests.sim.loop import Process, current

if TYPE_CHECKING:
    from tests.sim.worker import Run
    from tests.sim.world import World

Key = tuple[str, Partition]


class SimHolds:
    """Implements `kafka.role.Holds` for all workers of a world: what is told is known to all at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.held: dict[Key, float] = {}  # since when
        self.floods: set[tuple[str, int]] = set()  # what was ever held
        self._aware: dict[tuple[Process, Partition], float] = {}

    async def known(self, group: str) -> Collection[Partition]:
        await self._world.broker.travel()
        process, now = current(), self._world.loop.time()
        known = [partition for at, partition in self.held if at == group]
        for partition in known:
            self._aware[process, partition] = now
            self._world.note("hold_inherited", worker=process.name, partition=tuple(partition))
        return known

    def flooded(self, group: str, partition: Partition) -> None:
        now = self._world.loop.time()
        self.held.setdefault((group, partition), now)
        self.floods.add((partition.topic, partition.partition))
        self._aware[current(), partition] = now

    def look(self) -> None:
        """The operator's round: what has been held for a while is resumed, in every worker that lives."""
        world = self._world
        now = world.loop.time()
        for (group, partition), since in list(self.held.items()):
            if now - since < (2.0 if world.healed else 6.0):  # a long run of bad records is held every few of them
                continue
            del self.held[group, partition]
            for process, one in list(self._aware):
                if one == partition:
                    del self._aware[process, one]
            world.note("hold_resumed", partition=tuple(partition))
            for worker in world.workers.values():
                for consumer in worker.consumers:
                    if not worker.process.dead and consumer.settings.group == group:
                        worker.context.run(consumer.resume, partition)

    def judge_start(self, run: Run) -> None:
        """A job of a partition that its process knows to be held has begun: was it let?"""
        since = self._aware.get((run.process, Partition(run.place.topic, run.place.partition)))
        if since is not None and self._world.loop.time() > since:
            self._world.breach("flood", f"{run.process.name} began {run.place}, which it knew to be held")
