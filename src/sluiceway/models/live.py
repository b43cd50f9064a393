"""One real call to an endpoint, to see before any job is sent what it can do: `sluiceway check --live`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import orjson

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Request
from sluiceway.core.catalog import Api, JsonMode, Model
from sluiceway.models import headers
from sluiceway.models.endpoint import HttpEndpoint, Serves
from sluiceway.models.headers import RateLimits
from sluiceway.models.transport import HttpReply
from sluiceway.ports import Clock

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["label"],
    "additionalProperties": False,
}
_PROBE = Request(
    system='Answer with one JSON object, {"label": "yes"} or {"label": "no"}, and nothing else.',
    user="Is water wet?",
    schema=_SCHEMA,
    schema_name="probe",
    input_tokens=40,
    text="Is water wet?",
)
_KEY_TROUBLE = frozenset({"invalid_api_key", "permission_denied", "http_403"})


@dataclass(frozen=True, slots=True)
class LiveReport:
    """What one call showed. None: the call did not tell, or it does not apply.

    `json_mode`: the answer was JSON that fits the schema, asked for in the model's own `json_mode`.
    """

    model: str
    endpoint: str
    ok: bool
    failure: str | None = None
    key: bool | None = None
    json_mode: bool | None = None
    logprobs: bool | None = None
    rate_limits: RateLimits | None = None
    model_served: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


async def check(model: Model, endpoint: Serves, clock: Clock) -> LiveReport:
    """The report on one endpoint. A recorded model is not called: it answers nothing but its own texts.

    Where a model refuses the request with logprobs, it is asked once more without them.
    """
    if model.api is Api.RECORDED:
        return LiveReport(model.name, endpoint.origin, ok=True)
    wanted = model.api is Api.OPENAI and model.logprobs is not False
    report = await _one_call(model, endpoint, clock, logprobs=wanted)
    if wanted and report.failure in ("http_400", "http_422"):
        again = await _one_call(model, endpoint, clock, logprobs=False)
        if again.failure is None:
            return replace(again, logprobs=False)
    return report


async def _one_call(model: Model, endpoint: Serves, clock: Clock, *, logprobs: bool) -> LiveReport:
    started = clock.now()
    call = Call(model, _PROBE, 0, started + model.timeout, "live-check", logprobs)
    raw: HttpReply | Failure | None = None
    try:
        async with asyncio.timeout(model.timeout):
            if isinstance(endpoint, HttpEndpoint):
                raw = await endpoint.exchange(call)
                result = raw if isinstance(raw, Failure) else endpoint.read(raw, call)
            else:
                result = await endpoint.call(call)
    except TimeoutError:
        result = Failure(FailureKind.TRANSIENT, "timeout")
    report = LiveReport(model.name, endpoint.origin, ok=False, seconds=clock.now() - started)
    if isinstance(raw, HttpReply):
        key = not (isinstance(result, Failure) and result.detail in _KEY_TROUBLE)
        report = replace(report, key=key, rate_limits=headers.rate_limits(raw.headers, clock.now()))
    if isinstance(result, Failure):
        return replace(report, failure=result.detail)
    fits = _fits(result)
    return replace(
        report,
        ok=fits or model.json_mode is JsonMode.OFF,
        json_mode=fits if model.api is not Api.LOCAL else None,
        logprobs=bool(result.logprobs) if logprobs else None,
        model_served=result.model_served,
        input_tokens=result.usage.input,
        output_tokens=result.usage.output,
    )


def _fits(reply: Reply) -> bool:
    if reply.distribution is not None:
        return True  # a local classifier has labels of its own
    try:
        answer = orjson.loads(reply.text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and answer.get("label") in ("yes", "no")
