"""The declared topics fit together: sizes follow, names keep to the rules, overrides are checked."""

from __future__ import annotations

import pytest

from sluiceway.core.errors import InputError
from sluiceway.kafka.topics import PREFIX, SIZE, declared, room_for

NAMES = {
    "jobs", "escalations", "results", "reviews", "review-decisions", "dead-letters", "retries-jobs-60000",
    "retries-escalations-60000", "retries-jobs-10000", "retries-escalations-10000", "redriven", "control",
}  # fmt: skip


def test_every_topic_of_the_design_is_declared_with_owner_and_schema() -> None:
    topics = declared()
    assert {topic.name.removeprefix(PREFIX) for topic in topics} == NAMES
    assert topics[0].name == "sluiceway.jobs"
    for topic in topics:
        assert topic.owner
        assert topic.schema.startswith("schemas/")
        assert "_" not in topic.name
        assert (topic.replicas, topic.config["min.insync.replicas"]) == (3, "2")


def test_whatever_is_accepted_on_jobs_fits_on_every_topic_it_can_go_to() -> None:
    for size in (1_048_576, 2_000_000, 9_999_999):
        topics = {t.name: t for t in declared(overrides={"jobs": {"config": {SIZE: size}}})}
        others = [t for name, t in topics.items() if name not in ("sluiceway.jobs", "sluiceway.control")]
        assert all(topic.size >= room_for(size) for topic in others)
        assert all(topics["sluiceway.dead-letters"].size > t.size for t in others if "dead" not in t.name)
    assert room_for(1_000_000) == 1_400_000 + 262_144


def test_only_control_is_compacted() -> None:
    assert [t.name for t in declared() if t.config["cleanup.policy"] != "delete"] == ["sluiceway.control"]


def test_one_node_takes_one_replica_and_one_in_sync() -> None:
    for topic in declared(replicas=1, partitions=4):
        assert (topic.replicas, topic.config["min.insync.replicas"]) == (1, "1")
        assert topic.partitions <= 4


def test_a_foreign_topic_is_declared_like_another_and_counts_for_the_sizes() -> None:
    topics = {
        t.name: t for t in declared(overrides={"support.tickets.v2": {"like": "jobs", "config": {SIZE: 5_000_000}}})
    }
    assert topics["support.tickets.v2"].size == 5_000_000
    assert topics["sluiceway.escalations"].size >= room_for(5_000_000)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"jobs": {"partition": 3}}, "unknown"),
        ({"jobs": {"partitions": 0}}, "at least 1"),
        ({"mine": {"like": "nothing"}}, "names no topic"),
    ],
)
def test_an_override_that_does_not_fit_is_told(overrides: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        declared(overrides=overrides)
