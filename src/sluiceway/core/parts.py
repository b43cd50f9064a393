"""The parts of a packed reply: which bytes of it, and which of its tokens, are the answer to which job.

Pure, and strict: a part is what stands under a job's number where the reply is one JSON object and says that number
once. Any text gives parts or none, never an exception, and never one job's answer to another.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sluiceway.core.call import FinishReason, Reply, TokenLogprob


@dataclass(frozen=True, slots=True)
class Part:
    """One job's answer as it stands in the packed reply, with the logprobs of just these bytes."""

    text: str
    logprobs: Sequence[TokenLogprob]


def parts(reply: Reply, count: int) -> dict[int, Part]:
    """The answers to the jobs 1 to `count`, each whose number is a key exactly once; {} where the reply is no object.

    Of a reply that was cut at its length those before the cut.
    """
    text = reply.text
    members = _members(text, cut=reply.finish is FinishReason.LENGTH)
    times = Counter([name for name, _, _ in members])
    numbers = {str(number): number for number in range(1, count + 1)}
    slices = _Slices(text, reply.logprobs)
    return {
        numbers[name]: Part(text[first:last], slices.of(first, last))
        for name, first, last in members
        if name in numbers and times[name] == 1
    }


_DECODER = json.JSONDecoder()
_BEFORE, _AFTER = frozenset({"", "```", "```json"}), frozenset({"", "```"})


def _members(text: str, *, cut: bool) -> list[tuple[str, int, int]]:
    """Key, beginning and end of the value of each member of the one object that `text` is, in order, repeats too.

    [] for anything else. JSON in a Markdown fence counts as JSON. `cut`: it may end early.
    """
    found: list[tuple[str, int, int]] = []
    start = text.find("{")
    if start < 0 or text[:start].strip() not in _BEFORE:
        return []
    try:
        at = _skip(text, start + 1)
        while text[at] != "}" or found:
            if text[at] != '"':
                return []
            name, at = json.decoder.scanstring(text, at + 1)  # type: ignore[attr-defined]  # stdlib, not in its stub
            at = _skip(text, at)
            if text[at] != ":":
                return []
            first = _skip(text, at + 1)
            _, last = _DECODER.raw_decode(text, first)
            at = _skip(text, last)
            if text[at] not in ",}":
                return []
            found.append((name, first, last))  # only now is it whole: of 10 a cut may leave 1
            if text[at] == "}":
                break
            at = _skip(text, at + 1)
        whole = text[at + 1 :].strip() in _AFTER
    except (ValueError, IndexError):
        return found if cut else []
    except RecursionError:
        return []
    return found if whole else []


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at


class _Slices:
    """The tokens of a text by their place in it; none at all where they do not spell it."""

    def __init__(self, text: str, tokens: Sequence[TokenLogprob]) -> None:
        self._text = text
        spelled = b"".join([token.token for token in tokens]) == text.encode("utf-8", "surrogatepass")
        self._tokens: Sequence[TokenLogprob] = tokens if spelled else ()
        self._ends = list(accumulate([len(token.token) for token in self._tokens]))

    def of(self, first: int, last: int) -> Sequence[TokenLogprob]:
        """The tokens of `text[first:last]`; one that reaches beyond is cut to what lies within, for what it cost."""
        if not self._tokens:
            return ()
        start = len(self._text[:first].encode("utf-8", "surrogatepass"))
        end = start + len(self._text[first:last].encode("utf-8", "surrogatepass"))
        run: list[TokenLogprob] = []
        at = bisect_right(self._ends, start)
        while at < len(self._tokens) and (begins := self._ends[at] - len(self._tokens[at].token)) < end:
            run.append(_cut(self._tokens[at], max(start - begins, 0), end - begins))
            at += 1
        return run


def _cut(token: TokenLogprob, first: int, last: int) -> TokenLogprob:
    part = token.token[first:last]
    if part == token.token:
        return token
    # Itself among the alternatives stays itself: a score must not take it for another.
    top = tuple([(part if other == token.token else other, logprob) for other, logprob in token.top])
    return TokenLogprob(part, token.logprob, top)
