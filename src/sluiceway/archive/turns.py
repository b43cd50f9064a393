"""The log of the local store: what began and what ended, a row for each turn of the event loop that has some to tell.

A row is a JSON array of these, of a job in flight or of a call under way:

    ["n", 0]                                     what is live is told anew: no row before says anything of it
    ["b", number]                                a process takes its first job, which has that number
    ["j", at, group, stage, number, place, ...]  jobs were taken, each from [topic, partition, offset, timestamp]
    ["p", number, ...]                           jobs are published
    ["d", number, ...]                           jobs need no memory any more
    ["l", number]                                jobs from this number on that still run ended with their process
    ["S", at, task, model, call, ...]            calls are made; each is: number, job_id
    ["e", number, ...]                           calls came back
    ["i", at, name, digest, ...]                 jobs called a model: their names and inputs (`archive/inputs.py`)
    ["r", row, ...]                              of the replies that lie with these rows none is needed any more

What is live is held in memory, and told anew from time to time: then rows before that are kept for their replies alone.

In format 6 jobs were taken by ["T", at, group, topic, stage, number, partition, offset, timestamp, ...]. Up to format 5
each job and each call was an array of its own: ["t", number, group, place, stage, at], and ["s", number, job_id, task,
model, at]. In format 4 a place was one text with spaces between, its timestamp in milliseconds, and a published job's
stage was 2; such a text stays one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Protocol

import orjson

from sluiceway.archive.reply import DAMAGED
from sluiceway.archive.tables import Stage
from sluiceway.core.call import Call
from sluiceway.core.job import Job

Place = tuple[str, int, int, float]
Told = tuple[str, str, str, float]
"""A call: the job's id, its task, the model, and when it was told."""


class Flown:
    """A job that was taken: its role's group, where it is from, how far it has come, and its number once it is told.

    It `asked` a model, or is about to. `replies` are the keys of those that are kept for it, `calls` those of which its
    trail alone tells. Once it is `forsaken` it runs no more and is not published: its replies are whosever asks next.
    """

    __slots__ = ("asked", "at", "calls", "forsaken", "group", "known", "number", "place", "replies", "stage")

    def __init__(self, group: str, place: Place, stage: int) -> None:
        self.number = 0
        self.group = group
        self.place = place  # of a job of a former run it may be the text that format 4 had
        self.stage = stage
        self.at = 0.0  # when it was told
        self.asked = self.forsaken = False
        self.replies: tuple[str, ...] = ()
        self.calls: tuple[int, ...] = ()
        self.known: bytes | None = None  # of an earlier run, which published it


class Live:
    """The jobs in flight and the calls under way, by number; a published job's stage says so."""

    def __init__(self) -> None:
        self.jobs: dict[int, Flown] = {}
        self.calls: dict[int, Told] = {}
        self.inputs: list[tuple[float, list[str]]] = []  # by turn: when; a name, its digest, the next name
        self.spent: set[int] = set()  # rows
        self.highest = 0  # of a job's number
        self.first = 0  # the number of the last process's first job

    def read(self, row: bytes) -> None:
        """Takes in what the next row tells. One that is damaged tells nothing from where it is on."""
        with contextlib.suppress(*DAMAGED):
            for item in orjson.loads(row):
                self._read(*item)

    def _read(self, what: str, number: Any, *rest: Any) -> None:
        match what:
            case "n":
                for kind in (self.jobs, self.calls, self.inputs, self.spent):
                    kind.clear()
            case "b":
                self.first = int(number)
            case "j":
                group, stage, *jobs = rest
                for one, place in zip(*[iter(jobs)] * 2, strict=True):
                    self._took(one, group, place, stage, number)
            case "T":
                group, topic, stage, *jobs = rest
                for one, *place in zip(*[iter(jobs)] * 4, strict=True):
                    self._took(one, group, (topic, *place), stage, number)
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
            case "S":
                task, model, *calls = rest
                for one, job_id in zip(*[iter(calls)] * 2, strict=True):
                    self.calls[int(one)] = job_id, task, model, float(number)
            case "s":
                job_id, task, model, at = rest
                self.calls[number] = job_id, task, model, float(at)
            case "e":
                for one in (number, *rest):
                    self.calls.pop(one, None)
            case "i":
                self.inputs.append((float(number), [*map(str, rest)]))
            case "r":
                self.spent.update((number, *rest))

    def _took(self, number: int, group: str, place: Any, stage: int, at: float) -> None:
        if not isinstance(place, str):
            topic, partition, offset, timestamp = place
            place = topic, partition, offset, float(timestamp)
        self.highest = max(self.highest, number)
        job = self.jobs[number] = Flown(group, place, int(stage))
        job.number, job.at = number, float(at)

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
        self.calls = {number: call for number, call in self.calls.items() if call[3] >= before}
        self.inputs = [one for one in self.inputs if one[0] >= before]

    def only(self) -> int | None:
        """The number of the job that ran when the last process died, None where it was not one alone."""
        ran = self._running(self.first)
        return ran[0] if len(ran) == 1 else None

    def told(self) -> bytes:
        """A row that says all of it."""
        calls = sorted(self.calls.items(), key=lambda call: call[1][1:])
        told: list[Sequence[Any]] = [("n", 0), ("b", self.first), *taken(self.jobs.values())]
        for (task, model, at), each in groupby(calls, key=lambda call: call[1][1:]):
            told.append(("S", at, task, model, *chain.from_iterable([(number, call[0]) for number, call in each])))
        told += [("i", at, *each) for at, each in self.inputs]
        return orjson.dumps(told)


