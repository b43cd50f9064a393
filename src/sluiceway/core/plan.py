"""A plan: one task of a policy, compiled once, with all that its cascades share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sluiceway.core import ledger
from sluiceway.core.answer import AnswerReader
from sluiceway.core.call import Request
from sluiceway.core.catalog import Model, Price
from sluiceway.core.policy import Policy
from sluiceway.core.prompt import Prompt, Text
from sluiceway.core.route import Router
from sluiceway.core.task import LOGPROB_SCORES, Gate, Kind, Rung, ScoreKind, Task
from sluiceway.core.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Plan:
    task: Task
    models: Mapping[str, Model]
    digest: str  # the policy's
    prompt: Prompt
    reader: AnswerReader
    router: Router
    tokens: Tokens
    usd_per_job: int | None  # pico-dollars
    kind: Kind  # the task's
    reference: str  # its model's name
    gates: Mapping[str, Gate | None]  # of each rung, by its model's name
    by_logprobs: frozenset[str]  # the rungs whose gate measures them
    prices: Mapping[str, Price]
    limits: Mapping[str, int]  # tokens that a request to each rung's model may hold

    def worst_cost(self, model: str, request: Request) -> int:
        """Pico-dollars that a call can cost at most: with packing its share of a packed one, and one of its own."""
        worst = ledger.worst_cost(request.input_tokens, self.models[model].params.max_tokens, self.prices[model])
        return worst if self.task.packing is None else 2 * worst

    def over_budget(self, model: str, request: Request, spent: int, day_left: int | None) -> str | None:
        """Which budget the call could exceed, None where none; `spent` and `day_left` in pico-dollars."""
        limit = self.usd_per_job
        if limit is None and day_left is None:
            return None
        worst = self.worst_cost(model, request)
        if limit is not None and spent + worst > limit:
            return "the next call could exceed budget.usd_per_job"
        if day_left is not None and worst > day_left:
            return "the next call could exceed budget.usd_per_day"
        return None

    def worst_at(self, model: str, tokens: int) -> int:
        """Pico-dollars that a job with a request of `tokens` can cost at most at a rung, its calls tried once each."""
        gate = self.gates[model]
        calls = gate.votes if gate is not None and gate.score is ScoreKind.VOTES else 1
        return calls * ledger.worst_cost(tokens, self.models[model].params.max_tokens, self.prices[model])

    def out_of_scope(self, answer: Mapping[str, Any]) -> bool:
        """Whether a delivered answer says: not for this task."""
        word = self.task.out_of_scope
        if word is None:
            return False
        return bool(answer.get("label") == word if self.kind is Kind.LABEL else answer.get("tags") == [word])

    def reference_cost(self, text: Text, reply: str) -> int:
        """Pico-dollars the reference alone would have cost, by our own token counts at its price."""
        size = self.prompt.size(text, self.limits[self.reference])
        return ledger.plain_cost(size, len(self.tokens.encode(reply)), self.prices[self.reference])


def compile_plans(policy: Policy, tokens: Tokens) -> dict[str, Plan]:
    """A plan for each task of `policy`."""
    return {name: _compile(task, policy, tokens) for name, task in policy.tasks.items()}


def _compile(task: Task, policy: Policy, tokens: Tokens) -> Plan:
    limit = task.budget.usd_per_job
    gates = {rung.model: task.gate_of(rung) for rung in task.ladder}
    return Plan(
        task=task,
        models=policy.models,
        digest=policy.digest,
        prompt=Prompt(task, tokens),
        reader=AnswerReader(task),
        router=Router(task, policy.models),
        tokens=tokens,
        usd_per_job=None if limit is None else ledger.from_usd(Decimal(str(limit))),
        kind=task.kind,
        reference=task.reference.model,
        gates=gates,
        by_logprobs=frozenset(name for name, gate in gates.items() if gate and gate.score in LOGPROB_SCORES),
        prices={name: _price(model) for name, model in policy.models.items()},
        limits={rung.model: _limit(rung, policy.models[rung.model]) for rung in task.ladder},
    )


def _limit(rung: Rung, model: Model) -> int:
    window = model.context_window - model.params.max_tokens
    return window if rung.input_tokens is None else min(rung.input_tokens, window)


def _price(model: Model) -> Price:
    return model.price if isinstance(model.price, Price) else Price()
