"""A reply in the local store: JSON, with its tokens' bytes, so that a restart scores it as it was scored."""

from __future__ import annotations

from typing import Any

import orjson

from sluiceway.core.call import FinishReason, Reply, TokenLogprob, Usage


def encode_reply(reply: Reply) -> bytes:
    """The reply as it lies in the store."""
    # Each byte of a token as the character of its number.
    tokens = [
        (token.decode("latin-1"), logprob, [(other.decode("latin-1"), alike) for other, alike in top])
        for token, logprob, top in reply.logprobs
    ]
    return orjson.dumps(
        {
            "text": reply.text,
            "usage": reply.usage,
            "finish": reply.finish,
            "tokens": tokens,
            "distribution": reply.distribution,
            "model_served": reply.model_served,
            "response_id": reply.response_id,
            "endpoint": reply.endpoint,
            "seconds": reply.seconds,
            "packed": reply.packed,
        }
    )


def decode_reply(value: bytes) -> Reply:
    """What `encode_reply` wrote, of this format or a former one."""
    return read_reply(orjson.loads(value))


def read_reply(tree: dict[str, Any]) -> Reply:
    """The same where its JSON was read already."""
    return Reply(
        text=tree["text"],
        usage=Usage(**tree["usage"]),
        finish=FinishReason(tree["finish"]),
        logprobs=_former_tokens(tree["logprobs"]) if "logprobs" in tree else _tokens(tree["tokens"]),
        distribution=tree["distribution"],
        model_served=tree["model_served"],
        response_id=tree["response_id"],
        endpoint=tree["endpoint"],
        seconds=tree["seconds"],
        packed=tree.get("packed", 1),
    )


def _tokens(found: list[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(token.encode("latin-1"), logprob, tuple((other.encode("latin-1"), alike) for other, alike in top))
        for token, logprob, top in found
    )


def _former_tokens(found: list[Any]) -> tuple[TokenLogprob, ...]:
    """As formats 1 and 2 wrote them."""
    return tuple(
        TokenLogprob(bytes.fromhex(token), logprob, tuple((bytes.fromhex(other), alike) for other, alike in top))
        for token, logprob, top in found
    )
