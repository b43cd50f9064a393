"""One endpoint's allowance: what it permits now, and what each call's end teaches about that.

It joins the adaptive limit, the buckets of requests and tokens a minute, the learned pace and the breaker. It never
waits and never chooses: `core/permit.py` does. Pure: time is passed in.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from math import inf
from typing import NamedTuple

from sluiceway.core.breaker import Breaker
from sluiceway.core.bucket import Bucket
from sluiceway.core.catalog import Limits
from sluiceway.core.limit import CEILING, FLOOR, START, UNSEEN, AdaptiveLimit
from sluiceway.core.pace import Pace, Sent
from sluiceway.core.ratelimit import RateLimit, RateLimits

LONGEST_PAUSE = 30.0  # seconds; a Retry-After holds an endpoint no longer, so that an absurd one can't take it out
TIMEOUT = "timeout"  # the one reason of a failure that says: too much at once
_BARRED = 60.0  # seconds between probes of an endpoint that has no quota left or refuses our key
_ROUNDING = 500.0  # tokens: Anthropic rounds what is left to thousands
_SPARE = 0.1  # of a bucket: at most so much of what an endpoint tells is left is kept for calls longer than counted
_LEARNING = 0.1  # weight of one call in the usual output and in true over counted input
_TASKS = 256


class Ending(StrEnum):
    """How a permit comes back (after Netflix's concurrency-limits)."""

    SUCCESS = "success"
    IGNORED = "ignored"  # it says nothing of the endpoint: cancelled, or the request itself was wrong
    DROPPED = "dropped"  # refused, timed out or broken off


class Ended(NamedTuple):
    """What a call's end told. Tokens are as the endpoint's own limits count them; None: not known.

    `refused`: dropped because the endpoint would take no more now. `barred`: no call there can succeed for now.
    """

    ending: Ending
    seconds: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    refused: bool = False
    barred: bool = False
    retry_after: float | None = None
    reason: str = ""
    told: RateLimits | None = None


class Need(NamedTuple):
    """What a call asks leave for. `input_tokens` is our own count, `output_tokens` the longest answer.

    `deadline` is when waiting ends, a time of the caller's clock. `avoid`: endpoints that this job has seen fail.
    """

    task: str
    tenant: str
    deadline: float
    input_tokens: int
    output_tokens: int
    retry: bool = False
    avoid: frozenset[int] = frozenset()


class Kind(IntEnum):
    """What is limited, and its place in the amounts of a call."""

    REQUESTS = 0
    TOKENS = 1
    INPUT = 2
    OUTPUT = 3


Amounts = tuple[float, float, float, float]


class Permit:
    """Leave to call endpoint number `endpoint` once. It must be ended exactly once."""

    __slots__ = (
        "at",
        "ended",
        "endpoint",
        "in_flight",
        "marks",
        "probe",
        "reserved",
        "retry",
        "sent",
        "task",
        "tokens",
    )

    def __init__(self, endpoint: int, need: Need, now: float) -> None:
        self.endpoint = endpoint
        self.at = now
        self.task = need.task
        self.retry = need.retry
        self.tokens = need.input_tokens
        self.in_flight = 0
        self.probe = False
        self.reserved: Amounts | None = None
        self.marks: tuple[float, ...] = ()  # what each bucket had given when this was granted, this one included
        self.sent: Sent | None = None
        self.ended = False

    def __repr__(self) -> str:
        return f"Permit(endpoint {self.endpoint}, {self.task}, at {self.at:.3f}{', ended' if self.ended else ''})"


class Allowance:
    """One endpoint. `in_flight` permits are out.

    Where `names` of this process count against the same limits a minute, each has its even part of them.
    """

    def __init__(self, limits: Limits, now: float, *, adaptive: bool = True, names: int = 1) -> None:
        most = limits.max_parallel_requests
        if not adaptive:
            bound = most or 1 << 30
            self.limit = AdaptiveLimit(bound, bound, bound)
        else:
            start, least = limits.start_parallel_requests, limits.min_parallel_requests
            known = any((start, limits.rpm, limits.tpm, limits.input_tpm, limits.output_tpm))
            self.limit = AdaptiveLimit(
                start or START, least or FLOOR, most or CEILING, unseen=None if known else UNSEEN
            )
        self.breaker = Breaker()
        self.pace = Pace()
        self.in_flight = 0
        self.latency: float | None = None  # seconds, recent mean
        self._adaptive = adaptive
        self._written = (limits.rpm, limits.tpm, limits.input_tpm, limits.output_tpm)
        self._told: dict[Kind, float] = {}  # per minute
        self._names = names
        self._share = 1.0 / names
        self._buckets: dict[Kind, Bucket] = {}
        self._paused_until = 0.0
        self._ratio = 1.0  # true input tokens over our own count
        self._usual_output: dict[str, float] = {}
        for kind in Kind:
            self._set(kind, now)

    # -- asking ------------------------------------------------------------------------------------------------------

    def wait(self, need: Need, now: float) -> float:
        """Seconds until `need` may go: 0.0 for now, infinite while only another call's end can make room."""
        if self.in_flight >= int(self.limit.limit) or not self.breaker.allows(now):
            until = self.breaker.open_until
            return inf if until is None or until <= now or self.in_flight >= int(self.limit.limit) else until - now
        waits = self._paused_until - now if self._paused_until > now else 0.0
        if self.pace.active:
            waits = max(waits, self.pace.wait(now))
        if self._buckets:
            if not self._share:
                return inf
            amounts = self._amounts(need)
            for kind, bucket in self._buckets.items():
                waits = max(waits, bucket.wait(amounts[kind], now))
        return waits

    def shut(self, now: float) -> bool:
        return self.breaker.shut(now)

    def take(self, endpoint: int, need: Need, now: float) -> Permit:
        """A permit, where `wait` has just said 0.0."""
        permit = Permit(endpoint, need, now)
        self.in_flight += 1
        permit.in_flight = self.in_flight
        permit.probe = self.breaker.began()
        permit.sent = self.pace.sent(now)
        if self._buckets:
            permit.reserved = amounts = self._amounts(need)
            for kind, bucket in self._buckets.items():
                bucket.take(amounts[kind], now)
            permit.marks = self._marks()
        return permit

    def _amounts(self, need: Need) -> Amounts:
        given = need.input_tokens * self._ratio
        usual = self._usual_output.get(need.task)
        answer = float(need.output_tokens) if usual is None else min(usual, need.output_tokens)
        return (1.0, given + answer, given, answer)

    def _marks(self) -> tuple[float, ...]:
        return tuple([self._buckets[kind].taken if kind in self._buckets else 0.0 for kind in Kind])

    # -- learning ----------------------------------------------------------------------------------------------------

    def end(self, permit: Permit, ended: Ended, now: float) -> None:
        """The permit comes back. Its reservation is corrected to what was used, where that is known."""
        if self._adaptive:
            if permit.in_flight < self.in_flight:
                permit.in_flight = self.in_flight
            self._learn(permit, ended, now)
        self.in_flight -= 1
        if ended.input_tokens is not None and ended.output_tokens is not None:
            self._settle(permit, ended.input_tokens, ended.output_tokens, now)
        if ended.told is not None:
            self._believe(permit, ended.told, now)

    def _learn(self, permit: Permit, ended: Ended, now: float) -> None:
        probe = permit.probe
        if ended.ending is Ending.SUCCESS:
            seconds = ended.seconds
            self.latency = seconds if self.latency is None else self.latency + (seconds - self.latency) * _LEARNING
            self.limit.succeeded(permit.task, seconds, permit.at, permit.in_flight, now)
            self.breaker.succeeded(now, probe=probe)
            if self.pace.active and permit.sent is not None:
                self.pace.accepted(permit.sent, now)
            return
        if ended.barred:
            self.breaker.bar(now, _BARRED, ended.reason)
        if ended.ending is Ending.IGNORED:
            self.breaker.ignored(probe=probe)
            return
        if ended.refused or ended.reason == TIMEOUT:
            self.limit.dropped(permit.at, permit.in_flight, now, refused=ended.refused)
        if not ended.refused:
            self.breaker.failed(now, ended.reason, probe=probe)
            return
        # Too fast is not broken: a probe that is refused has shown that the endpoint answers.
        if probe:
            self.breaker.succeeded(now, probe=True)
        if permit.sent is not None:
            self.pace.refused(permit.sent, now)
        if ended.retry_after:
            self._paused_until = max(self._paused_until, now + min(ended.retry_after, LONGEST_PAUSE))

    def _settle(self, permit: Permit, given: int, answer: int, now: float) -> None:
        if given and permit.tokens:
            self._ratio += (min(given / permit.tokens, 8.0) - self._ratio) * _LEARNING
        if given or answer:
            usual = self._usual_output.get(permit.task)
            if usual is None and len(self._usual_output) >= _TASKS:
                self._usual_output.clear()
            self._usual_output[permit.task] = answer if usual is None else usual + (answer - usual) * _LEARNING
        if permit.reserved is not None:
            actual = (1.0, float(given + answer), float(given), float(answer))
            for kind, bucket in self._buckets.items():
                if permit.marks[kind]:  # else the bucket is younger than the permit: nothing was taken from it
                    bucket.settle(permit.reserved[kind], actual[kind], now)

    def _believe(self, permit: Permit, told: RateLimits, now: float) -> None:
        limits = (told.requests, told.tokens, told.input_tokens, told.output_tokens)
        for kind, limit in zip(Kind, limits, strict=True):
            if limit is None:
                continue
            if limit.limit:
                per_minute = limit.limit * 60.0 / limit.period
                if self._told.get(kind) != per_minute:
                    self._told[kind] = per_minute
                    self._set(kind, now)
            if limit.remaining is not None and permit.marks and kind in self._buckets:
                self._left(kind, limit, permit, told.family, now)

    def _left(self, kind: Kind, limit: RateLimit, permit: Permit, family: str, now: float) -> None:
        """What is left of a limit, by the endpoint's own word.

        It was true when the endpoint admitted the call: since then others of ours went out, and time refilled it.
        """
        bucket = self._buckets[kind]
        if not permit.marks[kind]:
            return
        remaining = limit.remaining or 0.0
        if kind is not Kind.REQUESTS:
            # Whoever goes to the last token of it is refused where the next call is a little longer than was taken for.
            remaining -= min(permit.reserved[kind] if permit.reserved else 0.0, bucket.capacity * _SPARE)
            if family == "anthropic":
                remaining -= _ROUNDING
        since = bucket.taken - permit.marks[kind]
        bucket.believe(remaining - since + bucket.per_minute / 60.0 * (now - permit.at), now)

    def _set(self, kind: Kind, now: float) -> None:
        limits = [limit for limit in (self._written[kind], self._told.get(kind)) if limit is not None]
        if not limits:
            return
        per_minute = min(limits) * (self._share or 1.0)  # with no share nothing is taken from it
        if kind in self._buckets:
            self._buckets[kind].resize(per_minute, now)
        else:
            self._buckets[kind] = Bucket(per_minute, now)

    def share(self, part: float, now: float) -> None:
        """From now on this process may use `part` (0 to 1) of the endpoint's limits a minute; 0: it has to wait.

        Whoever had no part begins with nothing saved: others have used the limit until now.
        """
        begins = not self._share
        self._share = part / self._names
        for kind in Kind:
            self._set(kind, now)
        if begins:
            for bucket in self._buckets.values():
                bucket.believe(0.0, now)

    def __repr__(self) -> str:
        return f"Allowance({self.in_flight} of {self.limit.limit:.0f} in flight, {len(self._buckets)} limits a minute)"
