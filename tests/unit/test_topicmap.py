"""Every topic's name is made here, retry topics too."""

from __future__ import annotations

from tests.support.core import policy

from sluiceway.core.cascade import Role
from sluiceway.kafka.topics import declared
from sluiceway.topicmap import DELAYS, topic_map


def test_each_role_has_a_retry_topic_for_each_delay() -> None:
    """Named by role and milliseconds, and declared."""
    made = topic_map(policy())
    names = {topic.name for topic in declared()}
    for role in Role:
        assert tuple(made.retries[role]) == DELAYS == (10.0, 60.0)
        for delay, topic in made.retries[role].items():
            assert topic == f"sluiceway.retries-{role.value}-{round(delay * 1000)}"
            assert topic in names
            assert made.delays[topic] == delay
            assert made.reader_of(topic) is role
            assert topic in made.read_by(role)
            assert topic in made.written
    assert len(made.delays) == 4
    assert made.overrides() == {}


def test_a_topic_has_one_reader() -> None:
    """No role reads what the other retries."""
    made = topic_map(policy())
    assert not set(made.read_by(Role.JOBS)) & set(made.read_by(Role.ESCALATIONS))
    for role in Role:
        assert {made.reader_of(topic) for topic in made.read_by(role)} == {role}


def test_a_shadow_waits_in_topics_of_its_own() -> None:
    """Declared like the real ones; the real jobs are the only thing that both read."""
    real, shadow = topic_map(policy()), topic_map(policy(), shadow=True)
    assert not set(real.delays) & set(shadow.delays)
    assert all(topic.startswith("sluiceway.shadow.retries-") for topic in shadow.delays)
    topics = {topic.name: topic for topic in declared(overrides=shadow.overrides())}
    for topic in shadow.delays:
        like = topics[topic.replace("shadow.", "")]
        assert (topics[topic].schema, topics[topic].partitions) == ("schemas/retry.json", like.partitions)
