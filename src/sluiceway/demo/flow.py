"""Tickets in, outcomes out: publishes at a steady pace and follows each ticket to its one outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import orjson

from sluiceway.core import outcome as outcomes
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import Result, Review
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task
from sluiceway.demo import report, rows
from sluiceway.demo.picture import Live
from sluiceway.demo.report import Figures
from sluiceway.demo.rows import NO_ANSWER, Row, Truth
from sluiceway.demo.tickets import Ticket
from sluiceway.demo.workers import WorkerProcess
from sluiceway.kafka.publish import Publisher, TooLarge
from sluiceway.kafka.watch import Watch
from sluiceway.ports import Outgoing, Record
from sluiceway.topicmap import TopicMap

_PACE = 60.0  # tickets a second, so that there is a flow to see
_SPREAD = 8.0  # seconds that publishing takes at most: more tickets are published faster
_TICK = 0.05
_LOOK = 0.2
_PATIENCE = 60.0  # seconds without any outcome


class Flow:
    """One run's tickets, followed through Kafka. `view` is told of each outcome as it comes."""

    def __init__(
        self,
        task: Task,
        policy: Policy,
        topics: TopicMap,
        goes_to: str,
        publisher: Publisher,
        watch: Watch,
        workers: Sequence[WorkerProcess],
        view: Live,
    ) -> None:
        self._task, self._policy, self._topics = task, policy, topics
        self._goes_to = goes_to
        self._publisher, self._watch, self._workers = publisher, watch, workers
        self._view = view
        self._tickets: dict[str, Ticket] = {}
        self._published: dict[str, float] = {}
        self._rows: dict[str, Row] = {}
        self._escalated: set[str] = set()
        self._last = 0.0  # when the last outcome was written
        self._column = policy.models[task.reference.model].column

    async def run(self, tickets: Sequence[Ticket]) -> Figures:
        """The figures, once every ticket has its outcome. Raises InputError: a worker ended, or nothing moves."""
        self._tickets = {ticket.id: ticket for ticket in tickets}
        began = time.time()
        publishing = asyncio.ensure_future(self._publish(tickets))
        try:
            await self._follow(publishing)
        finally:
            publishing.cancel()
        rows_ = [self._rows[ticket.id] for ticket in tickets]
        return report.figures(rows_, seconds=max(self._last - began, 0.001), bar=self._task.bar is not None)

    async def _publish(self, tickets: Sequence[Ticket]) -> None:
        """Publishes by and by, all that is due at each tick, and waits for the broker's acks."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        pace = max(_PACE, len(tickets) / _SPREAD)
        while self._view.published < len(tickets):
            due = min(len(tickets), 1 + int((loop.time() - began) * pace))
            acks = [self._send(ticket) for ticket in tickets[self._view.published : due]]
            for refused in await asyncio.gather(*acks):
                if refused is not None:
                    raise InputError("publish", f"{refused.topic} takes {refused.limit} bytes only. Mend: raise it")
                self._view.published += 1
            await asyncio.sleep(_TICK)

    def _send(self, ticket: Ticket) -> asyncio.Future[TooLarge | None]:
        self._published[ticket.id] = time.time()
        value = orjson.dumps(ticket.job(self._task.name))
        return self._publisher.send(Outgoing(self._goes_to, ticket.id.encode(), value, ()))

    async def _follow(self, publishing: asyncio.Future[None]) -> None:
        """Reads outcomes until every ticket has one."""
        moved = time.monotonic()
        while len(self._rows) < len(self._tickets):
            if publishing.done():
                publishing.result()
            for worker in self._workers:
                worker.check()
            for record in await self._watch.records(_LOOK):
                if self._take(record):
                    moved = time.monotonic()
            if time.monotonic() - moved > _PATIENCE:
                left = len(self._tickets) - len(self._rows)
                detail = f"nothing moved for {_PATIENCE:.0f} s and {left} tickets have no outcome"
                raise InputError("demo", f"{detail}. Mend: see that no other worker of these groups runs elsewhere")

    def _take(self, record: Record) -> bool:
        """Whether the record is about one of our tickets."""
        ticket = self._tickets.get((record.key or b"").decode("utf-8", "replace"))
        if ticket is None or record.value is None:
            return False
        if record.topic == self._topics.escalations:
            self._escalated.add(ticket.id)
            self._view.escalated = len(self._escalated)
        elif ticket.id not in self._rows:  # at least once: a repetition changes nothing
            row = self._row(record, record.value, ticket)
            self._rows[ticket.id] = row
            self._last = max(self._last, record.timestamp)
            self._view.add(row, ticket.text)
        return True

    def _row(self, record: Record, value: bytes, ticket: Ticket) -> Row:
        truth = self._truth(ticket)
        seconds = max(0.0, record.timestamp - self._published[ticket.id])
        if record.topic == self._topics.dead_letters:
            return Row(ticket.id, "dead_letter", gold=truth.gold, seconds=seconds)
        review = record.topic == self._topics.reviews
        outcome = outcomes.decode(Review, value) if review else outcomes.decode(Result, value)
        return rows.row(outcome, self._task.reference.model, truth, seconds)

    def _truth(self, ticket: Ticket) -> Truth:
        """Of a ticket: gold only where the task has that label, the reference only where it is recorded."""
        labels = self._task.labels
        if labels is None:
            return Truth()
        recorded = ticket.recorded.get(self._column) if self._column else None
        if recorded is not None and recorded not in labels:
            recorded = NO_ANSWER
        return Truth(ticket.gold if ticket.gold in labels else None, recorded)
