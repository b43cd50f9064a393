"""Laws of a group's assignment, for any topics, members and history."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.assignment import assign
from sluiceway.core.held import Partition

TOPICS = st.dictionaries(st.sampled_from(["jobs", "later", "much-later"]), st.integers(0, 13).map(range), min_size=1)
MEMBERS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.sets(st.sampled_from(["jobs", "later", "much-later"])), min_size=1
)
HISTORY = st.dictionaries(
    st.builds(Partition, st.sampled_from(["jobs", "later", "gone"]), st.integers(0, 15)), st.text("abcdef", max_size=2)
)


@given(TOPICS, MEMBERS, HISTORY)
def test_every_partition_that_is_read_has_one_reader_of_its_topic_and_each_topic_is_even(
    topics: dict[str, range], members: dict[str, set[str]], before: dict[Partition, str]
) -> None:
    given_ = assign(topics, members, before)
    assert set(given_) == set(members)
    everything = Counter(partition for partitions in given_.values() for partition in partitions)
    read = {topic for reads in members.values() for topic in reads}
    wanted = {Partition(topic, number) for topic, numbers in topics.items() for number in numbers if topic in read}
    assert everything == Counter(wanted)
    for topic in topics:
        counts = [
            sum(partition.topic == topic for partition in given_[member])
            for member, reads in members.items()
            if topic in reads
        ]
        assert not counts or max(counts) - min(counts) <= 1
        assert all(p.topic in members[member] for member, partitions in given_.items() for p in partitions)


@given(TOPICS, MEMBERS, HISTORY)
def test_an_even_assignment_moves_nothing(
    topics: dict[str, range], members: dict[str, set[str]], before: dict[Partition, str]
) -> None:
    first = assign(topics, members, before)
    owners = {partition: member for member, partitions in first.items() for partition in partitions}
    assert assign(topics, members, owners) == first


@given(TOPICS, MEMBERS)
def test_a_member_that_joins_takes_its_share_and_the_others_exchange_nothing(
    topics: dict[str, range], members: dict[str, set[str]]
) -> None:
    first = assign(topics, members, {})
    owners = {partition: member for member, partitions in first.items() for partition in partitions}
    after = assign(topics, {**members, "newcomer": set(topics)}, owners)
    for member in members:
        assert set(after[member]) <= set(first[member])
