"""`order: key`: two jobs of one key never overlap, through rebalances and a kill; the fake's journal is the witness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

import orjson

from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Scene, tickets
from tests.faults.stage import Stage
from tests.support.fake_journal import read_ends


async def by_key(stage: Stage) -> list[Finding]:
    """Three workers come, go and die while the jobs of a few hundred keys run one after another."""
    count, keys = stage.of((8_000, 80), (1_200, 30))
    plants = ["order=key"]
    async with stage.scene("order", cheap="labels seed=3 delay=0.2", parallel=64, keep=True) as scene:
        jobs = tickets(count, key=lambda n: b"key-%d" % (n * 7919 % keys))
        key_of = {orjson.loads(value or b"")["input"]: key for _, (key, value, _) in jobs}
        await scene.publish(jobs)
        first, second = scene.worker(plants=plants), scene.worker(plants=plants)
        await scene.share(0.15, count)
        third = scene.worker(plants=plants)
        await scene.ready(third)
        await scene.share(0.35, count)
        codes = await scene.stopped(first)
        await scene.share(0.55, count)
        await scene.kill(second)
        second.start()
        late = await scene.caught_up(240)
        codes += await scene.stopped(second, third)
        generations = {
            notice["generation"] for notice in scene.notices("assigned") if notice["group"] == "sluiceway-jobs"
        }
        overlaps, unknown = overlapping(scene, key_of)
        return [
            await scene.finding(
                "order",
                f"order: key, {keys} keys, {len(generations) - 1} rebalances, 1 kill",
                idle_within=SESSION + REVOKE + 20,
                notes=[f"{len(scene.cheap.entries())} calls held against each other"],
                asked={
                    "lag 0": late,
                    "no two jobs of a key overlap": f"{len(overlaps)}: {overlaps[:3]}" if overlaps else None,
                    "every call's key is known": f"{unknown} are not" if unknown else None,
                    "three rebalances": None if len(generations) > 3 else f"generations {sorted(generations)}",
                    "exit codes": None if codes == [0, 0, 0] else f"{codes}",
                },
            )
        ]


def overlapping(scene: Scene, key_of: Mapping[str, bytes | None]) -> tuple[list[str], int]:
    """Calls that began before the one before them of the same key had ended; and how many have no known key."""
    ends = read_ends(scene.cheap.journal)
    spans: dict[bytes, list[tuple[float, float, str]]] = defaultdict(list)
    unknown = 0
    for entry in scene.cheap.entries():
        key = key_of.get(entry.text or "")
        if key is None:
            unknown += 1
        else:
            spans[key].append((entry.ts, ends.get(entry.seq, float("inf")), f"{key.decode()} #{entry.seq}"))
    found = []
    for of_key in spans.values():
        for (_, end, before), (start, _, after) in pairwise(sorted(of_key)):
            if start < end:
                found.append(f"{after} began {end - start:.3f} s before the end of {before}")
    return found, unknown
