"""What a worker tells about itself: whether it is ready, the gauges of /metrics, the facts its watchdog looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sluiceway.core.cascade import Role
from sluiceway.core.outcome import DeadLetter
from sluiceway.core.watchdog import Facts, RoleFacts
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.kafka.publish import Publisher
from sluiceway.ports import Record
from sluiceway.runner import Runner
from sluiceway.telemetry import logs
from sluiceway.telemetry.logs import Event
from sluiceway.telemetry.metrics import Metrics


class KafkaMeter:
    """What the Kafka layer tells, as metrics and log lines."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def taken(self, group: str, topic: str, count: int) -> None:
        self._metrics.taken.labels(group, topic).inc(count)

    def settled(self, group: str, topic: str, count: int) -> None:
        self._metrics.settled.labels(group, topic).inc(count)

    def notice(self, event: str, **fields: str | int | float) -> None:
        self._metrics.notices.labels(event).inc()
        logs.logger().info(Event.KAFKA, notice=event, **fields)


class Vitals:
    """`consumers` is the worker's own mapping, empty until they are made; `slow` tells the watchdog's findings."""

    def __init__(
        self,
        metrics: Metrics,
        runner: Runner,
        publisher: Publisher,
        consumers: Mapping[Role, RoleConsumer],
        slow: Callable[[], list[str]],
    ) -> None:
        self._metrics = metrics
        self._runner = runner
        self._publisher = publisher
        self._consumers = consumers
        self._slow = slow

    def ready(self) -> tuple[bool, list[str]]:
        if not self._consumers:
            return False, ["starting"]
        roles = self._consumers.values()
        reasons = [f"{role.settings.group}: {reason}" for role in roles for reason in role.ready()[1]]
        reasons += self._slow()
        return not reasons, reasons

    def facts(self) -> Facts:
        """One look, for the watchdog. Jobs that sleep by rule, and those that wait for the broker, hold no work up."""
        roles = []
        for role, consumer in self._consumers.items():
            stats = consumer.stats()
            waiting = stats.unacked + self._runner.waiting[role]
            roles.append(
                RoleFacts(
                    consumer.settings.group, stats.running, waiting, stats.idle, stats.watermark_age, stats.commit_age
                )
            )
        return Facts(tuple(roles), self._publisher.oldest())

    def refresh(self) -> None:
        """Brings the gauges up to date: called as /metrics is read."""
        metrics = self._metrics
        metrics.worth(self._runner.worth)
        metrics.lag.clear()
        for consumer in self._consumers.values():
            group, stats = consumer.settings.group, consumer.stats()
            metrics.in_flight.labels(group).set(stats.running + stats.queued)
            metrics.watermark_age.labels(group).set(stats.watermark_age)
            if stats.last_commit is not None:
                metrics.last_commit.labels(group).set(time.time() - stats.last_commit)
            for partition, lag in stats.lag.items():
                metrics.lag.labels(group, partition.topic, str(partition.partition)).set(lag)

    def tombstone(self, record: Record) -> None:
        self._metrics.tombstones.labels(record.topic).inc()

    def dead_letter(self, record: Record, letter: DeadLetter, task: str) -> None:
        self._metrics.dead_letter(task)
        logs.logger().warning(
            Event.DEAD_LETTER,
            reason=letter.reason.value,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            sha256=letter.sha256,
        )