def taken(jobs: Iterable[Flown]) -> Iterator[Sequence[Any]]:
    """What the log says of them: those that follow one another share an array as far as they are alike."""
    for alike, each in groupby(jobs, _ALIKE):
        yield "j", *alike, *chain.from_iterable([(job.number, job.place) for job in each])


_ALIKE = attrgetter("at", "group", "stage")


class Made(Protocol):
    """A call that is about to be made; its number is known once it is told."""

    number: int
    job: Job
    call: Call


class Turn:
    """What a turn of the event loop has to tell, as it comes: whoever has some appends it here.

    Put in words it is at the turn's end, all of a kind in one loop: what is done between a job's own steps, each of
    which finds the processor's caches full of something else, takes twice as long.
    """

    def __init__(self, live: Live) -> None:
        self.taken: list[Flown] = []
        self.called: list[Made] = []
        self.seen: list[str] = []  # a job's name, its input's digest, the next job's name
        self.published: list[Flown] = []
        self.answered: list[int] = []  # numbers of calls that came to an end
        self.forgotten: list[Flown] = []  # jobs that need no memory any more
        self.landed = False  # jobs that still run do not count as having died with this process
        self._live = live
        self._first = live.highest + 1  # job of this process
        self._calls = 0

    def __len__(self) -> int:
        kinds = self.taken, self.called, self.seen, self.published, self.answered, self.forgotten
        return sum([len(kind) for kind in kinds]) + self.landed

    def told(self, now: float) -> list[Sequence[Any]]:
        """For the log, in the order in which it is said of one number. From now on that is live, or is no more."""
        live = self._live
        told: list[Sequence[Any]] = []
        if self.taken:
            if live.first != self._first:
                live.first = self._first
                told.append(("b", self._first))
            for number, flown in enumerate(self.taken, live.highest + 1):
                flown.number, flown.at = number, now
                live.jobs[number] = flown
            live.highest += len(self.taken)
            told += taken(self.taken)
        task = model = None
        row: list[Any] = []
        for number, made in enumerate(self.called, self._calls + 1):
            made.number = number
            job, name = made.job, made.call.model.name
            if job.task != task or name != model:
                task, model = job.task, name
                row = ["S", now, task, model]
                told.append(row)
            row += number, job.id
            live.calls[number] = job.id, task, model, now
        self._calls += len(self.called)
        if self.seen:
            told.append(("i", now, *self.seen))
            live.inputs.append((now, self.seen.copy()))
        if self.published:  # of a job that was too old to be kept it says nothing
            told.append(("p", *[job.number for job in self.published]))
        if self.answered:
            told.append(("e", *self.answered))
            for number in self.answered:
                live.calls.pop(number, None)
        if self.forgotten:
            numbers = [job.number for job in self.forgotten]
            told.append(("d", *numbers))
            live.drop(numbers)
        if self.landed:
            told.append(("l", self._first))
            live.land(self._first)
        for kind in (self.taken, self.called, self.seen, self.published, self.answered, self.forgotten):
            kind.clear()
        self.landed = False
        return told
