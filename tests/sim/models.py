"""Simulated models behind the real pool: they delay, doubt, fail, hang and talk nonsense, by the world's dice.

Each call is journalled with what it is billed before it is answered, as a fake server's would be. What a model says of
a job is a function of the job's text, so that every accepted answer can be held to the truth.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from sluiceway.core.allowance import Allowance
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.permit import Permits
from sluiceway.core.policy import Policy
from sluiceway.models.line import Line
from sluiceway.models.pool import Pool, Served
from sluiceway.models.transport import Transport
from sluiceway.ports import Clock
from tests.sim.broker import Note
from tests.sim.loop import Process, current
from tests.support.core import LABELS
from tests.support.fake_journal import JournalEntry, Metered


class Begun(NamedTuple):
    """A run of a job's work, by its number and when it began."""

    number: int
    at: float


NOBODY = Begun(0, 0.0)
RUN: ContextVar[Begun] = ContextVar("run", default=NOBODY)  # in which a call is made

OnRecord = Callable[[Call], bool]
"""Whether the store has it on file that the call is made."""


class Bytes:
    """A tokenizer whose tokens are the bytes of a text in ASCII: exact, and made in one step."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("ascii")


def truth(text: str) -> str:
    """The right label of a job."""
    return LABELS[zlib.crc32(text.encode()) % len(LABELS)]


@dataclass(slots=True)
class Moods:
    """What is likely of a call, each a probability."""

    fail: float = 0.02
    overloaded: float = 0.01
    hang: float = 0.004
    slow: float = 0.01
    malformed: float = 0.02
    uncertain: float = 0.12
    declined: float = 0.01
    invalid: float = 0.002


@dataclass(slots=True)
class Calls:
    """What one process asked of one model: when, and whether that was a second try.

    It is one where this run has called there before, or where the job had failed there before this run began. A copy of
    a job that stands in line while the other copy fails makes a first try of its own.
    """

    who: str
    made: list[tuple[float, bool]] = field(default_factory=list)
    failed: dict[str, float] = field(default_factory=dict)  # job -> since when
    runs: set[int] = field(default_factory=set)
    under_way: int = 0
    most: int = 0


class SimModels:
    """All endpoints of a world. `entries` by response id or number; `undelivered`: billed, and the reply was lost."""

    def __init__(self, dice: Random, note: Note) -> None:
        self.dice = dice
        self.note = note
        self.moods: dict[str, Moods] = {}
        self.entries: list[JournalEntry] = []
        self.undelivered: set[str] = set()
        self.made_in: dict[str, int] = {}  # response id -> run
        self.lines: dict[tuple[Process, str], Calls] = {}  # by process and model
        self.unrecorded: list[str] = []
        self.crash: Callable[[Process], None] = lambda _: None
        self.said: dict[str, str] = {}  # response id -> in which mood
        self.paid: defaultdict[Process, list[tuple[str, Metered]]] = defaultdict(list)  # replies that got there

    async def answer(self, call: Call, clock: Clock, on_record: OnRecord) -> Reply | Failure:
        loop, name = asyncio.get_running_loop(), call.model.name
        process = current()
        line = self.lines.setdefault((process, name), Calls(f"{process.name} at {name}"))
        run = RUN.get()
        known = line.failed.get(call.job_id)
        line.made.append((loop.time(), known is not None and (run.number in line.runs or known <= run.at)))
        line.runs.add(run.number)
        line.under_way += 1
        line.most = max(line.most, line.under_way + len(line.failed))
        begin = loop.time()
        try:
            answered = await self._answered(call, on_record)
        except asyncio.CancelledError:
            # The pool's time-out is a failure; a job that was cancelled says nothing.
            if loop.time() >= begin + call.model.timeout or clock.now() >= call.deadline:
                line.failed.setdefault(call.job_id, loop.time())
            raise
        finally:
            line.under_way -= 1
        if isinstance(answered, Failure):
            line.failed.setdefault(call.job_id, loop.time())
        else:
            line.failed.pop(call.job_id, None)
        return answered

    async def _answered(self, call: Call, on_record: OnRecord) -> Reply | Failure:
        loop, dice = asyncio.get_running_loop(), self.dice
        name, number = call.model.name, len(self.entries)
        moods = self.moods.setdefault(name, Moods())
        if not on_record(call):
            self.unrecorded.append(f"{call.job_id} at {name}")
        what = self._dice(moods, call.request.text)
        self.note("model_" + what, job=call.job_id, model=name)
        if what == "crash":
            self.crash(current())
        billed = what in ("answered", "uncertain", "malformed", "declined", "slow")
        response_id = f"r{number}"
        metered = Metered(100 + number % 7, 20, 0, 0, 5, number % 3) if billed else None
        self.entries.append(
            JournalEntry(
                loop.time(),
                name,
                number,
                "POST",
                "/",
                name,
                "",
                "",
                0,
                what,
                200,
                response_id if billed else "",
                metered,
            )
        )
        if metered is not None:
            self.undelivered.add(response_id)
            self.made_in[response_id] = RUN.get().number
            self.said[response_id] = what
        seconds = 0.05 + dice.expovariate(4.0)
        if what == "slow":
            seconds *= 40
        elif what in ("hang", "crash"):
            seconds = 1e6
        await asyncio.sleep(seconds)
        match what:
            case "fail":
                return Failure(FailureKind.TRANSIENT, "http_500")
            case "overloaded":
                return Failure(FailureKind.OVERLOADED, "http_429", retry_after=dice.choice((None, 0.5, 3.0)))
            case "invalid":
                return Failure(FailureKind.INVALID, "http_400")
        assert metered is not None
        self.undelivered.discard(response_id)
        self.paid[current()].append((name, metered))
        usage = Usage(
            metered.input_uncached, metered.input_cache_read, 0, 0, metered.output_text, metered.output_reasoning
        )
        if what == "declined":
            return Reply("", usage, FinishReason.DECLINED, response_id=response_id)
        if what == "malformed":
            return Reply('{"label": "bil', usage, response_id=response_id)
        label, p = truth(call.request.text), 0.99
        if what == "uncertain":
            p = 0.4
            if name != "frontier":  # the reference is believed without a gate
                label = dice.choice(LABELS)
        return _said(label, p, usage, response_id)

    def _dice(self, moods: Moods, text: str) -> str:
        if "POISON" in text:
            return "malformed"
        if "SILENCE" in text:
            return "hang"
        if "CRASH" in text:
            return "crash"
        throw = self.dice.random()
        for what in ("fail", "overloaded", "hang", "slow", "malformed", "uncertain", "declined", "invalid"):
            throw -= getattr(moods, what)
            if throw < 0:
                return what
        return "answered"


def _said(label: str, p: float, usage: Usage, response_id: str) -> Reply:
    logprobs = (
        TokenLogprob(b'{"label":"', 0.0, ()),
        TokenLogprob(label.encode(), math.log(p), ((b"~", math.log(1 - p)),)),
        TokenLogprob(b'"}', 0.0, ()),
    )
    return Reply(f'{{"label":"{label}"}}', usage, logprobs=logprobs, response_id=response_id)


class _Endpoint:
    """Implements `models.endpoint.Serves`."""

    def __init__(self, name: str, models: SimModels, clock: Clock, on_record: OnRecord) -> None:
        self.origin = f"https://{name}.test"
        self._models = models
        self._clock = clock
        self._on_record = on_record

    async def call(self, call: Call) -> Reply | Failure:
        return await self._models.answer(call, self._clock, self._on_record)

    async def close(self) -> None:
        pass


class _NoTransport(Transport):
    """Nothing goes over a wire here."""

    def __init__(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def pool(policy: Policy, models: SimModels, clock: Clock, on_record: OnRecord) -> Pool:
    """The real pool with its permits, over simulated endpoints."""
    now = clock.now()
    served = {}
    for name, model in policy.models.items():
        endpoints = (_Endpoint(name, models, clock, on_record),)
        allowances = [Allowance(model.limits, now, adaptive=True) for _ in endpoints]
        served[name] = Served(model, endpoints, Line(Permits(allowances, now, [1]), clock))
    return Pool(served, _NoTransport(), clock, None)
