"""The log of the local store: what began and what ended, a row for each turn of the event loop that has some to tell.

A row is a JSON array of these, of a job in flight or of a call under way:

    ["t", number, group, place, stage, at]       a job was taken; its stage changes with ["p", number]: it is published
    ["d", number, ...]                           jobs need no memory any more
    ["l", number]                                jobs from this number on that still run ended with their process
    ["s", number, job_id, task, model, at]       a call is made
    ["e", number, ...]                           calls came back

What is live is held in memory, and told again from time to time: all rows before that are of no use then.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from sluiceway.archive.tables import Stage

Job = tuple[str, int, str, str, int, float]
Call = tuple[str, int, str, str, str, float]


class Live:
    """The jobs in flight and the calls under way, by number, as they were told."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.calls: dict[int, Call] = {}
        self.highest = 0  # of a job's number

    def read(self, rows: Iterable[bytes]) -> None:
        """Takes in what `rows` tell, in their order."""
        for row in rows:
            for what, number, *rest in orjson.loads(row):
                match what:
                    case "t":
                        self.jobs[number] = (what, number, *rest)
                        self.highest = max(self.highest, number)
                    case "p":
                        if number in self.jobs:
                            self.jobs[number] = published(self.jobs[number])
                    case "d":
                        for one in (number, *rest):
                            self.jobs.pop(one, None)
                    case "l":
                        self.land(number)
                    case "s":
                        self.calls[number] = (what, number, *rest)
                    case "e":
                        for one in (number, *rest):
                            self.calls.pop(one, None)

    def land(self, first: int) -> None:
        """Jobs from that number on that still run are in flight no more."""
        self.jobs = {number: job for number, job in self.jobs.items() if number < first or job[4] == Stage.PUBLISHED}

    def forget(self, before: float) -> None:
        """What is older than that."""
        self.jobs = {number: job for number, job in self.jobs.items() if job[5] >= before}
        self.calls = {number: call for number, call in self.calls.items() if call[5] >= before}

    def told(self) -> bytes:
        """A row that says all of it."""
        return orjson.dumps([*self.jobs.values(), *self.calls.values()])


def published(job: Job) -> Job:
    what, number, group, place, _, at = job
    return what, number, group, place, int(Stage.PUBLISHED), at
