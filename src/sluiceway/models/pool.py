"""The pool: every model of a policy, opened once, behind one `call`.

It finds the endpoint, holds the call to its deadline and to the model's `max_parallel_requests`, and measures it. It
never retries and never chooses another endpoint: the cascade does. Permits (rates, adaptive limits, breakers) belong
into `_permitted`, between the two.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.catalog import Api, Model
from sluiceway.core.errors import Bug, InputError
from sluiceway.models import live, local, providers, recorded
from sluiceway.models.endpoint import HttpEndpoint, Serves
from sluiceway.models.live import LiveReport
from sluiceway.models.local import LocalEndpoint
from sluiceway.models.recorded import RecordedEndpoint, Recording
from sluiceway.models.tokens import Encoding
from sluiceway.models.transport import Transport
from sluiceway.ports import Clock

Observe = Callable[[str, float, Failure | None], None]
"""Told of each finished call: the model's name, its seconds, and its failure if it was one."""


@dataclass(frozen=True, slots=True)
class Served:
    """One model with what serves it. `parallel` is None where the policy sets no limit."""

    model: Model
    endpoints: tuple[Serves, ...]
    parallel: asyncio.Semaphore | None


class Pool:
    """Implements `ports.Models`."""

    def __init__(
        self, served: Mapping[str, Served], transport: Transport, clock: Clock, observe: Observe | None
    ) -> None:
        self._served = served
        self._transport = transport
        self._clock = clock
        self._observe = observe

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

        served = {}
        for name, model in models.items():
            limit = model.limits.max_parallel_requests
            served[name] = Served(model, serving(model), asyncio.Semaphore(limit) if limit else None)
        return cls(served, transport, clock, observe)

    async def call(self, call: Call) -> Reply | Failure:
        """The reply, or what went wrong, before `call.deadline` and within the model's own time-out."""
        served = self._served.get(call.model.name)
        if served is None or not 0 <= call.endpoint < len(served.endpoints):
            raise Bug(f"no endpoint {call.endpoint} of model {call.model.name!r} in this pool")
        endpoint = served.endpoints[call.endpoint]
        if served.parallel is None:
            return await self._timed(call, endpoint)
        return await self._permitted(call, endpoint, served.parallel)

    async def _permitted(self, call: Call, endpoint: Serves, parallel: asyncio.Semaphore) -> Reply | Failure:
        try:
            async with asyncio.timeout(call.deadline - self._clock.now()):
                await parallel.acquire()
        except TimeoutError:
            return Failure(FailureKind.OVERLOADED, "no_permit", endpoint=endpoint.origin)
        try:
            return await self._timed(call, endpoint)
        finally:
            parallel.release()

    async def _timed(self, call: Call, endpoint: Serves) -> Reply | Failure:
        started = self._clock.now()
        left = min(call.deadline - started, call.model.timeout)
        result: Reply | Failure = Failure(FailureKind.TRANSIENT, "timeout")
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    result = await endpoint.call(call)
            except TimeoutError:
                pass  # `result` says so already
        seconds = max(self._clock.now() - started, 0.0)
        if self._observe is not None:
            self._observe(call.model.name, seconds, result if isinstance(result, Failure) else None)
        return replace(result, endpoint=endpoint.origin, seconds=seconds)

    async def live_check(self, name: str) -> tuple[LiveReport, ...]:
        """What one real call to each endpoint of that model shows; it costs what such a call costs."""
        served = self._served[name]
        return tuple([await live.check(served.model, endpoint, self._clock) for endpoint in served.endpoints])

    async def close(self) -> None:
        """Closes all connections. Calls that are still under way end as Failures."""
        for served in self._served.values():
            for endpoint in served.endpoints:
                await endpoint.close()
        await self._transport.aclose()

    def __repr__(self) -> str:
        return f"Pool({', '.join(self._served)})"
