"""A fake model's tokens: a deterministic tokenizer on bytes, log-probabilities, and the meter.

Token bytes joined are the answer's bytes exactly; tokens may split a character and may span punctuation, as real
ones do. Counts are a rule of this file, not tiktoken's: a ledger has to believe the meter, not its own count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tests.support.fake_journal import Metered
from tests.support.fake_scripts import FakeAnswer, FakeRequest, schema_of

_PIECE = re.compile(rb" ?[A-Za-z]{1,5}|[0-9]{1,3}|[^A-Za-z0-9]{1,3}")
_CERTAIN = -1e-5


def pieces(text: bytes) -> list[bytes]:
    """The tokens of `text`: runs of up to 5 letters, 3 digits or 3 other bytes."""
    return _PIECE.findall(text)


class Spoken(NamedTuple):
    """One token as it is said: its bytes, log-probability, and the alternatives, best first (itself among them)."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class _Leaf(NamedTuple):
    """A scalar in an answer: the bytes before it, its own bytes, its top-level field, its schema's other values."""

    before: bytes
    own: bytes
    field: str
    others: tuple[bytes, ...]


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _scalar(value: Any) -> bytes:
    """A scalar as it stands inside its quotes."""
    return (json.dumps(value, ensure_ascii=False)[1:-1] if isinstance(value, str) else compact(value)).encode()


def _leaves(value: Any, schema: Mapping[str, Any]) -> tuple[list[_Leaf], bytes]:
    """The leaves of `value` in the order of its compact JSON, and the bytes after the last."""
    leaves: list[_Leaf] = []
    pending = bytearray()

    def walk(node: Any, part: Mapping[str, Any], field: str) -> None:
        nonlocal pending
        if isinstance(node, dict):
            pending += b"{"
            for place, (name, member) in enumerate(node.items()):
                pending += (b"," if place else b"") + compact(name).encode() + b":"
                walk(member, part.get("properties", {}).get(name, {}), field or name)
            pending += b"}"
        elif isinstance(node, list):
            pending += b"["
            for place, member in enumerate(node):
                pending += b"," if place else b""
                walk(member, part.get("items", {}), field)
            pending += b"]"
        else:
            quote = b'"' if isinstance(node, str) else b""
            others = tuple(_scalar(other) for other in part.get("enum", ()) if other != node)
            leaves.append(_Leaf(bytes(pending) + quote, _scalar(node), field, others))
            pending = bytearray(quote)

    walk(value, schema, "")
    return leaves, bytes(pending)


def _doubted(leaf: _Leaf, confidence: float, glued: bytes) -> list[Spoken]:
    """The leaf's tokens; their product is `confidence`, all doubt being where the value parts from its runner-up.

    `glued` is a prefix that its first token carries.
    """
    own = pieces(leaf.own) or [b""]
    rivals = [pieces(other) for other in leaf.others]
    place, rival_pieces = 0, [b"_"]
    if rivals:
        # The runner-up shares the longest beginning with the chosen value, as look-alike labels do.
        runner_up = max(rivals, key=lambda other: _shared(own, other))
        place = min(_shared(own, runner_up), len(own) - 1)
        first = list(dict.fromkeys(other[place] for other in (runner_up, *rivals) if len(other) > place))
        rival_pieces = [piece for piece in first if piece != own[place]] or [b"_"]
    spoken = []
    for number, token in enumerate(own):
        prefix = glued if number == 0 else b""
        if number != place or confidence >= 1:
            spoken.append(_certain(prefix + token))
            continue
        rest = 1 - confidence
        others = len(rival_pieces) - 1
        weights = [rest * 0.9] + [rest * 0.1 / max(1, others)] * others
        top = [(prefix + token, math.log(max(confidence, 1e-9)))]
        top += [(prefix + piece, math.log(weight)) for piece, weight in zip(rival_pieces, weights, strict=True)]
        spoken.append(Spoken(prefix + token, top[0][1], tuple(sorted(top, key=lambda pair: -pair[1]))))
    return spoken


def _shared(left: Sequence[bytes], right: Sequence[bytes]) -> int:
    same = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        same += 1
    return same


def _certain(token: bytes) -> Spoken:
    return Spoken(token, _CERTAIN, ((token, _CERTAIN), (b" ", -12.0)))


def speak(answer: FakeAnswer, request: FakeRequest) -> list[Spoken]:
    """The tokens of the answer; joined they are its text, and each scalar's product is its confidence."""
    sure = answer.confidence
    if answer.text is not None:
        tokens = pieces(answer.text.encode("utf-8", "surrogatepass"))
        each = math.log(sure if isinstance(sure, float) else 0.99) / max(1, len(tokens))
        return [Spoken(token, each, ((token, each), (b" ?", -9.0))) for token in tokens]
    frozen = sure if isinstance(sure, float | int) else tuple(sorted(sure.items()))
    return list(_speak(compact(answer.value), compact(schema_of(request) or {}), frozen, answer.straddle))


@lru_cache(maxsize=8192)
def _speak(
    value: str, schema: str, sure: float | tuple[tuple[str, float], ...], straddle: bool
) -> tuple[Spoken, ...]:  # fmt: skip
    leaves, after = _leaves(json.loads(value), json.loads(schema))
    by_field = dict(sure) if isinstance(sure, tuple) else {}
    spoken: list[Spoken] = []
    for leaf in leaves:
        confidence = by_field.get(leaf.field, 0.99) if isinstance(sure, tuple) else sure
        glued = leaf.before[-1:] if straddle and leaf.before[-1:] == b'"' else b""
        spoken += map(_certain, pieces(leaf.before[: len(leaf.before) - len(glued)]))
        spoken += _doubted(leaf, confidence, glued)
    spoken += map(_certain, pieces(after))
    return tuple(token for token in spoken if token.token)


def input_tokens(text: str) -> int:
    """A token for four bytes, rounded up."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


def meter(request: FakeRequest, answer: FakeAnswer, output: int) -> Metered:
    """What the provider bills. By hash of the job text half the jobs read the system prompt from the cache.

    Anthropic's share writes it instead in a quarter of the jobs; four tokens of every message are framing.
    """
    if answer.metered is not None:
        return answer.metered
    system, user = input_tokens(request.system), input_tokens(request.user) + 4
    place = request.share("cache")
    cached = system if place < 0.5 else 0
    written = system if request.api == "anthropic" and 0.5 <= place < 0.75 else 0
    return Metered(
        input_uncached=system + user - cached - written,
        input_cache_read=cached,
        input_cache_write_5m=written,
        output_text=output,
        output_reasoning=answer.reasoning_tokens,
    )
