"""Publishing a backlog: every row a record of the jobs topic, counted when the broker has acked it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sluiceway.archive.backlog import BadRow, Row
from sluiceway.core.errors import InputError
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.security import Connection
from sluiceway.ports import Outgoing
from sluiceway.telemetry.traces import open_traces

_UNACKED = 10_000  # records; their memory is the bound on a file of any size
_BREATH = 256  # rows read before others may run
_STOP = 10.0  # seconds
_SHOWN = 5
_HEADERS = (("content-type", b"application/json"),)

Watcher = Callable[[int], None]
"""Told how many records are acked so far."""


@dataclass(slots=True)
class Published:
    """`refused` counts rows that are no jobs or do not fit the topic; the first few faults are kept, for the user."""

    sent: int = 0
    acked: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every row was acked."""
        return self.failure is None and not self.refused and self.acked == self.sent

    def refuse(self, origin: str, detail: str) -> None:
        self.refused += 1
        if len(self.faults) < _SHOWN:
            self.faults.append(f"{origin}: {detail}")


async def publish(
    connection: Connection,
    topic: str,
    rows: Iterable[Row | BadRow],
    published: Published,
    *,
    limit: int | None = None,
    watcher: Watcher,
    trace_sample: float | None = None,
) -> None:
    """Sends `rows` to `topic` and counts in `published`, which is right whenever this ends, cancelled too.

    Raises InputError where the cluster or the topic is not there, or the file breaks off (its rows are acked first).
    """
    traces = open_traces(trace_sample)
    publisher = Publisher(connection, [topic], sending=None if traces is None else traces.sending)
    await publisher.start()
    failed = asyncio.ensure_future(publisher.failed())
    sending = asyncio.ensure_future(_send(publisher, topic, rows, published, limit, watcher))
    try:
        await asyncio.wait((failed, sending), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        else:
            fault = failed.result()
            published.failure = fault.detail if isinstance(fault, InputError) else repr(fault)
    finally:
        failed.cancel()
        sending.cancel()
        await asyncio.wait((failed, sending))
        await publisher.stop(_STOP)
        if traces is not None:
            await traces.close(_STOP)


async def _send(
    publisher: Publisher,
    topic: str,
    rows: Iterable[Row | BadRow],
    published: Published,
    limit: int | None,
    watcher: Watcher,
) -> None:
    room = asyncio.Semaphore(_UNACKED)
    broken: InputError | None = None
    reading = iter(rows)
    read = 0
    while limit is None or read < limit:
        try:
            row = next(reading, None)
        except InputError as error:
            broken = error
            break
        if row is None:
            break
        read += 1
        if read % _BREATH == 0:
            await asyncio.sleep(0)
        if isinstance(row, BadRow):
            published.refuse(row.origin, row.detail)
            continue
        await room.acquire()
        published.sent += 1
        publisher.publish(_outgoing(topic, row), _on_ack(row, room, published, watcher))
    for _ in range(_UNACKED):  # all of it free: all that was sent is acked or handed back
        await room.acquire()
    if broken is not None:
        raise broken


def _outgoing(topic: str, row: Row) -> Outgoing:
    return Outgoing(topic, row.job.id.encode(), row.record, _HEADERS)


def _on_ack(
    row: Row, room: asyncio.Semaphore, published: Published, watcher: Watcher
) -> Callable[[TooLarge | None], None]:
    def on_ack(refused: TooLarge | None) -> None:
        room.release()
        if refused is None:
            published.acked += 1
            watcher(published.acked)
        else:
            published.sent -= 1
            published.refuse(row.job.origin, f"{refused.size} bytes; {refused.topic} takes {refused.limit}")

    return on_ack
