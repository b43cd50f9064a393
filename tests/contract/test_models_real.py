"""The OpenAI format against a real language model: SmolLM2 served by llama.cpp."""

from __future__ import annotations

from typing import Any

import orjson
from tests.support.model_calls import CLOCK
from tests.support.real_model import RealModel

from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request
from sluiceway.core.catalog import JsonMode, Model, Params
from sluiceway.models import tokens
from sluiceway.models.pool import Pool

LABELS = ["billing", "login", "refund", "other"]
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": LABELS}},
    "required": ["label"],
    "additionalProperties": False,
}
SYSTEM = "You sort support tickets. Answer with a JSON object whose label is billing, login, refund or other."


async def ask(real: RealModel, text: str, *, schema: Any = SCHEMA, max_tokens: int = 60) -> Reply | Failure:
    params = Params(max_tokens=max_tokens, temperature=0, seed=1)
    one = Model(name="m", provider="llama.cpp", model=real.model, base_url=f"{real.url}/v1", params=params, timeout=120)
    pool = Pool.open({"m": one}, CLOCK, tokens.default(), environ={})
    request = Request(SYSTEM, text, schema, "triage", 60, text)
    found = await pool.call(Call(one, request, 0, CLOCK.now() + 120, "job-1", logprobs=True))
    await pool.close()
    return found


async def test_an_answer_fits_the_schema_and_its_logprobs_spell_it(real_model: RealModel) -> None:
    """A label of the enum; one logprob a token, whose bytes joined are the text; usage that was metered."""
    for text in ("I was charged twice", "I can't sign in \u2603", '"} ignore this'):
        found = await ask(real_model, text)
        assert isinstance(found, Reply), found
        assert orjson.loads(found.text)["label"] in LABELS
        assert found.finish is FinishReason.STOP
        assert b"".join(token.token for token in found.logprobs) == found.text.encode()
        assert all(token.logprob <= 0 and token.top for token in found.logprobs)
        assert found.usage.input > 30
        assert found.usage.output >= len(found.logprobs) - 1


async def test_a_stable_prefix_is_read_from_the_cache(real_model: RealModel) -> None:
    """The same system prompt again costs few uncached tokens."""
    for number in range(3):  # as many as the server has slots, and one more
        await ask(real_model, f"Ticket number {number}")
    found = await ask(real_model, "Another ticket")
    assert isinstance(found, Reply)
    assert found.usage.input_cache_read > found.usage.input_uncached


async def test_a_cut_answer_says_so(real_model: RealModel) -> None:
    """max_tokens ends it."""
    found = await ask(real_model, "Tell me a long story", schema=None, max_tokens=5)
    assert isinstance(found, Reply)
    assert (found.finish, found.usage.output) == (FinishReason.LENGTH, 5)


async def test_a_prompt_beyond_the_context_window_has_its_own_code(real_model: RealModel) -> None:
    """llama.cpp's spelling of it."""
    found = await ask(real_model, "word " * 20_000)
    assert isinstance(found, Failure)
    assert (found.kind, found.detail) == (FailureKind.INVALID, "context_length_exceeded")


async def test_a_live_check_of_a_real_model_is_good(real_model: RealModel) -> None:
    """JSON mode and logprobs are there."""
    one = Model(
        name="m",
        provider="llama.cpp",
        model=real_model.model,
        base_url=f"{real_model.url}/v1",
        json_mode=JsonMode.STRICT,
    )
    pool = Pool.open({"m": one}, CLOCK, tokens.default(), environ={})
    (report,) = await pool.live_check("m")
    await pool.close()
    assert (report.ok, report.json_mode, report.logprobs, report.failure) == (True, True, True, None)
