"""Log-probabilities as they are read: of all alternatives to a token the likeliest is enough."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.call import FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.score import from_logprobs
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.models.logprobs import read_logprobs

_LOGPROBS = st.floats(-12.0, 0.0, allow_nan=False) | st.just(-9999.0)
_WORDS = st.sampled_from([b"a", b"b", b"bill", b"\xc3", b"\xc3\xa9", b"", b'"'])


@st.composite
def entries(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The tokens of {"label":"..."} as a server lists them: what was generated is among the alternatives, or not."""
    spelled = [b'{"label":"', *draw(st.lists(st.sampled_from([b"bill", b"ing", b"\xc3\xa9"]), min_size=1, max_size=3))]
    careful = draw(st.booleans())  # a dialect that leaves the bytes of ASCII tokens out
    return [
        {
            **_told(token, draw(st.floats(-12.0, 0.0)), careful),
            "top_logprobs": [_told(draw(_WORDS | st.just(token)), draw(_LOGPROBS), careful) for _ in range(5)],
        }
        for token in (*spelled, b'"}')
    ]


def _told(token: bytes, logprob: float, careful: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
    if careful and token.isascii():
        told["bytes"] = None
    return told


@given(entries())
def test_a_score_is_what_all_alternatives_would_make_it(content: list[dict[str, Any]]) -> None:
    """Label probability and margin: of whatever else stood in a token's place only the likeliest counts."""
    read = read_logprobs({"content": content})
    whole = [
        TokenLogprob(
            _bytes(entry),
            entry["logprob"],
            tuple((_bytes(o), o["logprob"]) for o in entry["top_logprobs"] if o["logprob"] > -9999.0),
        )
        for entry in content
    ]
    text = b"".join([token.token for token in whole]).decode()
    gate = Gate(score=ScoreKind.MARGIN, threshold=0.5)
    found, wanted = (
        from_logprobs(gate, Reply(text, Usage(), FinishReason.STOP, tokens), ("label",), per_field=False)
        for tokens in (read, whole)
    )
    assert found == wanted
    assert found.value is not None
    assert all(len(token.top) <= 1 for token in read)


def _bytes(entry: dict[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if entry["bytes"] is not None else entry["token"].encode()
