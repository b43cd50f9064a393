"""How many calls a backlog's duplicates cost: `python -m tests.bench.sharing [--json] [--jobs N]`.

One `sluiceway work` on Apache Kafka, fake models in processes of their own, banking77 tickets: 30% of the backlog are
exact copies of other jobs (text, tenant, clearance), spread over it; of the rest, one in five has the text of another
job under another tenant, and one in five under another clearance. A tenth of the texts goes on to the reference. The
same backlog is run with nothing shared, with the cache, again by the successor of that worker after a kill -9, and
under another policy on the same store. Calls are counted by the models, not timed.

Example: python -m tests.bench.sharing --jobs 400 --broker embedded
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from tests.bench.main_job import cluster
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import JOBS, RESULTS, attempts
from tests.support.processes import Child
from tests.support.rig import Item, Rig, billed, job, models, triage
from tests.support.tickets import bank_tickets

COPIES = 0.30  # of the backlog
ALIKE = 0.20  # of the rest has another job's text under another tenant; and as much under another clearance
DOUBT = 0.10  # of the texts goes on to the reference
TARGET = 0.29  # fewer calls
TENANTS = ("acme", "globex", "initech")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job asks, and for whom: copies are equal in all of it."""

    text: str
    tenant: str
    clearance: str


def backlog(jobs: int, seed: int) -> list[Asked]:
    """`jobs` of them, 30% copies, in an order of the seed's."""
    dice = random.Random(seed)
    copies = round(jobs * COPIES)
    distinct = jobs - copies
    alike = int(distinct * ALIKE)
    first = [Asked(text, dice.choice(TENANTS), "public") for text in bank_tickets(distinct - 2 * alike)]
    chosen = dice.sample(first, alike)
    others = [Asked(each.text, dice.choice([t for t in TENANTS if t != each.tenant]), "public") for each in chosen]
    raised = [Asked(each.text, each.tenant, "internal") for each in dice.sample(first, alike)]
    asked = [*first, *others, *raised]
    assert len(set(asked)) == distinct
    asked += dice.choices(asked, k=copies)
    dice.shuffle(asked)
    return asked


