"""Token log-probabilities of a chat completion, held to one law: their bytes, joined, are the reply's text."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sluiceway.core.call import TokenLogprob

_OUTSIDE = -9999.0  # what servers write of a token that is not among those they have measured


def read_logprobs(raw: object) -> list[TokenLogprob]:
    """The tokens of `choices[].logprobs`, or [] where one of them can't be read: a gap would shift all others.

    Of the alternatives to a token the likeliest is kept, as no score asks for more. A logprob of -9999 (OpenAI, vLLM:
    outside the top 20) is kept for the token itself, and no alternative's.
    """
    content = raw.get("content") if isinstance(raw, dict) else None
    if not isinstance(content, list):
        return []
    try:
        return [_as_openai(entry) for entry in content]
    except (ValueError, TypeError, KeyError):  # another dialect, or nonsense: read with care
        return _carefully(content)


def _as_openai(entry: Any) -> TokenLogprob:
    """A token in OpenAI's own form; KeyError, TypeError or ValueError for any other."""
    logprob, spelled = entry["logprob"], entry["bytes"]
    if type(logprob) is not float:
        raise TypeError
    likeliest, most = None, _OUTSIDE
    for other in entry["top_logprobs"]:
        lower = other["logprob"]
        if lower > most and other["bytes"] != spelled:
            if type(lower) is not float:
                raise TypeError
            likeliest, most = other, lower
    # Lists made of them: bytes of a bare number would be that many zeros.
    top = () if likeliest is None else ((bytes([*likeliest["bytes"]]), most if most < 0.0 else 0.0),)
    return TokenLogprob(bytes([*spelled]), logprob if logprob < 0.0 else 0.0, top)


def _carefully(content: list[Any]) -> list[TokenLogprob]:
    tokens = []
    for entry in content:
        token = _token(entry)
        if token is None:
            return []
        listed = entry.get("top_logprobs")
        others = [_token(other) for other in listed] if isinstance(listed, list) else []
        seen = [other for other in others if other and other[1] > _OUTSIDE and other[0] != token[0]]
        tokens.append(TokenLogprob(*token, (max(seen, key=itemgetter(1)),) if seen else ()))
    return tokens


def _token(entry: object) -> tuple[bytes, float] | None:
    if not isinstance(entry, dict):
        return None
    logprob = entry.get("logprob")
    if type(logprob) is not float and type(logprob) is not int:
        return None
    raw = entry.get("bytes")
    try:
        token = bytes(raw) if isinstance(raw, list) else entry["token"].encode()
    except (ValueError, TypeError, KeyError, AttributeError):  # numbers over 255, no token, or not text
        return None
    return token, min(float(logprob), 0.0)


def aligned(tokens: Sequence[TokenLogprob], text: str) -> Sequence[TokenLogprob]:
    """The tokens that spell `text`; () where no run of them does.

    Servers list more than the text: an end token, a reasoning part, white space that they strip from the content.
    """
    wanted = text.encode()
    joined = b"".join([token.token for token in tokens])
    if joined == wanted:
        return tokens
    start = joined.rfind(wanted)
    if start < 0 or not wanted:
        return ()
    end, at, run = start + len(wanted), 0, []
    for token in tokens:
        first, at = at, at + len(token.token)
        if at > start and first < end:
            part = token.token[max(start - first, 0) : end - first]
            run.append(token if part == token.token else TokenLogprob(part, token.logprob, token.top))
    return run
