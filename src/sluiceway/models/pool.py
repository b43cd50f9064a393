"""The pool: every model of a policy, opened once, behind one `call`.

It waits for a permit, which names the endpoint, holds the call to its deadline and measures it. It never retries: the
cascade does. A model's limits hold for each of its endpoints; what an endpoint tells of itself is fed back to its
permits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sluiceway.core.allowance import TIMEOUT
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.catalog import Api, Limits, Model
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.permit import Allowance, Barred, Ended, Ending, Need, Permit, Permits
from sluiceway.core.ratelimit import RateLimits
from sluiceway.models import live, local, providers, recorded
from sluiceway.models.deadlines import Deadlines
from sluiceway.models.endpoint import HttpEndpoint, Serves
from sluiceway.models.line import Line
from sluiceway.models.live import LiveReport
from sluiceway.models.local import LocalEndpoint
from sluiceway.models.recorded import RecordedEndpoint, Recording
from sluiceway.models.tokens import Encoding
from sluiceway.models.transport import Transport
from sluiceway.ports import Clock

Observe = Callable[[str, float, Failure | None], None]
"""Told of each finished call: the model's name, its seconds, and its failure if it was one."""


_SHUT = "breaker_open"
_NO_CALL_SUCCEEDS = frozenset({"insufficient_quota"})
_KEY_TROUBLE = frozenset({"invalid_api_key", "permission_denied", "model_not_found"})
_NOWHERE: frozenset[int] = frozenset()
_TIMED_OUT = Failure(FailureKind.TRANSIENT, TIMEOUT)


@dataclass(frozen=True, slots=True)
class Served:
    """One model with what serves it. `line` is None for what answers in this process and has no limits."""

    model: Model
    endpoints: tuple[Serves, ...]
    line: Line | None


