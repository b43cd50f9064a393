"""Models opened on a fake server and calls made to them, for tests of the models edge."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sluiceway.core.call import Call, Failure, Reply, Request
from sluiceway.core.catalog import Api, Model
from sluiceway.models import tokens
from sluiceway.models.pool import Pool

LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "login"]}},
    "required": ["label"],
    "additionalProperties": False,
}


class SystemClock:
    """Seconds since the epoch."""

    def now(self) -> float:
        return time.time()

    async def sleep_until(self, time: float) -> None:
        raise NotImplementedError


CLOCK = SystemClock()


def model(url: str, **given: Any) -> Model:
    api = given.pop("api", Api.OPENAI)
    base = url if api is Api.ANTHROPIC else f"{url}/v1"
    return Model(**{"name": "m", "provider": "test", "model": "tiny", "api": api, "base_url": base, **given})


def call(
    of: Model, *, seconds: float = 20.0, endpoint: int = 0, text: str = "lost card", logprobs: bool = False
) -> Call:
    request = Request("Classify.", text, LABEL, "triage", 40, text)
    return Call(of, request, endpoint, CLOCK.now() + seconds, "job-1", logprobs)


@asynccontextmanager
async def opened(*models: Model, **given: Any) -> AsyncIterator[Pool]:
    pool = Pool.open({one.name: one for one in models}, CLOCK, tokens.default(), environ={}, **given)
    try:
        yield pool
    finally:
        await pool.close()


async def ask(url: str, **given: Any) -> Reply | Failure:
    one = model(url)
    async with opened(one) as pool:
        return await pool.call(call(one, **given))
