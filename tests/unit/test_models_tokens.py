"""Token counts: tiktoken's own, with no network, whatever the text."""

from __future__ import annotations

import pytest
import tiktoken_ext.openai_public  # type: ignore[import-untyped]  # a namespace package without types
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.models import tokens


def test_our_encodings_are_tiktokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split pattern and ranks are what the installed tiktoken would build, had it a network."""
    digests: dict[str, str] = {}

    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        digests[url.rpartition("/")[2].removesuffix(".tiktoken")] = expected_hash
        return {}

    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", load)
    for name in ("o200k_base", "cl100k_base"):
        theirs = getattr(tiktoken_ext.openai_public, name)()
        assert tokens._ENCODINGS[name] == (theirs["pat_str"], digests[name])


def test_known_texts_have_their_known_tokens() -> None:
    """As OpenAI's own examples show them."""
    assert tokens.load("cl100k_base").encode("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert tokens.load("cl100k_base").encode("hello world") == [15339, 1917]


@settings(deadline=None)  # the first example may load the encoding
@given(st.text(max_size=300))
def test_cutting_and_joining_gives_the_text_back(text: str) -> None:
    """Special tokens are plain text."""
    encoding = tokens.default()
    found = encoding.encode(text + "<|endoftext|>")
    assert encoding.decode(found) == text + "<|endoftext|>"
    assert encoding.count(text) == len(encoding.encode(text))


def test_a_hostile_text_cannot_stop_the_process() -> None:
    """A million spaces overflow tiktoken's regex engine in one piece; its panic is not even an Exception."""
    encoding = tokens.default()
    for text in (" " * 1_000_000, "\u3000" * 400_000, "a" * 300_000):
        assert encoding.decode(encoding.encode(text)) == text
    assert encoding.encode("\ud800")
