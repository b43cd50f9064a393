"""Which dead letters go back, and as what: decided from their headers alone, and their value where those are silent.

A dead letter that goes back is the original record again: value, key and the user's headers byte for byte, on the topic
it came from. Our facts are replaced by two headers (`core.round`): the next round, and the job's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from sluiceway.core import round as rounds
from sluiceway.core.round import Headers

_TOPIC = "__dlq.errors.topic"
_PARTITION = "__dlq.errors.partition"
_OFFSET = "__dlq.errors.offset"
_REASON = "sluiceway.reason"


class Mark(NamedTuple):
    """Where a dead letter lies, and its time stamp (milliseconds), which tells it from one of a topic made anew."""

    partition: int
    offset: int
    stamp: int


class Fate(StrEnum):
    """What a redrive does with a dead letter."""

    REDRIVEN = "redriven"
    BEFORE = "redriven_before"  # an earlier run has sent it back
    UNMATCHED = "unmatched"  # the filters leave it
    PARKED = "parked"  # it has died in the last round that may be opened
    FOREIGN = "foreign"  # no dead letter of ours: nothing says where it came from


@dataclass(frozen=True, slots=True)
class Letter:
    """What is known of a dead letter: `topic` is where it came from, and `names` are all ids its job may go by."""

    mark: Mark
    topic: str
    reason: str
    task: str | None
    job_id: str
    round: int
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Filter:
    """All that are given must hold; of a set one is enough. Times of death are in seconds since the epoch."""

    reasons: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    since: float | None = None
    until: float | None = None

    def matches(self, letter: Letter) -> bool:
        """`since` is the first instant that matches, `until` the first that does not any more."""
        died = letter.mark.stamp / 1000
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.tasks or letter.task in self.tasks)
            and (not self.topics or letter.topic in self.topics)
            and (not self.ids or not self.ids.isdisjoint(letter.names))
            and (self.since is None or died >= self.since)
            and (self.until is None or died < self.until)
        )


def read(mark: Mark, value: bytes | None, headers: Headers) -> Letter | None:
    """The dead letter that lies at `mark`; None for a record that does not say where it came from and why it died."""
    facts = {name: content.decode("utf-8", "replace") for name, content in headers if content is not None}
    topic, partition, offset, reason = (facts.get(name) for name in (_TOPIC, _PARTITION, _OFFSET, _REASON))
    if value is None or not topic or not partition or not offset or not reason:
        return None
    tree = _peeked(value)
    own = next((tree[name] for name in ("id", "job_id") if _is_id(tree.get(name))), None)
    said = rounds.stated(headers)
    # An older version wrote no such headers. The id in them counts only where the job's JSON names none.
    round_ = said.round if rounds.ROUND in facts else _counted(tree.get("round"))
    job_id = said.job_id or f"{topic}-{partition}-{offset}"
    task = facts.get(rounds.TASK) or tree.get("task")
    names = frozenset(name for name in (job_id, own) if name is not None)
    return Letter(mark, topic, reason, task if isinstance(task, str) else None, job_id, round_, names)


def decide(
    letter: Letter | None, wanted: Filter, *, max_rounds: int, before: Collection[Mark], never: Collection[str]
) -> Fate:
    """What becomes of `letter`. `before`: what went back already; `never`: topics that nothing is sent to."""
    if letter is None or letter.topic in never:
        return Fate.FOREIGN
    if letter.mark in before:
        return Fate.BEFORE
    if not wanted.matches(letter):
        return Fate.UNMATCHED
    return Fate.PARKED if letter.round >= min(max_rounds, rounds.MOST) else Fate.REDRIVEN


def revived(headers: Headers, letter: Letter) -> Headers:
    """The headers under which `letter` goes back: the user's own, and what opens the next round."""
    return *rounds.kept(headers), *rounds.written(letter.job_id, letter.round + 1)


@dataclass(slots=True)
class Tally:
    """How many dead letters met which fate; of each, by (reason, topic, round it died in)."""

    counts: Counter[Fate] = field(default_factory=Counter)
    kinds: dict[Fate, Counter[tuple[str, str, int]]] = field(default_factory=dict)

    def add(self, fate: Fate, letter: Letter | None) -> None:
        self.counts[fate] += 1
        if letter is not None:
            self.kinds.setdefault(fate, Counter())[letter.reason, letter.topic, letter.round] += 1

    def rows(self, fates: Iterable[Fate] = (Fate.REDRIVEN, Fate.PARKED)) -> list[tuple[Fate, str, str, int, int]]:
        """(fate, reason, topic, round it died in, count), the largest count of each fate first."""
        return [(fate, *kind, count) for fate in fates for kind, count in self.kinds.get(fate, Counter()).most_common()]

    def topics(self, fate: Fate) -> set[str]:
        """The topics that letters of this fate came from."""
        return {topic for _, topic, _ in self.kinds.get(fate, ())}


def _peeked(value: bytes) -> dict[str, Any]:
    try:
        tree = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= rounds.ID_CHARS


def _counted(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= rounds.MOST else 0
