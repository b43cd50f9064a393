"""The thin intake: one ordinary Faust agent that takes whole fetched batches from an in-memory channel.

The hand-over never blocks and is not under Faust's flow control: a rebalance clears a Faust channel and cancels a
waiting put, which ends its drain loop for good. The channel is bounded from outside: the fetch waits for its batches
to be taken before it fetches again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faust.channels import Channel
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from sluiceway.core.stream import Partition
from sluiceway.kafka.app import RoleApp
from sluiceway.ports import Record


@dataclass(frozen=True, slots=True)
class Batch:
    """What one fetch brought for one partition, under the epoch that was read before the fetch."""

    partition: Partition
    epoch: int
    records: Sequence[Record]
    position: int


class _IntakeChannel(Channel):  # type: ignore[type-arg]  # Faust's is generic in nothing that we use
    """Faust's channel gives each stream a bounded queue under its flow control; this one shares ours."""

    def _clone_args(self) -> Mapping[str, Any]:
        return {**super()._clone_args(), "queue": self._queue}


class Intake:
    """`put` hands batches to the agent, which calls `take` with them; whatever `take` raises crashes the app."""

    def __init__(self, app: RoleApp, take: Callable[[Sequence[Batch]], None]) -> None:
        self._queue: ThrowableQueue[Sequence[Batch]] = ThrowableQueue(
            flow_control=FlowControlEvent(initially_suspended=False)
        )
        self._taken: asyncio.Future[None] | None = None

        async def intake(stream: Any) -> None:
            async for batches in stream:
                try:
                    take(batches)
                except Exception as error:  # noqa: BLE001  top of the agent: Faust would log it, restart and go on
                    app.duties.crashed(error)
                finally:
                    if self._taken is not None and not self._taken.done():
                        self._taken.set_result(None)

        app.agent(_IntakeChannel(app, queue=self._queue), name=f"{app.conf.id}.intake")(intake)

    async def put(self, batches: Sequence[Batch]) -> None:
        """Returns when the agent has taken them; the caller is cancelled with its service when the app stops."""
        self._taken = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(batches)
        await self._taken
