"""Where a partition is read from when it is assigned. Nothing here guesses: a silent reset costs jobs or money."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sluiceway.core.errors import InputError
from sluiceway.core.stream import Partition
from sluiceway.kafka.group import Group


class From(StrEnum):
    EARLIEST = "earliest"
    LATEST = "latest"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a group without offsets begins (`--from`). `time` is in seconds since the epoch, for From.TIME."""

    at: From
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Opening:
    """Read `partition` from `offset`; `committed` and `metadata` are the group's own, None without any."""

    partition: Partition
    offset: int
    committed: int | None
    metadata: str


def parse_start(text: str) -> Start:
    """`earliest`, `latest` or an ISO 8601 time (UTC unless it names a zone). Raises InputError."""
    if text in (From.EARLIEST, From.LATEST):
        return Start(From(text))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            "start", f"--from {text!r} is no place to start. Mend: earliest, latest, or a time such as 2026-01-31T08:00"
        ) from None
    return Start(From.TIME, (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


async def openings(
    group: Group, partitions: Sequence[Partition], start: Start | None, own: Collection[str] = ()
) -> list[Opening]:
    """How to open each partition. Raises InputError where that is not ours to decide, else UnansweredError.

    With an offset of the group: there, if the partition still has it. (One beyond the end is found by the fetch: the
    embedded broker tells a wrong end, that of its last batch's first record.) Without one: an empty partition is opened
    at its end; a partition of a topic in which the group has other offsets was added later, and is read from its first
    record, and so is each of our `own` topics: what waits there is work already accepted; else `start` decides, and
    without a `start` it is refused.
    """
    if not partitions:
        return []
    bounds = await group.bounds(partitions)
    topics = {partition.topic for partition in partitions}
    committed = await group.committed([sibling for topic in sorted(topics) for sibling in group.siblings(topic)])
    known = {partition.topic for partition in committed}
    times = await group.at_time(partitions, start.time) if start and start.at is From.TIME else {}
    found = []
    for partition in partitions:
        first, end = bounds[partition]
        place = f"{partition.topic}[{partition.partition}]"
        if partition in committed:
            offset, metadata = committed[partition]
            if offset < first:
                raise InputError(
                    "offset_expired",
                    f"{place}: group {group.name} stands at {offset}, but retention has deleted everything before"
                    f" {first}: up to {first - offset} records were never read. Mend: set the group's offset with"
                    " kafka-consumer-groups --reset-offsets, knowing that they are lost",
                )
            found.append(Opening(partition, offset, offset, metadata))
        elif first == end:
            found.append(Opening(partition, end, None, ""))
        elif partition.topic in known or partition.topic in own:
            found.append(Opening(partition, first, None, ""))
        elif start is None:
            raise InputError(
                "start",
                f"{place}: group {group.name} has never read this topic, and it holds {end - first} records."
                " Mend: say where to begin, --from earliest, --from latest or --from TIME",
            )
        elif start.at is From.TIME:
            at = times.get(partition)
            found.append(Opening(partition, end if at is None else at, None, ""))
        else:
            found.append(Opening(partition, first if start.at is From.EARLIEST else end, None, ""))
    return found
