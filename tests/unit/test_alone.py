"""Laws of jobs that run alone: beside one of them nothing of the process runs, whatever its role, nobody starves."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.support.running import RunningRole, turns
from tests.support.stores import a_record, a_store, dead

from sluiceway.archive.flight import SUSPECT_DEATHS, StoreFlight
from sluiceway.core.alone import Alone
from sluiceway.core.stream import Limits, Partition, Stream, Taken

JOBS, ESCALATIONS = Partition("jobs", 0), Partition("escalations", 0)


@dataclass(frozen=True)
class Rec:
    offset: int
    bad: bool = False
    timestamp: float = 0.0
    key: bytes | None = None
    value: bytes | None = b"v"
    headers: tuple[tuple[str, bytes], ...] = ()


def two_roles() -> tuple[Stream, Stream]:
    """Of one process."""
    alone, limits = Alone(), Limits(jobs=4, burst=2, queue=100, span=100)
    first, second = (Stream(limits, suspect=lambda record: record.bad, alone=alone) for _ in range(2))
    first.assign(JOBS, 0, "", 0, 0.0)
    second.assign(ESCALATIONS, 0, "", 0, 0.0)
    return first, second


def feed(stream: Stream, *recs: Rec) -> None:
    (partition,) = stream.partitions()
    assert stream.fetched(partition, stream.epoch(partition) or 0, recs, recs[-1].offset + 1, 0.0) == len(recs)


def test_a_job_runs_alone_when_the_other_role_runs_nothing_either() -> None:
    first, second = two_roles()
    feed(first, Rec(0, bad=True))
    feed(second, Rec(0), Rec(1))
    (beside, other) = second.start(0.0)
    assert first.start(0.0) == []
    feed(first, Rec(1))
    feed(second, Rec(2))
    assert second.start(0.0) == []  # one waits: nothing starts before it
    second.settle(beside, 0.0)
    second.abandon(other)
    (alone,) = first.start(0.0)
    assert alone.alone
    assert (first.start(0.0), second.start(0.0)) == ([], [])
    first.settle(alone, 0.0)
    assert (len(first.start(0.0)), len(second.start(0.0))) == (1, 1)


def test_a_role_whose_suspect_goes_with_its_partition_holds_the_other_up_no_more() -> None:
    first, second = two_roles()
    woken: list[str] = []
    first.wake, second.wake = (lambda: woken.append("first")), (lambda: woken.append("second"))
    feed(second, Rec(0))
    (running,) = second.start(0.0)
    feed(first, Rec(0, bad=True))
    assert first.start(0.0) == []
    feed(second, Rec(1))
    assert second.start(0.0) == []
    first.revoke([JOBS])
    assert woken == ["second", "first"]
    assert len(second.start(0.0)) == 1
    assert second.settle(running, 0.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), st.randoms(use_true_random=False))
def test_every_job_of_both_roles_has_its_turn(made: list[tuple[bool, bool]], dice: random.Random) -> None:
    """Whoever asks first, and whatever ends first: nothing runs beside a suspect, and all of them are settled."""
    roles = two_roles()
    woken: list[Stream] = list(roles)
    for role in roles:
        role.wake = lambda role=role: woken.append(role)  # type: ignore[misc]  # bound now
    for which, role in enumerate(roles):
        recs = [Rec(offset, bad=bad) for offset, (of, bad) in enumerate(made) if of == bool(which)]
        if recs:
            feed(role, *recs)
    running: list[tuple[Stream, Taken]] = []
    settled = 0
    while woken or running:
        if woken and (not running or dice.random() < 0.5):
            role = woken.pop(dice.randrange(len(woken)))
            started = role.start(0.0)
            running += [(role, job) for job in started]
            if len(started) == role.limits.burst:
                woken.append(role)
        else:
            role, job = running.pop(dice.randrange(len(running)))
            role.settle(job, 0.0)
            settled += 1
            woken.append(role)
        assert len(running) == 1 or not any(job.alone for _, job in running)
    assert settled == len(made)


async def test_a_role_that_has_many_to_run_alone_keeps_the_other_from_none_of_its_turns() -> None:
    """After one burst of suspects the other role's job is started, though there are more of them."""
    alone = Alone()
    bad = RunningRole(suspect=lambda _: True, alone=alone)
    good = RunningRole(topic="escalations", alone=alone)
    bad.gate.set()
    await bad.run(*(a_record(offset) for offset in range(100)))
    await good.run(a_record(0, topic="escalations"))
    while not good.ran:
        assert len(bad.ran) <= bad.stream.limits.burst
        assert bad.publisher.sent
        bad.publisher.ack()
        await turns()
    assert len(bad.ran) < 100
    good.gate.set()
    while len(bad.ran) < 100 or bad.publisher.sent:
        bad.publisher.ack()
        good.publisher.ack()
        await turns()
    assert [role.stream.stats(0.0)[0].watermark for role in (bad, good)] == [100, 1]


async def test_a_job_runs_alone_when_the_detached_jobs_have_ended() -> None:
    """Those of an ended epoch run in this process too."""
    alone = Alone()
    first = RunningRole(alone=alone)
    await first.run(a_record(0))
    first.revoke()
    second = RunningRole(topic="escalations", suspect=lambda _: True, alone=alone)
    await second.run(a_record(0, topic="escalations"))
    assert not second.ran
    first.gate.set()
    await turns()
    assert first.jobs.detached == 0
    assert len(second.ran) == 1
    second.jobs.cancel()


async def test_nobody_is_condemned_by_the_other_role_of_its_process(tmp_path: Path) -> None:
    """Both roles' jobs are suspect; the one that kills is condemned, and the innocent one has not run beside it."""
    innocent, poison = a_record(1), a_record(1, topic="escalations")
    directory = tmp_path / "0"
    for death in range(SUSPECT_DEATHS):
        store = a_store(directory)
        for group, record in (("jobs", innocent), ("escalations", poison)):
            StoreFlight(store, group).take(record, alone=False)
        store.flush()
        directory = tmp_path / str(death + 1)
        with dead(store, directory) as after:
            assert after.died_alone is None
            for group in ("jobs", "escalations"):
                StoreFlight(after, group)
    store = a_store(directory)
    alone = Alone()
    jobs, escalations = StoreFlight(store, "jobs"), StoreFlight(store, "escalations")
    roles = [
        RunningRole(escalations, topic="escalations", suspect=escalations.suspect, alone=alone),
        RunningRole(jobs, suspect=jobs.suspect, alone=alone),
    ]
    await asyncio.gather(roles[0].run(poison), roles[1].run(innocent))
    assert [len(role.ran) for role in roles] == [1, 0]
    with dead(store, tmp_path / "last") as after:
        assert StoreFlight(after, "escalations").condemned(poison)
        assert not StoreFlight(after, "jobs").condemned(innocent)
    for role in roles:
        role.jobs.cancel()
