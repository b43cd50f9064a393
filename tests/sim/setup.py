"""How a world is set up: the one policy of all worlds, and the limits and habits that its dice choose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random

from sluiceway.core import plan as plans
from sluiceway.core.flood import Flood
from sluiceway.core.held import Limits, Order
from sluiceway.core.policy import Policy
from tests.sim.faults import FLOOD
from tests.sim.feed import MAX_BYTES
from tests.sim.models import Bytes
from tests.support.core import load

DEADLINE = 16.0  # seconds

_POLICY = f"""
models:
  cheap: {{provider: openai, model: gpt-cheap, tier: small, timeout: 3s, params: {{max_tokens: 50}}}}
  other: {{provider: openai, model: gpt-other, tier: small, timeout: 3s, params: {{max_tokens: 50}}}}
  frontier: {{provider: anthropic, model: claude-frontier, tier: frontier, timeout: 5s, params: {{max_tokens: 60}}}}
tasks:
  triage: &triage
    ladder: [cheap, frontier]
    prompt: Classify this ticket.
    labels: [billing, login, refund, other]
    gate: {{score: label_logprob, threshold: 0.85}}
    deadline: {DEADLINE:.0f}s
    max_bytes: {MAX_BYTES}
    retries: {{tries: 2, first_wait: 300ms, longest_wait: 2s}}
  tag:
    <<: *triage
    ladder: [cheap, other, frontier]
    order: none
"""


@cache
def policy() -> Policy:
    return load(_POLICY.replace("    order: none\n", ""))


@cache
def compiled(_policy: str) -> dict[str, plans.Plan]:
    return plans.compile_plans(policy(), Bytes())


@dataclass(frozen=True, slots=True)
class Setup:
    """How a world's workers are set up."""

    limits: Limits
    idempotent: bool
    workers: int
    state: bool  # whether they keep a local store
    crowd: int  # how many jobs of a role sleep in a worker; those beyond wait in a retry topic


def set_up(dice: Random) -> Setup:
    limits = Limits(
        jobs=dice.choice((8, 30, 100)),
        queue=dice.choice((6, 40, 200)),
        bytes=dice.choice((12_000, 64 << 20, 64 << 20)),
        span=dice.choice((12, 60, 10_000)),
        commit_interval=dice.choice((0.3, 1.0, 2.0)),
        commit_count=dice.choice((10, 10_000)),
        metadata_chars=dice.choice((40, 120, 4000, 4000)),
        flood=dice.choice((Flood(), FLOOD, FLOOD)),
        order=dice.choice((Order.NONE, Order.NONE, Order.NONE, Order.KEY, Order.KEY, Order.PARTITION)),
    )
    if limits.order is Order.PARTITION:
        # One after another is slow: give each partition little to wait for.
        limits = replace(limits, jobs=100, queue=200, bytes=64 << 20)
    return Setup(limits, dice.random() < 0.5, 2, dice.random() < 0.4, dice.choice((0, 2, 50)))
