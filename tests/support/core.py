"""Small worlds for tests of the core: policies from dicts, tokens that are letters, scripted replies, a hand clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from sluiceway.core import job as jobs
from sluiceway.core import outcome as outcomes
from sluiceway.core import policy as policies
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.cascade import Cascade, Conditions, Finish, Role, Wait, Woke
from sluiceway.core.catalog import Api, Price
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job
from sluiceway.core.leave import NEVER, Leaving
from sluiceway.core.outcome import Ending, Escalation, HandOver
from sluiceway.core.plan import Plan, compile_plans
from sluiceway.core.policy import Offer, Policy
from sluiceway.ports import Clock, Journal, Models
from sluiceway.runner import Runner

CALM = Conditions({})
LABELS = ("billing", "login", "refund", "other")
CHEAP_PRICE = Price(input_mtok=Decimal("0.15"), cache_read_mtok=Decimal("0.003"), output_mtok=Decimal("0.60"))
FRONTIER_PRICE = Price(input_mtok=Decimal(5), cache_write_mtok=Decimal("6.25"), output_mtok=Decimal(25))

MODELS: dict[str, Any] = {
    "cheap": {"provider": "openai", "model": "gpt-cheap", "tier": "small", "params": {"max_tokens": 50}},
    "frontier": {
        "provider": "anthropic",
        "model": "claude-frontier",
        "tier": "frontier",
        "params": {"max_tokens": 200},
    },
}
TASK: dict[str, Any] = {
    "ladder": ["cheap", "frontier"],
    "prompt": "Classify this ticket.",
    "labels": list(LABELS),
    "gate": {"score": "label_logprob", "threshold": 0.85},
}


class Letters:
    """A tokenizer whose tokens are the letters themselves, so that a test can count them."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def offers(provider: str, model: str, _tier: str | None = None) -> Offer:
    """Two providers and their prices; nothing is known of any other."""
    if provider == "openai":
        price = None if model == "no-price" else CHEAP_PRICE
        return Offer(Api.OPENAI, "https://openai.test/v1", "OPENAI_API_KEY", price, "the test's list")
    if provider == "anthropic":
        return Offer(Api.ANTHROPIC, "https://anthropic.test", "ANTHROPIC_API_KEY", FRONTIER_PRICE, "the test's list")
    return Offer(similar=("openai/gpt-cheap",))


def reader(files: Mapping[str, str]) -> Callable[[str], str]:
    def read(name: str) -> str:
        if name not in files:
            raise InputError("file", f"{name} can't be read (no such file)")
        return files[name]

    return read


def load(text: str, files: Mapping[str, str] | None = None) -> Policy:
    return policies.load(text, file="policy.yaml", read=reader(files or {}), offers=offers)


