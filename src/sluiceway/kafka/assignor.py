"""`core.assignment` as aiokafka's partition assignor. What a member holds travels to the leader with its join.

aiokafka keeps an assignor's state in its class, so each member has a class of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import orjson
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from sluiceway.core.assignment import assign
from sluiceway.core.held import Partition

_VERSION = 0  # of Kafka's consumer protocol


class Evenly(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka ships no types
    """Its `name` is the group protocol that all members of a group must share."""

    name = "sluiceway-evenly"
    held: ClassVar[list[Partition]] = []
    generation: ClassVar[int] = -1

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> Any:
        held: dict[str, list[int]] = {}
        for topic, number in cls.held:
            held.setdefault(topic, []).append(number)
        known = orjson.dumps({"generation": cls.generation, "held": held})
        return ConsumerProtocolMemberMetadata(_VERSION, list(topics), known)

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        reads = {member: tuple(metadata.subscription) for member, metadata in members.items()}
        topics = {topic: cluster.partitions_for_topic(topic) or () for read in reads.values() for topic in read}
        before: dict[Partition, str] = {}
        # A member that was away may claim what another has by now: the younger claim counts.
        for _, member, held in sorted(_claim(member, metadata.user_data) for member, metadata in members.items()):
            before.update(dict.fromkeys(held, member))
        return {
            member: ConsumerProtocolMemberAssignment(_VERSION, _by_topic(partitions), b"")
            for member, partitions in assign(topics, reads, before).items()
        }

    @classmethod
    def on_assignment(cls, assignment: Any) -> None:
        cls.held = [Partition(*pair) for pair in assignment.partitions()]


def assignor() -> type[Evenly]:
    """A class for one member."""
    return type("Evenly", (Evenly,), {"held": [], "generation": -1})


def _claim(member: str, user_data: bytes) -> tuple[int, str, list[Partition]]:
    """The generation in which a member held what it names; (-1, member, []) for what is not ours to read."""
    try:
        said = orjson.loads(user_data)
        held = [Partition(topic, int(number)) for topic, numbers in said["held"].items() for number in numbers]
        return int(said["generation"]), member, held
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return -1, member, []


def _by_topic(partitions: Iterable[Partition]) -> list[tuple[str, list[int]]]:
    found: dict[str, list[int]] = {}
    for topic, number in partitions:
        found.setdefault(topic, []).append(number)
    return list(found.items())
