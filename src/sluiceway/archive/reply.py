"""Replies in the local store, with their tokens' bytes, so that a restart scores each as it was scored.

One alone is JSON. Those of a turn of the event loop lie together, as three columns of a row:

    told      JSON: [replies, tops, lengths]. A reply is [key, text, usage's six counts, finish, distribution,
              model_served, response_id, endpoint, seconds, packed, number of its tokens]; `tops` is how many
              alternatives each token has, `lengths` how many bytes each token has, and then each alternative
    tokens    those bytes: of all tokens, then of all alternatives
    numbers   their log-probabilities in the same order, each 8 bytes, little-endian

So nothing that is said of a token is encoded one by one: most of a reply are its log-probabilities.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import chain, islice
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


def encode_replies(kept: dict[str, Reply]) -> tuple[bytes, bytes, bytes]:
    """`told`, `tokens` and `numbers` of a row. What can't be written (a count past 64 bits) is taken out of `kept`."""
    try:
        return _encoded(kept)
    except _UNWRITABLE:
        for key, reply in list(kept.items()):
            try:
                _encoded({key: reply})
            except _UNWRITABLE:
                del kept[key]
        return _encoded(kept)


_UNWRITABLE = (TypeError, struct.error)


def _encoded(kept: Mapping[str, Reply]) -> tuple[bytes, bytes, bytes]:
    told = []
    for key, reply in kept.items():
        usage = reply.usage
        told.append(
            (
                key,
                reply.text,
                usage.input_uncached,
                usage.input_cache_read,
                usage.input_cache_write_5m,
                usage.input_cache_write_1h,
                usage.output_text,
                usage.output_reasoning,
                reply.finish,
                reply.distribution,
                reply.model_served,
                reply.response_id,
                reply.endpoint,
                reply.seconds,
                reply.packed,
                len(reply.logprobs),
            )
        )
    tokens = [*chain.from_iterable([reply.logprobs for reply in kept.values()])]
    texts, numbers, tops = zip(*tokens, strict=True) if tokens else ((), (), ())
    others = [*chain.from_iterable(tops)]
    if others:
        words, likely = zip(*others, strict=True)
        texts, numbers = texts + words, numbers + likely
    lengths = [*map(len, texts)]
    return (
        orjson.dumps((told, [*map(len, tops)], lengths)),
        b"".join(texts),
        struct.pack(f"<{len(numbers)}d", *numbers),
    )


def decode_replies(told: bytes, tokens: bytes | None, numbers: bytes | None) -> dict[str, Reply] | None:
    """What `encode_replies` wrote, or format 4 in `told` alone. None where it is damaged: it is paid for again."""
    try:
        return _decoded(told, tokens, numbers)
    except DAMAGED:
        return None


DAMAGED = (ValueError, TypeError, LookupError, AttributeError, struct.error)
"""What comes of reading a row that is not as we wrote it."""


def _decoded(told: bytes, tokens: bytes | None, numbers: bytes | None) -> dict[str, Reply]:
    tree = orjson.loads(told)
    if tokens is None or numbers is None:
        return {key: read_reply(found) for key, found in tree}
    replies, tops, lengths = tree
    pairs = list(zip(_cut(tokens, lengths), struct.unpack(f"<{len(numbers) // 8}d", numbers), strict=True))
    others = iter(pairs[len(tops) :])
    each = iter(
        [
            TokenLogprob(token, logprob, tuple(islice(others, count)))
            for (token, logprob), count in zip(pairs, tops, strict=False)
        ]
    )
    return {
        key: Reply(text, Usage(*said[:6]), FinishReason(said[6]), tuple(islice(each, said[-1])), *said[7:-1])
        for key, text, *said in replies
    }


def _cut(tokens: bytes, lengths: list[int]) -> Iterator[bytes]:
    end = 0
    for length in lengths:
        yield tokens[end : end + length]
        end += length


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
