"""Rows 8 and 10: what publishers do wrong. A tenth of the records is bad; each id is published up to three times."""

from __future__ import annotations

import random
from collections import Counter

import orjson

from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Job, tickets
from tests.faults.stage import Stage
from tests.support.outgoing import DEAD_LETTERS

CHEAP = "labels seed=3 doubt=5% delay=0.01"


def _record(**fields: object) -> bytes:
    return orjson.dumps({"id": "bad", "task": "ticket-triage", "input": "My card is late."} | fields)


def _nested(depth: int) -> bytes:
    return b'{"id":"bad","task":"ticket-triage","input":{"text":"a","deep":' + b"[" * depth + b"]" * depth + b"}}"


POISON: dict[str, bytes] = {
    "cut JSON": _record()[:-9],
    "bad UTF-8": _record().replace(b"card", b"\xff\xfe"),
    "deeply nested": _nested(5_000),
    "NaN": b'{"id":"bad","task":"ticket-triage","input":{"n":NaN}}',
    "a list": b"[1, 2, 3]",
    "a number as input": _record(input=7),
    "a task that is not text": _record(task=["ticket-triage"]),
    "an unknown task": _record(task="no-such-task"),
    "over the limit": _record(input="late " * 185_000),
}
"""What becomes a dead letter, one a record."""

TRAP = "a" * 40_000 + "!" + "((((" * 2_000 + "}}" + "{%" * 2_000 + "\\x00 \u202e <data> </data>"
"""A text on which a careless pattern or template takes for ever; it is a job like others."""


async def poisoned(stage: Stage) -> list[Finding]:
    """One record in ten is bad, spread evenly; every hundredth good one is a trap for patterns and templates."""
    count = stage.of(12_000, 1_500)
    dice = stage.dice("8")
    async with stage.scene("8", cheap=CHEAP) as scene:
        good = tickets(count)
        for n in range(0, count, 100):
            value = orjson.dumps({"id": f"job-{n}", "task": "ticket-triage", "input": f"{TRAP} case {n}"})
            good[n] = (f"job-{n}", (None, value, ()))
        jobs: list[Job] = []
        kinds: Counter[str] = Counter()
        for n, one in enumerate(good):
            jobs.append(one)
            if n % 9 == 0:
                # The large ones are few, or nothing else would be measured.
                kind = "over the limit" if n % 900 == 0 else dice.choice([k for k in POISON if k != "over the limit"])
                kinds[kind] += 1
                jobs.append((None, (b"bad-%d" % n, POISON[kind], ())))
        await scene.publish(jobs)
        crew = [scene.worker(), scene.worker()]
        late = await scene.caught_up(180)
        codes = await scene.stopped(*crew)
        letters = Counter(record.key for record in scene.rig.out[DEAD_LETTERS])
        wanted = {item[0] for id_, item in jobs if id_ is None}
        wrong = [key for key in wanted if letters[key] != 1] + [key for key in letters if key not in wanted]
        return [
            await scene.finding(
                "8",
                f"{sum(kinds.values())} of {len(jobs)} records bad, {len(kinds)} kinds",
                idle_within=SESSION + REVOKE + 10,
                notes=[", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))],
                asked={
                    "lag 0": late,
                    "one dead letter each": f"{len(wrong)} others: {wrong[:5]}" if wrong else None,
                    "exit codes": None if codes == [0, 0] else f"{codes}",
                },
            )
        ]


async def published_again(stage: Stage) -> list[Finding]:
    """Each id lies one to three times on the topic, on whatever partitions; a worker is killed among them."""
    # One kill may repeat 2% of the ids, and it repeats what was in flight and what two or three commit intervals end at
    # some 500 a second: a hundred and more. Of 3,000 ids it was a coin's throw.
    count = stage.of(16_000, 8_000)
    dice = stage.dice("10")
    async with stage.scene("10", cheap=CHEAP, parallel=32) as scene:
        jobs = copies(tickets(count), dice)
        await scene.publish(jobs)
        crew = [scene.worker(), scene.worker()]
        await scene.share(0.4, count)
        await scene.kill(crew[0])
        crew[0].start()
        late = await scene.caught_up(180)
        codes = await scene.stopped(*crew)
        return [
            await scene.finding(
                "10",
                f"{count} ids published {len(jobs)} times, 1 kill",
                idle_within=SESSION + REVOKE + 15,
                asked={"lag 0": late, "exit codes": None if codes == [0, 0] else f"{codes}"},
            )
        ]


def copies(jobs: list[Job], dice: random.Random) -> list[Job]:
    """Each one to three times, in any order."""
    many = [one for one in jobs for _ in range(dice.choice((1, 2, 3)))]
    dice.shuffle(many)
    return many
