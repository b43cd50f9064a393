"""Row 9: the wall clock jumps by two hours, to and fro, under running workers and between two runs of one."""

from __future__ import annotations

from typing import Any

import orjson

from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Scene, tickets
from tests.faults.stage import Stage
from tests.support.outgoing import ESCALATIONS, RESULTS, REVIEWS

HOURS = 7200.0


async def jumped(stage: Stage) -> list[Finding]:
    count, jumps = stage.of((6_000, 8), (1_200, 3))
    dice = stage.dice("9")
    async with stage.scene("9", cheap="labels seed=3 doubt=10% delay=0.1", parallel=stage.of(16, 12)) as scene:
        file = scene.rig.folder / "clock"
        file.write_text("0")
        await scene.publish(tickets(count))
        crew = [scene.worker(plants=[f"clock={file}"]) for _ in range(2)]
        offset = 0.0
        for number in range(jumps):
            await scene.share((number + 1) / (jumps + 2), count)
            offset = dice.choice([each for each in (-HOURS, 0.0, HOURS) if each != offset])
            file.write_text(str(offset))
            if number == jumps // 2:  # one starts anew, in another hour than the one it left
                await scene.kill(crew[0])
                crew[0].start()
        late = await scene.caught_up(180)
        codes = await scene.stopped(*crew)
        negative = negative_durations(scene)
        return [
            await scene.finding(
                "9",
                f"the clock jumps by two hours x {jumps}, 1 kill",
                idle_within=SESSION + REVOKE + 15,
                recovery=0.0,  # by the records' own times, which are what is jumping
                asked={
                    "lag 0": late,
                    "no negative durations": f"{len(negative)}: {negative[:3]}" if negative else None,
                    "exit codes": None if codes == [0, 0] else f"{codes}",
                },
            )
        ]


def negative_durations(scene: Scene) -> list[str]:
    """Every duration in every record that a worker wrote."""
    found = []
    for topic in (RESULTS, REVIEWS, ESCALATIONS):
        for record in scene.rig.out[topic]:
            tree: dict[str, Any] = orjson.loads(record.value or b"null")
            trail = tree["trail"]
            spans = [("remaining", trail["remaining"])]
            for step in trail["steps"]:
                if step["step"] == "attempt":
                    spans.append(("seconds", step["seconds"]))
                elif step["step"] == "waited" and step.get("ended") is not None:
                    spans.append(("waited", step["ended"] - step["at"]))
            found += [f"{tree['job_id']}: {name} {span}" for name, span in spans if span < 0]
    return found
