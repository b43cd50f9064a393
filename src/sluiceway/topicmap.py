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


@dataclass(frozen=True, slots=True)
class TopicMap:
    """`jobs`: what the jobs role reads. `foreign` maps a source topic to its task, `results` a task to its topic."""

    jobs: tuple[str, ...]
    foreign: Mapping[str, tuple[str, Source]]
    results: Mapping[str, str]
    escalations: str
    reviews: str
    dead_letters: str
    groups: Mapping[Role, str]

    def read_by(self, role: Role) -> tuple[str, ...]:
        return self.jobs if role is Role.JOBS else (self.escalations,)

    @property
    def written(self) -> tuple[str, ...]:
        """Every topic an outcome or a hand-over can go to."""
        return tuple(dict.fromkeys((self.escalations, *self.results.values(), self.reviews, self.dead_letters)))

    def overrides(self) -> dict[str, dict[str, Any]]:
        """For `kafka.topics.declared`: the topics that topics/*.yaml does not name, each with the one it is like."""
        named = {PREFIX + name for name in ("jobs", "escalations", "results", "reviews", "dead-letters")}
        like = dict.fromkeys(self.jobs, "jobs")
        like |= dict.fromkeys(self.results.values(), "results")
        like |= {self.escalations: "escalations", self.reviews: "reviews", self.dead_letters: "dead-letters"}
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
        groups={role: f"sluiceway-{role.value}{suffix}" for role in Role},
    )


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