def written(task: Mapping[str, Any] | None = None, models: Mapping[str, Any] | None = None) -> str:
    """A policy file: the usual two models and task `triage`, with what `task` and `models` change. None drops a key."""
    tree = {
        "models": {name: _without_none(model) for name, model in {**MODELS, **(models or {})}.items()},
        "tasks": {"triage": _without_none({**TASK, **(task or {})})},
    }
    return yaml.safe_dump(tree, sort_keys=False)


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def policy(
    task: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Policy:
    return load(written(task, models), files)


def plan(
    task: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Plan:
    return compile_plans(policy(task, models, files), Letters())["triage"]


def job(text: str | Mapping[str, Any] = "I was billed twice", origin: str = "test/jobs/0/1", **facts: Any) -> Job:
    return jobs.admit({"id": "j1", "task": "triage", "input": text, **facts}, origin=origin, default_id="jobs-0-1")


USAGE = Usage(input_uncached=100, input_cache_read=20, output_text=5)


def reply(label: str = "billing", p: float | None = 0.99, usage: Usage = USAGE, **facts: Any) -> Reply:
    """One label with probability `p` on its single token; without logprobs where `p` is None."""
    text = f'{{"label":"{label}"}}'
    logprobs: tuple[TokenLogprob, ...] = ()
    if p is not None:
        other = ((b"~", math.log(max(1e-9, 1 - p))),)
        logprobs = (
            TokenLogprob(b'{"label":"', 0.0, ()),
            TokenLogprob(label.encode(), math.log(max(p, 1e-9)), other),
            TokenLogprob(b'"}', 0.0, ()),
        )
    return Reply(text, usage, logprobs=logprobs, **facts)


def down(kind: FailureKind = FailureKind.TRANSIENT, detail: str = "http_503", **facts: Any) -> Failure:
    return Failure(kind, detail, **facts)


DECLINED = Reply("", USAGE, FinishReason.DECLINED)

Answers = Callable[[Call], Reply | Failure]


@dataclass
class Climb:
    """What one cascade asked for, and the record it ended in."""

    record: Ending
    calls: list[Call] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    ended: float = 0.0

    @property
    def models(self) -> list[str]:
        return [call.model.name for call in self.calls]


def climb(
    plan: Plan,
    job: Job,
    answers: Answers,
    role: Role = Role.JOBS,
    *,
    resumed: HandOver | None = None,
    coin: float = 0.5,
    now: float = 1000.0,
    conditions: Conditions = CALM,
    seconds: float = 1.0,
) -> Climb:
    """Drives a cascade to its end: each call takes `seconds`, each wait as long as it asks."""
    cascade = Cascade(plan, job, role, lambda _purpose: coin, resumed)
    ask = cascade.start(now, conditions)
    calls: list[Call] = []
    waits: list[Wait] = []
    while not isinstance(ask, Finish):
        if isinstance(ask, Wait):
            waits.append(ask)
            now = ask.until
            ask = cascade.receive(Woke(), now, conditions)
        else:
            calls.append(ask)
            now += seconds
            ask = cascade.receive(answers(ask), now, conditions)
    return Climb(ask.record, calls, waits, now)


class HandClock:
    """Stands still until somebody waits for it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    async def sleep_until(self, time: float) -> None:
        self.time = max(self.time, time)


class Scripted:
    """Models that answer by a function; every call is kept."""

    def __init__(self, answers: Answers, clock: HandClock | None = None, seconds: float = 0.0) -> None:
        self.answers, self.clock, self.seconds = answers, clock, seconds
        self.calls: list[Call] = []

    async def call(self, call: Call) -> Reply | Failure:
        self.calls.append(call)
        if self.clock is not None:
            self.clock.time += self.seconds
        return self.answers(call)

    async def close(self) -> None:
        pass


class Counter:
    """A meter that keeps what it was told."""

    def __init__(self) -> None:
        self.records: list[tuple[Ending, int]] = []

    def finished(self, record: Ending, *, known: int) -> None:
        self.records.append((record, known))


def runner(
    policy: Policy,
    models: Models,
    clock: Clock | None = None,
    language: Callable[[str], str] | None = None,
    leaving: Leaving = NEVER,
    journal: Journal | None = None,
) -> tuple[Runner, Counter]:
    meter = Counter()
    clock = clock or (models.clock if isinstance(models, Scripted) else None) or HandClock()
    made = Runner(
        policy,
        models,
        clock=clock,
        tokens=Letters(),
        meter=meter,
        secret=b"a secret of sixteen",
        language=language,
        journal=journal,
        leaving=leaving,
    )
    return made, meter


# -- climbs ----------------------------------------------------------------------------------------------------------


def by_model(**replies: Reply | Failure | Callable[[Call], Reply | Failure]) -> Answers:
    """Each model answers its own, whatever the call."""

    def answers(call: Call) -> Reply | Failure:
        answer = replies[call.model.name]
        return answer(call) if callable(answer) else answer

    return answers


def resumed(first: Climb, answers: Answers, **facts: Any) -> Climb:
    """What the reference makes of `first`, once its record has been through a topic."""
    assert isinstance(first.record, Escalation)
    again = outcomes.decode(Escalation, outcomes.encode(first.record))
    return climb(facts.pop("plan", plan()), job(), answers, Role.ESCALATIONS, resumed=again, **facts)
