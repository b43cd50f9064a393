"""One call to one model, as values: what is asked (Request, Call) and what comes back (Reply, Failure).

What an endpoint can do wrong is a `Failure`, never an exception: the cascade decides on it like on any event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, NamedTuple

from sluiceway.core.catalog import Clearance, Model
from sluiceway.core.value import value

CACHED = "cache"
"""The endpoint of a reply that was given before: no call was made for it."""


@value
class Request:
    """A rendered prompt: `system` is stable for a task (prompt caches hit it), `user` holds the fenced job text.

    `schema` is the JSON Schema of the answer, None for free text. `input_tokens` is our own tiktoken count.
    `text` is the job's text alone, for models that take no prompt (`local`, `recorded`).
    """

    system: str
    user: str
    schema: Mapping[str, Any] | None
    schema_name: str
    input_tokens: int
    text: str


@value
class Call:
    """An ask: send `request` to `model` and be back before `deadline`, a time of the runner's clock in seconds.

    `endpoint` counts the endpoints of `model` that this job has given up on: another one is to be taken.
    `job_id` seeds jitter and tells a first try from a second.
    """

    model: Model
    request: Request
    endpoint: int
    deadline: float
    job_id: str
    logprobs: bool = False  # the gate needs them
    draw: int = 1  # which of several draws of the same request this is
    clearance: Clearance = Clearance.INTERNAL  # of the data in it
    tenant: str = ""  # waiting for a permit is fair between tenants, and no answer is shared across them


@value
class Usage:
    """Metered tokens of one call, disjoint: the sum of all fields is everything that was billed.

    OpenAI: uncached = prompt - cached - cache_write, text = completion - reasoning. Anthropic: input_tokens is
    uncached already. (Vendors' SDK sources; see docs.)
    """

    input_uncached: int = 0
    input_cache_read: int = 0
    input_cache_write_5m: int = 0
    input_cache_write_1h: int = 0
    output_text: int = 0
    output_reasoning: int = 0

    @property
    def input(self) -> int:
        return self.input_uncached + self.input_cache_read + self.input_cache_write_5m + self.input_cache_write_1h

    @property
    def output(self) -> int:
        return self.output_text + self.output_reasoning

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_uncached + other.input_uncached,
            self.input_cache_read + other.input_cache_read,
            self.input_cache_write_5m + other.input_cache_write_5m,
            self.input_cache_write_1h + other.input_cache_write_1h,
            self.output_text + other.output_text,
            self.output_reasoning + other.output_reasoning,
        )


class TokenLogprob(NamedTuple):
    """One generated token: its exact bytes, natural-log probability, and alternatives seen at that place.

    The likeliest of them, where there is one: what a score asks for.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"  # cut at max_tokens
    DECLINED = "declined"  # the model or its filter would not answer


@value
class Reply:
    """The model answered. `logprobs` joined are the bytes of `text`, or empty where the model gives none.

    `distribution` (label -> probability) comes from `local` classifiers only. `seconds` is the call's duration.
    `packed` is how many jobs the call that gave it was made for; a `copy` is of a call that another's reply stands for.
    """

    text: str
    usage: Usage
    finish: FinishReason = FinishReason.STOP
    logprobs: Sequence[TokenLogprob] = ()
    distribution: Mapping[str, float] | None = None
    model_served: str = ""
    response_id: str = ""
    endpoint: str = ""
    seconds: float = 0.0
    packed: int = 1
    copy: bool = False


class FailureKind(StrEnum):
    """The three retry classes. transient and overloaded may be tried again; invalid may not."""

    TRANSIENT = "transient"  # connection lost, 5xx, time-out, half a body
    OVERLOADED = "overloaded"  # 429, 503 with Retry-After, 529
    INVALID = "invalid"  # the request, the key or the quota is wrong; the same call would fail again


@value
class Failure:
    """The call gave no usable reply. `detail` is a short code (`timeout`, `http_503`, `insufficient_quota`),
    never the endpoint's own text. `retry_after` is in seconds from now, where the endpoint named one.
    `packed` and `copy` as in a Reply.
    """

    kind: FailureKind
    detail: str
    retry_after: float | None = None
    usage: Usage = field(default_factory=Usage)
    endpoint: str = ""
    seconds: float = 0.0
    packed: int = 1
    copy: bool = False
