"""Row 17: an output topic refuses. Too large for it, not there, not ours to write to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.faults.finding import Finding
from tests.faults.scene import CONNECTION, REVOKE, SESSION, Job, Scene, tickets
from tests.faults.stage import Stage
from tests.support.outgoing import DEAD_LETTERS, RESULTS
from tests.support.rig import job

CHEAP = "labels seed=3 doubt=5% delay=0.02"
PATIENCE = 30.0  # seconds for which a missing topic may be the cluster's hiccup
ELSEWHERE = "sluiceway.results.elsewhere"
ACL = "org.apache.kafka.tools.AclCommand"


async def too_large(stage: Stage) -> list[Finding]:
    """The topic's limit is lowered while workers run: what does not fit any more is a dead letter, and only that."""
    count = stage.of(6_000, 1_200)
    async with stage.scene("17-large", cheap=CHEAP) as scene:
        first, rest = count // 3, count - count // 3
        crew = [scene.worker(), scene.worker()]
        await scene.publish(tickets(first))
        await scene.share(0.2, count)
        async with scene.rig.admin() as admin:
            config = {"max.message.bytes": "20000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, RESULTS, config)])
        # A publisher's own headers travel on to the outcome, so they alone can make it too large.
        bulky: list[Job] = []
        for n, (id_, (key, value, _)) in enumerate(tickets(rest, first=first)):
            bulky.append((id_, (key, value, (("note", b"x" * 30_000),) if n % 40 == 0 else ())))
        wanted = {id_ for id_, item in bulky if item[2]}
        await scene.publish(bulky)
        late = await scene.caught_up(180)
        codes = await scene.stopped(*crew)
        places = {job.place: job.job_id for job in scene.published}
        dead = [places.get(outcome.origin) for outcome in scene.outcomes() if outcome.kind == "dead_letter"]  # type: ignore[arg-type]  # None is no place
        reasons = {record.header("sluiceway.reason") for record in scene.rig.out[DEAD_LETTERS]}
        return [
            await scene.finding(
                "17-large",
                f"{len(wanted)} outcomes too large for their topic",
                idle_within=SESSION + REVOKE + 15,
                notes=[f"the producer was replaced {len(scene.notices('producer_replaced'))} times"],
                asked={
                    "lag 0": late,
                    "they alone are dead letters": None if set(dead) == wanted else f"{set(dead) ^ wanted}",
                    "the reason is told": None if reasons == {"too_large"} else f"{reasons}",
                    "exit codes": None if codes == [0, 0] else f"{codes}",
                },
            )
        ]


async def missing(stage: Stage) -> list[Finding]:
    """A task's results topic is deleted: the worker waits, then stops and says so; made anew, nothing is lost."""
    count = stage.of(3_000, 800)
    async with stage.scene("17-missing", cheap=CHEAP, tasks={"elsewhere": {"results": ELSEWHERE}}) as scene:
        worker = scene.worker()
        scene.may_end.add(worker)
        await scene.publish(tickets(count // 2))
        await scene.share(0.2, count)
        async with scene.rig.admin() as admin:
            await admin.delete_topics([ELSEWHERE])
        others: list[Job] = [
            (f"job-e{n}", job(f"e{n}", f"A ticket of another task, number {n}.", "elsewhere"))
            for n in range(count // 2)
        ]
        await scene.publish(others)
        code, said, out = await _ended(scene, worker, PATIENCE + 60)
        await scene.rig.apply()
        successor = scene.worker()
        late = await scene.caught_up(120)
        codes = await scene.stopped(successor)
        return [
            await scene.finding(
                "17-missing",
                "a results topic is deleted, and made anew",
                idle_within=PATIENCE + SESSION + REVOKE + 60,
                notes=[f"it stopped after {out:.0f} s: {said}"],
                asked=_stops_and_says(code, codes, late, said, ELSEWHERE, "topics apply"),
            )
        ]


async def forbidden(stage: Stage) -> list[Finding]:
    """The worker may not write results: it stops and says so; allowed again, nothing is lost."""
    count = stage.of(3_000, 800)
    kafka = await stage.broker(secured=True)
    login = ("security.protocol=SASL_PLAINTEXT", f"sasl.username={kafka.user}", f"sasl.password={kafka.password}")
    async with stage.scene("17-forbidden", cheap=CHEAP, secured=True) as scene:
        principal = ["--allow-principal", f"User:{kafka.user}", "--topic", RESULTS]
        common = ["--bootstrap-server", kafka.bootstrap]
        operations = ["Read", "Describe", "DescribeConfigs"]
        allowed = [*principal, *(part for name in operations for part in ("--operation", name))]
        await asyncio.to_thread(kafka.tool, ACL, *common, "--add", *allowed)
        await scene.publish(tickets(count))
        sasl: dict[str, Any] = {"bootstrap": kafka.addresses["SASL"], "pairs": [*CONNECTION, *login]}
        worker = scene.worker(**sasl)
        scene.may_end.add(worker)
        code, said, out = await _ended(scene, worker, 90)
        await asyncio.to_thread(kafka.tool, ACL, *common, "--add", *principal, "--operation", "Write")
        successor = scene.worker(**sasl)
        late = await scene.caught_up(120)
        codes = await scene.stopped(successor)
        await asyncio.to_thread(kafka.tool, ACL, *common, "--remove", "--force", "--topic", RESULTS)
        return [
            await scene.finding(
                "17-forbidden",
                "results may not be written, and then may",
                idle_within=SESSION + REVOKE + 90,
                notes=[f"it stopped after {out:.0f} s: {said}"],
                asked=_stops_and_says(code, codes, late, said, RESULTS, "Write"),
            )
        ]


async def _ended(scene: Scene, worker: Any, within: float) -> tuple[int, str, float]:
    """Exit code, what its last words say, and how long it took."""
    began = time.monotonic()
    code = await asyncio.to_thread(worker.wait, within)
    scene.lost_calls += scene.parallel  # what was open when it gave up
    last = [event for event in worker.events() if event.get("event") == "worker_failed"]
    return code, str(last[-1].get("detail") if last else worker.tail(3)), time.monotonic() - began


def _stops_and_says(
    code: int, codes: list[int], late: str | None, said: str, topic: str, mend: str
) -> dict[str, str | None]:
    return {
        "it stops": None if code == 1 else f"code {code}",
        "and names the topic and the mend": None if topic in said and mend in said else said,
        "lag 0": late,
        "exit codes": None if codes == [0] else f"{codes}",
    }
