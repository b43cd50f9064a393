"""Which member of a group reads which partition: each topic evenly, and what stays even stays where it is.

Topic by topic, because they do not weigh the same: a member that held its share in retry topics alone would stand idle
while the others answer all jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from sluiceway.core.held import Partition


def assign(
    topics: Mapping[str, Collection[int]], members: Mapping[str, Collection[str]], before: Mapping[Partition, str]
) -> dict[str, list[Partition]]:
    """The partitions of each member, none twice. `members` says which topics each reads; `before` who had what.

    Of each topic the members that read it get equally many, or one more. A member keeps what it had as far as that
    goes; the odd ones go to those that had more of the topic already, then to those with the least in all.
    """
    given: dict[str, list[Partition]] = {member: [] for member in sorted(members)}
    total: Counter[str] = Counter()
    for topic in sorted(topics):
        readers = [member for member in given if topic in members[member]]
        if not readers:
            continue
        kept: dict[str, list[Partition]] = {member: [] for member in readers}
        free: list[Partition] = []
        for number in sorted(topics[topic]):
            partition = Partition(topic, number)
            owner = before.get(partition)
            kept.get(owner or "", free).append(partition)
        share, odd = divmod(len(topics[topic]), len(readers))
        first = sorted(readers, key=lambda member: (-min(len(kept[member]), share + 1), total[member], member))
        quota = {member: share + (place < odd) for place, member in enumerate(first)}
        for member in readers:
            free += kept[member][quota[member] :]
            del kept[member][quota[member] :]
        free.sort()
        for member in readers:
            missing = quota[member] - len(kept[member])
            given[member] += sorted(kept[member] + free[:missing])
            del free[:missing]
            total[member] += quota[member]
    return given
