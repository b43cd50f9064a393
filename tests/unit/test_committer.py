"""Commits that go wrong: nobody takes them for done, and nobody waits for them for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from tests.support.stores import a_record

from sluiceway.core.errors import InputError
from sluiceway.core.stream import Commit, Limits, Partition, Stream
from sluiceway.kafka.committer import Committer
from sluiceway.kafka.group import Committed, Group
from sluiceway.kafka.meter import NoMeter
from sluiceway.kafka.role import RoleSettings
from sluiceway.ports import NoFlight

PLACE = Partition("jobs", 0)


class Tried:
    """A group whose commits end in a fault, until they are well."""

    def __init__(self, fault: Exception) -> None:
        self.fault: Exception | None = fault
        self.commits: list[Sequence[Commit]] = []

    async def commit(self, commits: Sequence[Commit], generation: int, within: float) -> Committed:  # noqa: ARG002  Group's
        self.commits.append(commits)
        if self.fault is not None:
            raise self.fault
        return Committed.DONE


def settled() -> Stream:
    """One job is settled and not committed."""
    stream = Stream(Limits())
    stream.assign(PLACE, 0, "", 0, 0.0)
    epoch = stream.epoch(PLACE)
    assert epoch is not None
    stream.fetched(PLACE, epoch, [a_record(0)], 1, 0.0)
    (job,) = stream.start(0.0)
    stream.settle(job, 0.0)
    return stream


@pytest.mark.parametrize("fault", [InputError("commit", "forbidden"), KeyError("a bug of ours, or of aiokafka")])
async def test_a_commit_that_dies_ends_the_role_and_is_never_taken_for_done(fault: Exception) -> None:
    """Whatever it died of, the role is told, and what is settled is still to be committed."""
    stream, group, failed = settled(), Tried(fault), list[BaseException]()
    committer = Committer(
        stream, cast(Group, group), RoleSettings("g", ("jobs",)), NoMeter(), NoFlight(), failed.append
    )
    loop = asyncio.get_running_loop()
    for tries in (1, 2):
        assert not await committer.now(loop.time() + 60.0)
        assert len(group.commits) == tries
        assert failed == [fault] * tries
    group.fault = None
    assert await committer.now(loop.time() + 60.0)
    assert [commit.offset for commit in group.commits[-1]] == [1]
