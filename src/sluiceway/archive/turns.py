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
from collections.abc import Iterable
from math import inf
from typing import Any

import orjson

from sluiceway.archive.reply import DAMAGED
from sluiceway.archive.tables import Stage

Place = tuple[str, int, int, float]
Call = tuple[str, int, str, str, str, float]


class Flown:
    """A job that was taken: its number, its role's group, where it is from, and how far it has come.

    It `asked` a model, or is about to. `replies` are the keys of those that are kept for it, `calls` those of which its
    trail alone tells.
    """

    __slots__ = ("asked", "at", "calls", "group", "known", "number", "place", "replies", "stage")

    def __init__(self, number: int, group: str, place: Place, stage: int, at: float = inf) -> None:
        self.number = number
        self.group = group
        self.place = place  # of a job of a former run it may be the text that format 4 had
        self.stage = stage
        self.at = at  # when that was told, inf before
        self.asked = False
        self.replies: tuple[str, ...] = ()
        self.calls: tuple[int, ...] = ()
        self.known: bytes | None = None  # of an earlier run, which published it


class Live:
    """The jobs in flight and the calls under way, by number; a published job's stage says so."""

    def __init__(self) -> None:
        self.jobs: dict[int, Flown] = {}
        self.calls: dict[int, Call] = {}
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
                for one in (number, *rest):
                    if one in self.jobs:
                        self.jobs[one].stage = Stage.PUBLISHED
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
        self.jobs[number] = Flown(number, group, place, int(stage), float(at))

    def drop(self, numbers: Iterable[int]) -> None:
        """These jobs need no memory any more."""
        jobs = self.jobs
        for number in numbers:
            jobs.pop(number, None)

    def land(self, first: int) -> None:
        """Jobs from that number on that still run are in flight no more."""
        self.drop(self._running(first))

    def _running(self, first: int) -> list[int]:
        """Jobs from that number on that are not published."""
        return [number for number, job in self.jobs.items() if number >= first and job.stage != Stage.PUBLISHED]

    def forget(self, before: float) -> None:
        """What is older than that."""
        self.drop([number for number, job in self.jobs.items() if job.at < before])
        self.calls = {number: call for number, call in self.calls.items() if call[5] >= before}

    def only(self) -> int | None:
        """The number of the job that ran when the last process died, None where it was not one alone."""
        ran = self._running(self.first)
        return ran[0] if len(ran) == 1 else None

    def told(self) -> bytes:
        """A row that says all of it."""
        jobs = [("t", job.number, job.group, job.place, job.stage, job.at) for job in self.jobs.values()]
        return orjson.dumps([("b", self.first), *[job for job in jobs if job[-1] < inf], *self.calls.values()])
