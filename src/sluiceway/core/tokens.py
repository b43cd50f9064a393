"""Counting text in tokens, as the core needs it; models/tokens.py does it with tiktoken."""

from __future__ import annotations

from typing import Protocol


class Tokens(Protocol):
    """Counts and cuts text in tokens of one encoding."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...
