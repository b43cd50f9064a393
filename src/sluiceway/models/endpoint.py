"""An endpoint: the URL, or the function in this process, that serves a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Usage
from sluiceway.core.catalog import Api, Endpoint, Model
from sluiceway.core.errors import InputError
from sluiceway.models import keys, providers
from sluiceway.models.anthropic import AnthropicFormat
from sluiceway.models.headers import RateLimits, rate_limits
from sluiceway.models.openai import OpenAIFormat
from sluiceway.models.transport import HttpReply, Transport, target


class WireFormat(Protocol):
    """A wire format as pure functions: a Call to a body, a response to a Reply or a Failure."""

    def path(self, base_url: str) -> str: ...

    def headers(self, key: str | None) -> dict[str, str]: ...

    def encode(self, call: Call) -> bytes: ...

    def decode(
        self, status: int, headers: Mapping[str, str], body: bytes, call: Call, now: float
    ) -> Reply | Failure: ...


class Serves(Protocol):
    """Answers calls to one model. Whatever goes wrong out there is a Failure."""

    @property
    def origin(self) -> str: ...

    async def call(self, call: Call) -> Reply | Failure: ...

    async def close(self) -> None: ...


class HttpEndpoint:
    """One model at one URL. `model.api` says in which format; the key is read when this is made."""

    def __init__(
        self,
        model: Model,
        endpoint: Endpoint,
        transport: Transport,
        now: Callable[[], float],
        environ: Mapping[str, str],
    ) -> None:
        key = keys.read(model, endpoint, environ)
        self._format: WireFormat = _format(model)
        headers = {**model.extra_headers, **self._format.headers(key.reveal() if key else None)}
        try:
            self._target = target(self._format.path(endpoint.base_url), headers)
        except InputError as error:
            raise InputError(error.reason, f"model {model.name!r}: {error.detail}") from None
        self._transport = transport
        self._now = now
        self._a_day = model.provider == "groq"  # its request limit is a day's
        self._cached_is_free = model.api is Api.ANTHROPIC
        self._longest_retry_after = model.limits.longest_retry_after
        self.origin = providers.origin(endpoint.base_url)

    async def call(self, call: Call) -> Reply | Failure:
        return (await self.call_and_limits(call))[0]

    async def call_and_limits(self, call: Call) -> tuple[Reply | Failure, RateLimits | None]:
        """What came of the call, and the limits that its response told of."""
        answered = await self.exchange(call)
        if isinstance(answered, Failure):
            return answered, None
        return self.read(answered, call), self.limits(answered)

    def limits(self, answered: HttpReply) -> RateLimits | None:
        found = rate_limits(answered.headers, self._now())
        if found is not None and found.requests is not None and self._a_day:
            found = replace(found, requests=replace(found.requests, period=86_400.0))
        return found

    def counted(self, usage: Usage) -> tuple[int, int]:
        """Input and output tokens as this endpoint's limits count them: Anthropic leaves out what a cache gave."""
        read = usage.input_cache_read if self._cached_is_free else 0
        return usage.input - read, usage.output

    def exchange(self, call: Call) -> Awaitable[HttpReply | Failure]:
        """The raw response to `call`."""
        try:
            body = self._format.encode(call)
        except InputError:
            return _given(Failure(FailureKind.INVALID, "bad_text"))
        return self._transport.post(self._target, body)

    def read(self, answered: HttpReply, call: Call) -> Reply | Failure:
        found = self._format.decode(answered.status, answered.headers, answered.body, call, self._now())
        if isinstance(found, Failure) and (found.retry_after or 0.0) > self._longest_retry_after:
            return replace(found, retry_after=self._longest_retry_after)
        return found

    async def close(self) -> None:
        """Nothing: the transport is shared, and its owner closes it."""

    def __repr__(self) -> str:
        return f"HttpEndpoint({self.origin})"


async def _given(failure: Failure) -> Failure:
    return failure


def _format(model: Model) -> WireFormat:
    if model.api is Api.OPENAI:
        return OpenAIFormat(model)
    if model.api is Api.ANTHROPIC:
        return AnthropicFormat(model)
    raise InputError("api", f"model {model.name!r}: {model.api} is no HTTP format. Mend: api: openai")
