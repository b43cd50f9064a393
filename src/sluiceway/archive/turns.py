"""The log of the local store: what began and what ended, a row for each turn of the event loop that has some to tell.

A row is a JSON array of these, of a job in flight or of a call under way:

    ["b", number]                                a process takes its first job, which has that number
    ["t", number, group, place, stage, at]       a job was taken; where from: [topic, partition, offset, timestamp]
    ["p", number, ...]                           jobs are published
    ["d", number, ...]                           jobs need no memory any more
    ["l", number]                                jobs from this number on that still run ended with their process
    ["s", number, job_id, task, model, at]       a call is made
    ["e", number, ...]                           calls came back

What is live is held in memory, and told again from time to time: all rows before that are of no use then. In format 4
a place was one text with spaces between, its timestamp in milliseconds, and a published job's stage was 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import Any

import orjson

from sluiceway.archive.reply import DAMAGED
from sluiceway.archive.tables import Stage

Place = tuple[str, int, int, float] | str
Job = tuple[str, int, str, Place, int, float]
Call = tuple[str, int, str, str, str, float]


class Live:
    """The jobs in flight and the calls under way, by number, as they were told; which of the jobs are published."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.calls: dict[int, Call] = {}
        self.published: set[int] = set()
        self.highest = 0  # of a job's number
        self.first = 0  # the number of the last process's first job

    def read(self, rows: Iterable[bytes]) -> None:
        """Takes in what `rows` tell, in their order. One that is damaged tells nothing from where it is on."""
        for row in rows:
            with contextlib.suppress(*DAMAGED):
                for item in orjson.loads(row):
                    self._read(*item)

    def _read(self, what: str, number: int, *rest: Any) -> None:
        match what:
            case "b":
                self.first = int(number)
            case "t":
                self._took(number, *rest)
            case "p":
                self.published.update(one for one in (number, *rest) if one in self.jobs)
            case "d":
                self.drop((number, *rest))
            case "l":
                self.land(number)
            case "s":
                job_id, task, model, at = rest
                self.calls[number] = ("s", number, job_id, task, model, float(at))
            case "e":
                for one in (number, *rest):
                    self.calls.pop(one, None)

    def _took(self, number: int, group: str, place: Any, stage: int, at: float) -> None:
        if not isinstance(place, str):
            topic, partition, offset, timestamp = place
            place = topic, partition, offset, float(timestamp)
        self.highest = max(self.highest, number)
        self.jobs[number] = ("t", number, group, place, int(stage), float(at))
        if stage == Stage.PUBLISHED:
            self.published.add(number)

    def drop(self, numbers: Collection[int]) -> None:
        """These jobs need no memory any more."""
        jobs = self.jobs
        for number in numbers:
            jobs.pop(number, None)
        self.published.difference_update(numbers)

    def land(self, first: int) -> None:
        """Jobs from that number on that still run are in flight no more."""
        self.drop([number for number in self.jobs if number >= first and number not in self.published])

    def forget(self, before: float) -> None:
        """What is older than that."""
        self.drop([number for number, job in self.jobs.items() if job[5] < before])
        self.calls = {number: call for number, call in self.calls.items() if call[5] >= before}

    def only(self) -> int | None:
        """The number of the job that ran when the last process died, None where it was not one alone."""
        ran = [number for number in self.jobs if number >= self.first and number not in self.published]
        return ran[0] if len(ran) == 1 else None

    def told(self) -> bytes:
        """A row that says all of it."""
        published = [("p", *self.published)] if self.published else []
        return orjson.dumps([("b", self.first), *self.jobs.values(), *published, *self.calls.values()])
