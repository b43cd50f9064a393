"""A group's offsets are believed only where the broker has said them."""

from __future__ import annotations

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v1, OffsetFetchResponse_v3

from sluiceway.kafka.committed import fetch_committed, heed

FIRST, SECOND = TopicPartition("jobs", 0), TopicPartition("jobs", 1)
LOADING = OffsetFetchResponse_v3(0, [], kafka_errors.GroupLoadInProgressError.errno)
WHOLE = OffsetFetchResponse_v3(0, [("jobs", [(0, 7, "map", 0), (1, -1, "", 0)])], 0)


class Coordinator:
    """aiokafka's own code for reading commits, over a broker that gives these answers in turn."""

    group_id = "group"
    coordinator_id = 1
    _retry_backoff_ms = 1
    fetch_committed_offsets = GroupCoordinator.fetch_committed_offsets
    _do_fetch_commit_offsets = GroupCoordinator._do_fetch_commit_offsets

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.dead = 0

    async def ensure_coordinator_known(self) -> None:
        pass

    def coordinator_dead(self) -> None:
        self.dead += 1

    async def _send_req(self, request: OffsetFetchRequest) -> object:
        assert request._partitions == [("jobs", [0, 1])]
        return self.answers.pop(0)


class Consumer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator


async def test_aiokafka_itself_takes_a_loading_coordinator_for_a_group_without_offsets() -> None:
    """Why committed.py is there; once this fails it can go."""
    assert await Coordinator(LOADING).fetch_committed_offsets([FIRST, SECOND]) == {}


async def test_an_error_that_stands_for_the_whole_answer_is_raised() -> None:
    with pytest.raises(kafka_errors.GroupLoadInProgressError):
        await fetch_committed(Coordinator(LOADING), [FIRST, SECOND])


async def test_a_coordinator_that_has_moved_is_looked_up_again() -> None:
    moved = Coordinator(OffsetFetchResponse_v3(0, [], kafka_errors.NotCoordinatorForGroupError.errno))
    with pytest.raises(kafka_errors.NotCoordinatorForGroupError):
        await fetch_committed(moved, [FIRST, SECOND])
    assert moved.dead == 1


@pytest.mark.parametrize(
    "answer",
    [
        OffsetFetchResponse_v3(0, [("jobs", [(0, 7, "", 0)])], 0),
        OffsetFetchResponse_v3(0, [("jobs", [(0, 7, "", 0), (1, -1, "", 3)])], 0),
        OffsetFetchResponse_v1([("jobs", [(0, 7, "", 0), (1, -1, "", 3)])]),
    ],
)
async def test_a_partition_without_an_answer_of_its_own_is_not_one_without_an_offset(answer: object) -> None:
    with pytest.raises(kafka_errors.UnknownTopicOrPartitionError):
        await fetch_committed(Coordinator(answer), [FIRST, SECOND])


async def test_what_the_broker_says_is_what_is_found() -> None:
    """And nothing is asked of it where nothing is wanted."""
    wanted = {FIRST: OffsetAndMetadata(7, "map")}
    assert await fetch_committed(Coordinator(WHOLE), [FIRST, SECOND]) == wanted
    older = OffsetFetchResponse_v1([("jobs", [(0, 7, "map", 0), (1, -1, "", 0)])])
    assert await fetch_committed(Coordinator(older), [FIRST, SECOND]) == wanted
    assert await fetch_committed(Coordinator(), []) == {}


async def test_a_consumer_that_heeds_errors_asks_again() -> None:
    coordinator = Coordinator(LOADING, LOADING, WHOLE)
    heed(Consumer(coordinator))  # type: ignore[arg-type]  # the one part of it that is used
    assert await coordinator.fetch_committed_offsets([FIRST, SECOND]) == {FIRST: OffsetAndMetadata(7, "map")}
    assert not coordinator.answers