class Pool:
    """Implements `ports.Models`."""

    def __init__(
        self, served: Mapping[str, Served], transport: Transport, clock: Clock, observe: Observe | None
    ) -> None:
        self._served = served
        self._transport = transport
        self._clock = clock
        self._observe = observe
        self._deadlines = Deadlines()

    @classmethod
    def open(
        cls,
        models: Mapping[str, Model],
        clock: Clock,
        encoding: Encoding,
        *,
        observe: Observe | None = None,
        environ: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> Pool:
        """A pool over `models`, by name. Nothing is called yet; keys and files are read now.

        Raises InputError: a missing key, a bad URL, a file that can't be read, a model that nothing serves.
        """
        environ = os.environ if environ is None else environ
        transport = transport or Transport()
        recordings: dict[str, Recording] = {}

        def serving(model: Model) -> tuple[Serves, ...]:
            if model.api in (Api.RECORDED, Api.LOCAL) and model.file is None:
                raise InputError("file", f"model {model.name!r}: no file given. Mend: write file: PATH")
            if model.api is Api.RECORDED and model.file is not None:
                if model.file not in recordings:
                    recordings[model.file] = recorded.read(model.file)
                return (RecordedEndpoint(model, recordings[model.file], encoding),)
            if model.api is Api.LOCAL:
                return (LocalEndpoint(model, local.load(model)),)
            endpoints = providers.endpoints_of(model)
            if not endpoints:
                raise InputError(
                    "base_url", f"model {model.name!r}: no URL known. Mend: write base_url: https://host/v1"
                )
            return tuple(HttpEndpoint(model, endpoint, transport, clock.now, environ) for endpoint in endpoints)

        found = {name: (model, serving(model)) for name, model in models.items()}  # their URLs are good from here on
        names = Counter(place for model in models.values() for place in set(_counted(model)))
        served = {name: Served(*one, _line(*one, clock, names)) for name, one in found.items()}
        return cls(served, transport, clock, observe)

    def call(self, call: Call) -> Coroutine[Any, Any, Reply | Failure]:
        """The reply, or what went wrong, before `call.deadline` and, once it has a permit, the model's own time-out.

        Raises Bug for a call to what is not in this pool.
        """
        served = self._served.get(call.model.name)
        if served is None or not 0 <= call.endpoint < len(served.endpoints):
            raise Bug(f"no endpoint {call.endpoint} of model {call.model.name!r} in this pool")
        if served.line is None:
            return self._at_once(call, served.endpoints[0])
        return self._permitted(call, served.endpoints, served.line)

    async def _at_once(self, call: Call, endpoint: Serves) -> Reply | Failure:
        return (await self._timed(call, endpoint))[0]

    async def _permitted(self, call: Call, endpoints: tuple[Serves, ...], line: Line) -> Reply | Failure:
        failed_at = line.failed_at(call.job_id)
        request = call.request
        permit = await line.permit(
            Need(
                request.schema_name,
                call.tenant,
                call.deadline,
                request.input_tokens,
                call.model.params.max_tokens,
                failed_at is not None,
                failed_at or _NOWHERE,
            )
        )
        if not isinstance(permit, Permit):
            return self._not_called(permit, endpoints)
        endpoint = endpoints[permit.endpoint]
        ended = Ended(Ending.IGNORED)  # cancelled, unless it comes to an end of its own
        try:
            result, told = await self._timed(call, endpoint)
            if not self._cut_short(result, line.permits.endpoints[permit.endpoint]):
                ended = _ended(result, told, endpoint)
        finally:
            line.end(permit, ended)
        line.note(call.job_id, permit.endpoint, failed=isinstance(result, Failure))
        return result

    @staticmethod
    def _cut_short(result: Reply | Failure, allowance: Allowance) -> bool:
        """Whether the job's own deadline ended the call before the endpoint could have answered: not its fault."""
        usual = allowance.latency
        timed_out = isinstance(result, Failure) and result.detail == TIMEOUT
        return timed_out and usual is not None and result.seconds < 2 * usual

    def _not_called(self, got: Barred | None, endpoints: tuple[Serves, ...]) -> Failure:
        origin = endpoints[0].origin
        if got is None:
            return Failure(FailureKind.OVERLOADED, "no_permit", endpoint=origin)
        if got.reason in _NO_CALL_SUCCEEDS or got.reason in _KEY_TROUBLE:
            return Failure(FailureKind.INVALID, got.reason, endpoint=origin)
        wait = max(0.0, got.until - self._clock.now())
        return Failure(FailureKind.OVERLOADED, _SHUT, wait, endpoint=origin)

    async def _timed(self, call: Call, endpoint: Serves) -> tuple[Reply | Failure, RateLimits | None]:
        started = self._clock.now()
        left = min(call.deadline - started, call.model.timeout)
        result: Reply | Failure = _TIMED_OUT
        told: RateLimits | None = None
        if left > 0:
            try:
                if isinstance(endpoint, HttpEndpoint):
                    result, told = await self._deadlines.within(left, endpoint.call_and_limits(call))
                else:
                    result = await self._deadlines.within(left, endpoint.call(call))
            except TimeoutError:
                pass  # `result` says so already
        seconds = max(self._clock.now() - started, 0.0)
        if self._observe is not None:
            self._observe(call.model.name, seconds, result if isinstance(result, Failure) else None)
        return _measured(result, endpoint.origin, seconds), told

    def alike(self, call: Call, others: Iterable[str]) -> None:
        """`call` was made for the jobs `others`: their next calls are second tries if the next of its `job_id` were."""
        line = self._served[call.model.name].line
        if line is not None:
            line.alike(call.job_id, others)

    @property
    def limits(self) -> frozenset[str]:
        """What other workers' calls count against too: each provider's model, whatever a policy calls it."""
        return frozenset(
            _limit(served.model)
            for served in self._served.values()
            if served.line is not None and isinstance(served.endpoints[0], HttpEndpoint)
        )

    def share(self, parts: Mapping[str, float]) -> None:
        """From now on this process may use so much (0 to 1) of each of `limits`; at 0 its calls wait for a part."""
        for served in self._served.values():
            part = parts.get(_limit(served.model))
            if part is not None and served.line is not None and isinstance(served.endpoints[0], HttpEndpoint):
                served.line.share(part)

    async def live_check(self, name: str) -> tuple[LiveReport, ...]:
        """What one real call to each endpoint of that model shows; it costs what such a call costs."""
        served = self._served[name]
        return tuple([await live.check(served.model, endpoint, self._clock) for endpoint in served.endpoints])

    async def close(self) -> None:
        """Closes all connections. Calls that are still under way end as Failures."""
        for served in self._served.values():
            if served.line is not None:
                served.line.close()
            for endpoint in served.endpoints:
                await endpoint.close()
        await self._transport.aclose()

    def __repr__(self) -> str:
        return f"Pool({', '.join(self._served)})"


def _measured(result: Reply | Failure, origin: str, seconds: float) -> Reply | Failure:
    """The same with where and how long it was; made directly, as dataclasses.replace costs each call more."""
    if isinstance(result, Failure):
        return replace(result, endpoint=origin, seconds=seconds)
    return Reply(
        result.text,
        result.usage,
        result.finish,
        result.logprobs,
        result.distribution,
        result.model_served,
        result.response_id,
        origin,
        seconds,
    )


def _limit(model: Model) -> str:
    return f"{model.provider}/{model.model}"


def _counted(model: Model) -> list[tuple[str, str]]:
    """What the calls to each of its endpoints count against, whatever a policy calls the model: its limit, and where.

    Whether two keys are of one account is not known: they count as one.
    """
    return [(_limit(model), providers.origin(endpoint.base_url)) for endpoint in providers.endpoints_of(model)]


def _line(model: Model, endpoints: tuple[Serves, ...], clock: Clock, names: Counter[tuple[str, str]]) -> Line | None:
    now = clock.now()
    if isinstance(endpoints[0], HttpEndpoint):
        weights = [endpoint.weight for endpoint in providers.endpoints_of(model)]
        allowances = [Allowance(model.limits, now, names=names[counted]) for counted in _counted(model)]
    elif model.limits == Limits():
        return None
    else:
        weights = [1]
        allowances = [Allowance(model.limits, now, adaptive=False)]
    return Line(Permits(allowances, now, weights), clock)


def _ended(result: Reply | Failure, told: RateLimits | None, endpoint: Serves) -> Ended:
    """What a finished call says of its endpoint."""
    if isinstance(result, Reply):
        usage = result.usage
        given, answer = endpoint.counted(usage) if isinstance(endpoint, HttpEndpoint) else (usage.input, usage.output)
        return Ended(Ending.SUCCESS, result.seconds, given, answer, told=told)
    detail, wait = result.detail, result.retry_after
    match result.kind:
        case FailureKind.OVERLOADED:
            # 503 without a word of when to come back is an endpoint that is down.
            refused = detail != "http_503" or wait is not None
            return Ended(Ending.DROPPED, 0.0, 0, 0, refused, retry_after=wait, reason=detail, told=told)
        case FailureKind.INVALID if detail in _KEY_TROUBLE:
            return Ended(Ending.DROPPED, 0.0, 0, 0, reason=detail, told=told)
        case FailureKind.INVALID:
            return Ended(Ending.IGNORED, 0.0, 0, 0, barred=detail in _NO_CALL_SUCCEEDS, reason=detail, told=told)
        case _:
            return Ended(Ending.DROPPED, reason=detail, told=told)
