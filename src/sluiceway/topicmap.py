"""Which topics a policy reads and writes: the one place where a topic's name is made.

Shadow runs read the same jobs under groups of their own and write to `sluiceway.shadow.*` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluiceway.core.cascade import Role
from sluiceway.core.job import Source
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task

PREFIX = "sluiceway."
DELAYS = (10.0, 60.0)
"""The waits on offer outside a worker, in seconds; topics/retries-*.yaml has a topic for each and each role."""


@dataclass(frozen=True, slots=True)
class TopicMap:
    """`jobs`: what the jobs role reads. `foreign` maps a source topic to its task, `results` a task to its topic.

    `retries`: where a role's job goes to wait, by the seconds it is held back there.
    """

    jobs: tuple[str, ...]
    foreign: Mapping[str, tuple[str, Source]]
    results: Mapping[str, str]
    escalations: str
    reviews: str
    dead_letters: str
    retries: Mapping[Role, Mapping[float, str]]
    groups: Mapping[Role, str]

    @property
    def delays(self) -> Mapping[str, float]:
        """The seconds that each retry topic holds a record back."""
        return {topic: delay for topics in self.retries.values() for delay, topic in topics.items()}

    def reader_of(self, topic: str) -> Role:
        """The role that reads `topic`."""
        own = (self.escalations, *self.retries[Role.ESCALATIONS].values())
        return Role.ESCALATIONS if topic in own else Role.JOBS

    def read_by(self, role: Role) -> tuple[str, ...]:
        own = self.jobs if role is Role.JOBS else (self.escalations,)
        return (*own, *self.retries[role].values())

    @property
    def written(self) -> tuple[str, ...]:
        """Every topic an outcome or a hand-over can go to."""
        onward = (self.escalations, *self.results.values(), self.reviews, *self.delays, self.dead_letters)
        return tuple(dict.fromkeys(onward))

    def overrides(self) -> dict[str, dict[str, Any]]:
        """For `kafka.topics.declared`: the topics that topics/*.yaml does not name, each with the one it is like."""
        retries = {topic: _retries(role, delay) for role in Role for delay, topic in self.retries[role].items()}
        names = ("jobs", "escalations", "results", "reviews", "dead-letters", *retries.values())
        named = {PREFIX + name for name in names}
        like = dict.fromkeys(self.jobs, "jobs")
        like |= dict.fromkeys(self.results.values(), "results")
        like |= retries | {self.escalations: "escalations", self.reviews: "reviews", self.dead_letters: "dead-letters"}
        return {topic: {"like": kind} for topic, kind in like.items() if topic not in named}


def topic_map(policy: Policy, *, shadow: bool = False) -> TopicMap:
    """The topics of `policy`."""
    out = PREFIX + "shadow." if shadow else PREFIX
    foreign = {
        task.source.topic: (name, _source(task)) for name, task in policy.tasks.items() if task.source is not None
    }
    own = [task.topic for task in policy.tasks.values() if task.topic is not None]
    shared = (
        [PREFIX + "jobs"] if any(task.topic is None and task.source is None for task in policy.tasks.values()) else []
    )
    suffix = "-shadow" if shadow else ""
    return TopicMap(
        jobs=tuple(dict.fromkeys((*shared, *own, *foreign))),
        foreign=foreign,
        results={name: _results(task, out, shadow) for name, task in policy.tasks.items()},
        escalations=out + "escalations",
        reviews=out + "reviews",
        dead_letters=out + "dead-letters",
        retries={role: {delay: out + _retries(role, delay) for delay in DELAYS} for role in Role},
        groups={role: f"sluiceway-{role.value}{suffix}" for role in Role},
    )


def _retries(role: Role, delay: float) -> str:
    return f"retries-{role.value}-{round(delay * 1000)}"


def _results(task: Task, out: str, shadow: bool) -> str:
    if task.results is None:
        return out + "results"
    return out + task.results.removeprefix(PREFIX) if shadow else task.results


def _source(task: Task) -> Source:
    spec = task.source
    assert spec is not None  # noqa: S101  the caller asked
    return Source(
        topic=spec.topic,
        input=spec.input,
        id=spec.id,
        tenant=spec.tenant,
        stakes=spec.stakes,
        priority=spec.priority,
        clearance=spec.clearance,
    )
