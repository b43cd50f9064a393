"""What workers write: every record of the outgoing topics, and what a record says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import orjson

from tests.support.topics import Seen

JOBS = "sluiceway.jobs"
ESCALATIONS = "sluiceway.escalations"
RESULTS = "sluiceway.results"
REVIEWS = "sluiceway.reviews"
DEAD_LETTERS = "sluiceway.dead-letters"
OUTCOMES = (RESULTS, REVIEWS, DEAD_LETTERS)


class Outgoing:
    """Every record read so far from the topics that workers write, by topic, in the order of reading."""

    def __init__(self) -> None:
        self.by_topic: dict[str, list[Seen]] = defaultdict(list)
        self._bodies: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._ids: dict[str, set[str]] = defaultdict(set)
        self._read = 0

    def read(self, records: Sequence[Seen]) -> Self:
        """Takes in what is new in a reader's growing list."""
        for record in records[self._read :]:
            self.by_topic[record.topic].append(record)
            if record.topic == DEAD_LETTERS:
                continue
            try:
                tree = body(record)
                self._ids[record.topic].add(tree["job_id"])
            except (orjson.JSONDecodeError, KeyError):
                if record.topic != ESCALATIONS:  # where tests forge records too
                    raise
            else:
                self._bodies[record.topic].append(tree)
        self._read = len(records)
        return self

    def __getitem__(self, topic: str) -> list[Seen]:
        return self.by_topic[topic]

    def ids(self, *topics: str) -> set[str]:
        """The job ids seen on these topics; a dead letter has none."""
        return set().union(*(self._ids[topic] for topic in topics))

    def bodies(self, *topics: str) -> list[dict[str, Any]]:
        """The JSON of the records seen on these topics, in their order; not of dead letters."""
        return [tree for topic in topics for tree in self._bodies[topic]]


def body(record: Seen) -> dict[str, Any]:
    """The JSON object that the record's value holds."""
    found: dict[str, Any] = orjson.loads(record.value or b"null")
    return found


def attempts(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [step for step in outcome["trail"]["steps"] if step["step"] == "attempt"]


def routes(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [step for step in outcome["trail"]["steps"] if step["step"] == "routed"]
