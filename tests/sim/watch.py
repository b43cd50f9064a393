"""A group's offsets under watch: what each commit says, and what each new owner will do again."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from aiokafka import TopicPartition

from sluiceway.core.offsets import decode_finished
from tests.sim.broker import Committed, Headers, Sent
from tests.sim.loop import Process, current
from tests.sim.marks import run_of
from tests.support.evidence import Place, Sample

if TYPE_CHECKING:
    from tests.sim.worker import Run
    from tests.sim.world import World


class Heard(NamedTuple):
    """An ack that the process of a run has seen."""

    at: float
    run: Run


def was_committed(world: World, group: str, tp: TopicPartition, made: Committed, sent: Sent) -> None:
    """L4 at the moment of each commit: the offset, and the map above it."""
    log = world.broker.log(tp)
    low = world.lowest.get(tp, 0)
    while low < len(log.offsets) and Place(tp[0], tp[1], log.offsets[low]) in world.answered:
        low += 1
    world.lowest[tp] = low
    if low < len(log.offsets) and log.offsets[low] < made.offset:
        world.samples.append(Sample(world.loop.time(), {(tp[0], tp[1]): made.offset}, frozenset(world.answered)))
        world.breach("L4 no early commit", f"{group} committed {made.offset} of {tp}, {log.offsets[low]} is open")
    before = world.committed.get(tp)
    world.committed[tp] = made
    if before is not None and made.offset < before.offset:
        world.breach("L3 one outcome", f"{group} went back from {before.offset} to {made.offset} of {tp}")
    if keeps_maps(world):
        _all_told(world, tp, made, sent, before)
    if made.offset > log.end:
        world.breach("L4 no early commit", f"{group} committed {made.offset} of {tp}, which ends at {log.end}")
    for first, last in decode_finished(made.offset, made.metadata) or ():
        for offset in log.offsets[low:]:
            if first <= offset < last and Place(tp[0], tp[1], offset) not in world.answered:
                world.breach("L4 no early commit", f"{group}'s map at {made.offset} of {tp} holds {offset}, open")


def _all_told(world: World, tp: TopicPartition, made: Committed, sent: Sent, before: Committed | None) -> None:
    """L3: a commit tells all that the one before it told, and all that its sender has settled in this epoch."""
    log = world.broker.log(tp)
    told = decode_finished(made.offset, made.metadata) or ()
    ranges = decode_finished(before.offset, before.metadata) or () if before else ()
    since = world.seeked_at.get((sent.process, tp), 0.0)
    for offset in log.offsets[bisect_left(log.offsets, made.offset) :]:
        if any(first <= offset < last for first, last in told):
            continue
        if any(first <= offset < last for first, last in ranges):
            world.breach("L3 one outcome", f"the commit of {made.offset} of {tp} forgets that {offset} is done")
        heard = world.heard.get((sent.process.name, Place(tp[0], tp[1], offset)))
        # What was begun in an epoch before this one is settled by nobody.
        if heard is not None and heard.run.process is sent.process and heard.at < sent.at and heard.run.at > since:
            world.breach("L3 one outcome", f"the commit of {made.offset} of {tp} does not tell that {offset} is done")


def acked(world: World, process: Process, headers: Headers) -> None:
    """A worker hears that its record is written."""
    run = world.runs[run_of(headers)]
    world.heard[process.name, run.place] = Heard(world.loop.time(), run)


def doubted(world: World, headers: Headers) -> None:
    world.runs[run_of(headers)].doubts += 1


def revoking(world: World, process: Process, group: str) -> None:
    _, before = world.revoked_at.get((process, group), (0.0, 0.0))
    world.revoked_at[process, group] = before, world.loop.time()


def judge_void(world: World, run: Run, group: str) -> None:
    """A job of a live worker that ends soon after the revoke of its own epoch has begun is waited for."""
    before, since = world.revoked_at.get((run.process, group), (0.0, 0.0))
    after = world.loop.time() - since
    if before < run.at < since and after < 2.0:
        world.breach("L3 one outcome", f"{run.place} ended {after:.1f} s after a revoke, for nothing")


def judge_start(world: World, run: Run) -> None:
    """L3: what a worker's store knows as published is not done again by that worker, in this process or a later one.

    A commit that has covered it makes the store forget; where the broker or we drop the map of such a commit, what lies
    above its offset is done again after all.
    """
    heard = world.heard.get((run.process.name, run.place))
    if heard is None or not world.setup.state:
        return
    if min(heard.run.process.died, run.at) > heard.at + 0.01 and keeps_maps(world):
        world.breach("L3 one outcome", f"{run.place} runs again in {run.process.name}, whose store knew it published")


def keeps_maps(world: World) -> bool:
    kept = not world.broker.drops_metadata and world.setup.limits.metadata_chars >= 1000
    return kept and "small_metadata" not in world.fault_names


def seeked(world: World, tp: TopicPartition, group: str) -> None:
    """A new owner begins: what it will redo, though it was done or is being published, is allowed for."""
    process = current()
    world.seeked_at[process, tp] = world.loop.time()
    made = world.broker.group(group).committed.get(tp)
    offset, finished = (made.offset, decode_finished(made.offset, made.metadata) or ()) if made else (0, ())
    log = world.broker.log(tp)
    answered, topic, number = world.answered, *tp
    # What is being published lies beside what is answered: it may yet arrive.
    on_the_way = {run.place.offset for run in world.outgoing.values() if run.place[:2] == tp}
    for at in log.offsets[bisect_left(log.offsets, offset) :]:
        if any(first <= at < last for first, last in finished):
            continue
        if at in on_the_way or (topic, number, at) in answered:
            world.redo += 1
    # A worker that was frozen, or thrown out and not told yet, goes on with what it has for a moment.
    for worker in world.workers.values():
        if worker.process.dead or worker.process is process:
            continue
        for consumer in worker.consumers:
            if tp in consumer._stream.partitions():
                world.redo += consumer._stream.running + world.setup.limits.jobs
