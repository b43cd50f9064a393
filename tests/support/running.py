"""`RunningJobs` in tests: one partition, work that waits at a gate, a publisher that only notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sluiceway.core.alone import Alone
from sluiceway.core.stream import Limits, Order, Partition, Stream
from sluiceway.kafka.jobs import RunningJobs
from sluiceway.kafka.meter import NoMeter
from sluiceway.kafka.role import NoHolds, RoleSettings
from sluiceway.ports import Flight, NoFlight, Outgoing, Record

Submitted = tuple[Outgoing, Callable[..., None], Any]


class Notes:
    """The part of `Publisher` that jobs use; `ack` answers all that was submitted."""

    def __init__(self) -> None:
        self.sent: list[Submitted] = []

    def submit(self, outgoing: Outgoing, on_ack: Callable[..., None], ticket: Any) -> None:
        self.sent.append((outgoing, on_ack, ticket))

    def ack(self) -> None:
        sent, self.sent = self.sent, []
        for outgoing, on_ack, ticket in sent:
            on_ack(ticket, outgoing, None)


class RunningRole:
    """To be made in the running loop. `ran` has each record whose work began; it goes on once `gate` is set."""

    def __init__(
        self,
        flight: Flight | None = None,
        *,
        topic: str = "jobs",
        order: Order = Order.NONE,
        suspect: Callable[[Record], bool] | None = None,
        alone: Alone | None = None,
    ) -> None:
        self.partition = Partition(topic, 0)
        self.gate = asyncio.Event()
        self.ran: list[Record] = []
        self.failed: list[BaseException] = []
        self.publisher = Notes()
        limits = Limits(order=order)
        self.stream = Stream(limits, suspect=suspect, alone=alone)
        self.jobs = RunningJobs(
            self.stream,
            self.work,
            self.publisher,  # type: ignore[arg-type]  # what jobs use of it
            RoleSettings("g", (topic,), limits),
            NoMeter(),
            flight or NoFlight(),
            NoHolds(),
            None,
            None,
            self.failed.append,
            lambda: None,
        )
        self.assign()

    async def work(self, record: Record) -> Outgoing | None:
        self.ran.append(record)
        await self.gate.wait()
        return Outgoing("out", record.key, record.value, ())

    async def run(self, *records: Record) -> None:
        """They are fetched, and may start."""
        epoch = self.stream.epoch(self.partition)
        assert epoch is not None
        self.stream.fetched(self.partition, epoch, records, records[-1].offset + 1, 0.0)
        self.jobs.start(asyncio.get_running_loop().time())
        await turns()

    def assign(self) -> None:
        self.stream.assign(self.partition, 0, "", 0, 0.0)

    def revoke(self) -> None:
        self.stream.revoke([self.partition])
        self.jobs.part()


async def turns(count: int = 6) -> None:
    """So many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)
