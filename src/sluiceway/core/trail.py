"""The trail: every step of a job's climb, with its time, cost and the facts it was decided on.

It travels with the job (and is believed only on internal topics), so that an escalation resumes from it, a person can
read it and `verify` can decide everything again from nothing else. It holds score features, never raw logprobs, and
reply text only up to a bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Literal

from sluiceway.core.call import Usage
from sluiceway.core.value import value

REPLY_BYTES = 32_768  # of one reply
REPLY_BYTES_ALL = 131_072  # of all replies of a trail


class Role(StrEnum):
    """Who climbs: `jobs` every rung but the reference, `escalations` the reference."""

    JOBS = "jobs"
    ESCALATIONS = "escalations"


class VerdictKind(StrEnum):
    """The gate's verdict on an attempt."""

    ACCEPT = "accept"
    RETRY = "retry"
    ESCALATE = "escalate"
    REFUSE = "refuse"


class EscalationReason(StrEnum):
    """Why a job is handed to the next tier; a closed set in every record's schema."""

    UNCERTAIN = "uncertain"
    MALFORMED = "malformed"
    DECLINED = "declined"  # the model would not answer
    FAILED = "failed"
    ROUTED = "routed"  # a rule, a limit or the clearance sent it there with no cheap call paid
    AUDIT = "audit"
    CREDIT = "credit"


@value
class Score:
    """A measured confidence in 0..1 and the line it was held to. `features` are what it was computed from."""

    kind: str
    value: float | None
    threshold: float
    features: Mapping[str, float] = field(default_factory=dict)
    fields: Mapping[str, float] | None = None  # extraction: one score a field


@value
class PromptFacts:
    """What was sent: its digest and size, whether the job's text was cut, and which passages went along."""

    digest: str
    tokens: int
    trimmed: bool = False
    context: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    passages_digest: str | None = None


@value
class Attempt:
    """One call to one model. `at` is epoch seconds, `seconds` its duration, `cost_picousd` pico-dollars.

    `conditions`: what was known when it ended and may have turned the next decision, null where nothing was unusual.
    `context_use`: the share of the model's context window that the call took, answer included; null where unknown.
    `packed`: how many jobs the call that gave the answer was made for, this one among them; null: for it alone. Where a
    job that was packed had to be called for by itself after all, usage and cost hold both calls.
    """

    model: str
    tier: str
    at: float
    seconds: float
    verdict: VerdictKind
    reason: str | None
    policy: str
    endpoint: str = ""
    model_served: str = ""
    response_id: str = ""
    answer: Any = None
    score: Score | None = None
    reply: str | None = None
    reply_sha256: str | None = None
    finish: str | None = None
    failure: str | None = None
    retry_after: float | None = None
    distribution: Mapping[str, float] | None = None
    usage: Usage = field(default_factory=Usage)
    cost_picousd: int = 0
    prompt: PromptFacts | None = None
    conditions: Mapping[str, Any] | None = None
    context_use: float | None = None
    packed: int | None = None
    step: Literal["attempt"] = "attempt"


@value
class Routed:
    """A route was decided. `left_out` names each model that is not on it, and why; `facts` is what was known."""

    at: float
    role: str
    policy: str
    models: tuple[str, ...]
    left_out: Mapping[str, str]
    rule: str | None
    facts: Mapping[str, Any]
    reason: str | None = None
    step: Literal["routed"] = "routed"


@value
class Waited:
    """The job waited for `model`: from `at` to `until`, because of `reason`. `ended` is when it did go on, under
    `conditions`.
    """

    at: float
    until: float
    reason: str
    ended: float | None = None
    conditions: Mapping[str, Any] | None = None
    model: str | None = None
    step: Literal["waited"] = "waited"


Step = Attempt | Routed | Waited


@value
class Trail:
    """`taken_at`: epoch seconds of the first take. `remaining`: seconds of deadline left when it was handed on."""

    origin: str
    taken_at: float
    remaining: float
    steps: tuple[Step, ...] = ()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(step for step in self.steps if isinstance(step, Attempt))

    @property
    def cost_picousd(self) -> int:
        return sum(step.cost_picousd for step in self.steps if isinstance(step, Attempt))

    @property
    def usage(self) -> Usage:
        total = Usage()
        for step in self.steps:
            if isinstance(step, Attempt):
                total += step.usage
        return total


def bounded_reply(text: str, held: int) -> tuple[str | None, str | None, int]:
    """(text, None, its bytes) while a record can hold it beside the `held` bytes it has already, else (None, its
    sha256, 0).
    """
    raw = text.encode("utf-8", "surrogatepass")
    size = len(raw)
    if size <= REPLY_BYTES and held + size <= REPLY_BYTES_ALL and (text.isascii() or _is_unicode(text)):
        return text, None, size
    return None, hashlib.sha256(raw).hexdigest(), 0


def _is_unicode(text: str) -> bool:
    """Whether it is free of lone surrogates, which no record can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
