"""The end of an epoch comes to its end, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

import pytest
from tests.support.running import turns
from tests.support.stores import a_record

from sluiceway.core.errors import Bug
from sluiceway.core.stream import Partition
from sluiceway.kafka import consumer
from sluiceway.kafka.consumer import RoleConsumer, RoleSettings, _Parts
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import read_connection
from sluiceway.kafka.start import Opening
from sluiceway.ports import Outgoing, Record

PLACE = Partition("jobs", 0)


class Submitted:
    """A publisher that acks nothing."""

    failed_now = False

    def __init__(self) -> None:
        self.records: list[Outgoing] = []

    def submit(self, outgoing: Outgoing, _on_ack: object, _ticket: object) -> None:
        self.records.append(outgoing)


class Cut:
    """A role's parts whose last commit of the epoch ends in `fault`."""

    generation = 1

    def __init__(self, fault: BaseException) -> None:
        self.committer = self.fetch = self.group = self
        self.fault = fault

    def seek(self, partition: Partition, offset: int) -> None:
        pass

    async def now(self, until: float) -> bool:  # noqa: ARG002  Committer's
        raise self.fault

    def wake(self) -> None:
        pass


class Cutting:
    """A role with one job that runs until `gate` is set."""

    def __init__(self, fault: BaseException) -> None:
        self.published, self.gate = Submitted(), asyncio.Event()
        settings = RoleSettings("g", ("jobs",), revoke_budget=0.01)
        connection = read_connection("broker:9092", (), None, {})
        self.role = RoleConsumer(connection, settings, self.work, cast(Publisher, self.published))
        self.role._parts = cast(_Parts, Cut(fault))
        self.stream, self.jobs = self.role._stream, self.role._jobs
        self.assigned()

    async def work(self, record: Record) -> Outgoing:
        await self.gate.wait()
        return Outgoing("out", record.key, record.value or b"", ())

    def assigned(self) -> None:
        self.stream.assign(PLACE, 0, "", 0, 0.0)
        epoch = self.stream.epoch(PLACE)
        assert epoch is not None
        self.stream.fetched(PLACE, epoch, [a_record(0)], 1, 0.0)
        self.jobs.start(asyncio.get_running_loop().time())


async def test_a_revoke_that_is_cut_short_ends_its_epoch_all_the_same() -> None:
    """Its job runs on, joins the next epoch and is published there."""
    one = Cutting(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await one.role._revoked([PLACE])
    assert one.stream.partitions() == []
    assert one.jobs.detached == 1
    one.assigned()
    one.gate.set()
    await turns()
    assert [record.topic for record in one.published.records] == ["out"]
    assert one.jobs.detached == 0


async def test_a_fault_in_a_revoke_ends_the_role() -> None:
    """aiokafka, which called, would log it and go on; the epoch has ended here too."""
    fault = Bug("ours")
    one = Cutting(fault)
    await one.role._revoked([PLACE])
    assert await one.role.failed() is fault
    assert one.stream.partitions() == []
    assert one.jobs.detached == 1
    one.jobs.cancel()


async def test_an_opening_that_does_not_hear_of_its_end_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that wakes from a long sleep gets the answer and the end of the epoch at once; the answer won.

    What was opened then nobody revoked: it was read and committed beside its new owner.
    """
    asked, heard = asyncio.Event(), asyncio.Event()

    async def deaf(*_: object) -> list[Opening]:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        heard.set()
        return [Opening(PLACE, 0, 0, "")]

    monkeypatch.setattr(consumer, "openings", deaf)
    one = Cutting(Bug("none"))
    one.stream.revoke([PLACE])
    one.role._assigned([PLACE])
    await asked.wait()
    await one.role._revoking([])
    await heard.wait()
    await turns()
    assert one.stream.partitions() == []
    one.jobs.cancel()
