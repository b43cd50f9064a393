"""A group's offsets under watch: what each commit says, and what each new owner will do again."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from sluiceway.core.offsets import decode_finished
from tests.sim.broker import Committed, Headers
from tests.sim.loop import PROCESS, Process
from tests.sim.marks import run_of
from tests.support.evidence import Place, Sample

if TYPE_CHECKING:
    from tests.sim.worker import Run
    from tests.sim.world import World


def was_committed(world: World, group: str, tp: TopicPartition, made: Committed) -> None:
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
    world.committed[tp] = made.offset
    if before is not None and made.offset < before:
        world.breach("L3 one outcome", f"{group} went back from {before} to {made.offset} of {tp}")
    _map_told(world, tp, made, log.offsets[low:])
    if made.offset > log.end:
        world.breach("L4 no early commit", f"{group} committed {made.offset} of {tp}, which ends at {log.end}")
    for first, last in decode_finished(made.offset, made.metadata) or ():
        for offset in log.offsets[low:]:
            if first <= offset < last and Place(tp[0], tp[1], offset) not in world.answered:
                world.breach("L4 no early commit", f"{group}'s map at {made.offset} of {tp} holds {offset}, open")


def _map_told(world: World, tp: TopicPartition, made: Committed, above: list[int]) -> None:
    """L3: what was finished above the watermark long ago goes with the commit, where there is room for it."""
    tidy = not {"freeze", "pause", "kill_all"} & set(world.fault_names)
    if made.metadata or not tidy or not keeps_maps(world):
        return
    for offset in above:
        at, by = world.answers.get(Place(tp[0], tp[1], offset), (1e9, None))
        if offset > made.offset and by is not None and not by.dead and world.loop.time() - at > 8.0:
            world.breach("L3 one outcome", f"the commit of {made.offset} of {tp} does not tell that {offset} is done")


def acked(world: World, process: Process, headers: Headers) -> None:
    """A worker hears that its record is written."""
    world.heard[process.name, world.runs[run_of(headers)].place] = (world.loop.time(), process)


def judge_start(world: World, run: Run) -> None:
    """L3: what a worker's store knows as published is not done again by a later process of the same worker.

    A commit that has covered it makes the store forget; where the broker or we drop the map of such a commit, what lies
    above its offset is done again after all.
    """
    at, process = world.heard.get((run.process.name, run.place), (0.0, run.process))
    if process is run.process or process.died <= at + 0.01 or not world.setup.state:
        return
    if keeps_maps(world):
        world.breach("L3 one outcome", f"{run.place} runs again in {run.process.name}, whose store knew it published")


def keeps_maps(world: World) -> bool:
    kept = not world.broker.drops_metadata and world.setup.limits.metadata_chars >= 1000
    return kept and "small_metadata" not in world.fault_names


def seeked(world: World, tp: TopicPartition, group: str) -> None:
    """A new owner begins: what it will redo, though it was done or is being published, is allowed for."""
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
        if worker.process.dead or worker.process is PROCESS.get():
            continue
        for consumer in worker.consumers:
            if tp in consumer._stream.partitions():
                world.redo += consumer._stream.running + world.setup.limits.jobs
