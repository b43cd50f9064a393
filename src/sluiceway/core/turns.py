"""Which jobs start now: partitions take turns, and each fills no more than its share of the slots."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluiceway.core.alone import Alone
    from sluiceway.core.held import Held
    from sluiceway.core.queue import Taken


def jobs_in_turn(partitions: Collection[Held], room: int, share: int, now: float, alone: Alone) -> list[Taken]:
    """At most `room` jobs, which run from now on; `share` is how many slots one partition may have.

    One that is to run alone is put with those that wait in `alone`, and nothing more is started then.
    """
    jobs: list[Taken] = []
    while room > 0 and not alone.waiting:
        ready = [held for held in partitions if not held.reasons and held.active < share and held.queue.has(now)]
        if not ready:
            break
        ready.sort(key=attrgetter("active"))  # whoever has least is first where room is for one
        portion = max(1, room // len(ready))
        found = 0
        for held in ready:
            left = share - held.active
            popped = held.queue.pop(min(portion, room, left), now, share, left)
            found += len(popped)
            for job in popped:
                if job.alone:
                    alone.waiting.append(job)
                else:
                    jobs.append(job)
                    held.running += 1
                    room -= 1
        if not found:
            break  # what is free is kept for tenants that have few
    return jobs