class _Rig(Rig):
    """A rig whose policy has a `sharing:` section."""

    sharing: Mapping[str, Any] = {}

    def write(self, models: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
        super().write(models, tasks)
        tree = yaml.safe_load(self.policy_file.read_text("utf-8"))
        self.policy_file.write_text(yaml.safe_dump({**tree, "sharing": dict(self.sharing)}, sort_keys=False))


class Course:
    """The backlog, and what each run of it came to."""

    def __init__(self, rig: _Rig, cheap: FakeProcess, frontier: FakeProcess, asked: Sequence[Asked]) -> None:
        self.rig = rig
        self.asked = asked
        self._fakes = (cheap, frontier)
        self._models = models(cheap.url, frontier.url)
        self._tasks = {"ticket-triage": triage(clearance="public")}
        self._worker: Child | None = None

    async def open(self) -> None:
        await self.rig.open(self._models, self._tasks)

    async def run(
        self, name: str, state: str, sharing: Mapping[str, Any], *, threshold: float = 0.85
    ) -> dict[str, Any]:
        """Runs the whole backlog on the store `state` under a policy; the worker stays up until `stop` or `kill`."""
        rig = self.rig
        rig.sharing = sharing
        gate = {"score": "label_logprob", "threshold": threshold}
        rig.write(self._models, {"ticket-triage": {**self._tasks["ticket-triage"], "gate": gate}})
        before = [len(fake.entries()) for fake in self._fakes]
        self._worker = rig.worker("--state", str(rig.folder / state), "--instance", "one")
        await rig.ready(self._worker)
        who = {f"job-{name}-{number}": each for number, each in enumerate(self.asked)}
        await rig.publish(JOBS, [_item(name, number, each) for number, each in enumerate(self.asked)])
        within = 60 + len(who) / 20
        seen = await rig.until(lambda seen: seen.ids(RESULTS) >= who.keys(), within=within)
        made = {tree["job_id"]: tree for tree in seen.bodies(RESULTS) if tree["job_id"] in who}
        entries = [entry for fake, past in zip(self._fakes, before, strict=True) for entry in fake.entries()[past:]]
        return {
            "name": name,
            "jobs": len(who),
            "calls": len(entries),
            "billed_picousd": billed(entries),
            "cost_picousd": sum(tree["cost_picousd"] for tree in made.values()),
            "foreign": foreign((who[job_id], tree) for job_id, tree in made.items()),
        }

    async def stop(self) -> None:
        assert self._worker is not None
        assert await self.rig.stopped(self._worker) == [0]

    async def kill(self) -> None:
        assert self._worker is not None
        await asyncio.to_thread(self._worker.kill)


def _item(name: str, number: int, asked: Asked) -> Item:
    more = {} if asked.clearance == "public" else {"clearance": asked.clearance}
    return job(f"{name}-{number}", asked.text, tenant=asked.tenant, **more)


def foreign(outcomes: Iterable[tuple[Asked, Mapping[str, Any]]]) -> int:
    """Replies, by the model's own id of them, that served jobs of more than one text, tenant or clearance."""
    served: dict[str, set[Asked]] = defaultdict(set)
    for asked, outcome in outcomes:
        for attempt in attempts(outcome):
            served[attempt["response_id"]].add(asked)
    return sum(len(group) > 1 for group in served.values())


async def compare(jobs: int, seed: int, broker: str, folder: Path) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        rig = _Rig(await stack.enter_async_context(cluster(broker, folder)), folder)
        stack.push_async_callback(rig.close)
        script = f"labels seed={seed} doubt={DOUBT:.0%}"
        cheap = stack.enter_context(FakeProcess(folder / "cheap.jsonl", script, name="cheap"))
        frontier = stack.enter_context(FakeProcess(folder / "frontier.jsonl", "labels seed=4", name="frontier"))
        course = Course(rig, cheap, frontier, backlog(jobs, seed))
        await course.open()
        cache = {"cache": "1h"}
        runs = [await course.run("off", "off", {})]
        await course.stop()
        runs.append(await course.run("cache", "cache", cache))
        await course.kill()
        runs.append(await course.run("again", "cache", cache))
        await course.stop()
        runs.append(await course.run("policy", "cache", cache, threshold=0.84))
        await course.stop()
    return judged({run["name"]: run for run in runs}, jobs, seed, broker)


def judged(runs: dict[str, dict[str, Any]], jobs: int, seed: int, broker: str) -> dict[str, Any]:
    """The runs, each with its share of fewer calls, and whether every law holds."""
    calls = {name: run["calls"] for name, run in runs.items()}
    for run in runs.values():
        run["fewer"] = round(1 - run["calls"] / calls["off"], 4)
    laws = {
        f"at least {TARGET:.0%} fewer calls": runs["cache"]["fewer"] >= TARGET,
        "a successor calls for nothing that was kept": calls["again"] == 0,
        "another policy shares nothing that was kept": calls["policy"] == calls["cache"],
        "no reply serves another text, tenant or clearance": not any(run["foreign"] for run in runs.values()),
        "the ledger is what the models metered": all(
            run["billed_picousd"] == run["cost_picousd"] for run in runs.values()
        ),
    }
    return {"jobs": jobs, "seed": seed, "broker": broker, "runs": list(runs.values()), "laws": laws,
            "held": all(laws.values())}  # fmt: skip


NAMES = {
    "off": "nothing shared",
    "cache": "cache on",
    "again": "its successor after a kill -9, the same again",
    "policy": "under another policy, on the same store",
}


def show(found: Mapping[str, Any]) -> None:
    print(f"\n{found['jobs']} jobs, {COPIES:.0%} of them copies; seed {found['seed']}, {found['broker']}")
    for run in found["runs"]:
        print(f"  {NAMES[run['name']]:46} {run['calls']:6} calls   {run['fewer']:7.1%} fewer"
              f"   ${run['cost_picousd'] / 1e12:.4f}")  # fmt: skip
    for law, held in found["laws"].items():
        print(f"  {law}: {'held' if held else 'NOT held'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--broker", choices=("apache", "embedded"), default="apache")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(compare(given.jobs, given.seed, given.broker, Path(folder)))
    if given.json:
        print(orjson.dumps(found).decode())
    else:
        show(found)
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
