"""The ledger against the servers' own meters: `python -m tests.bench.ledger [--json] [--calls N]`.

banking77 tickets through the runner, sharing, packing, pool and HTTP transport of the worker, with its local store, to
model servers in processes of their own, in both wire formats: tokens from and into prompt caches, thinking, prices that
rise with the input, refusals, broken and hanging connections, copies that share a call or get a kept answer, jobs
packed ten a call. Half of it is then done again with other tickets, unshared, by a worker that is killed (-9) over and
over. Both sides must come to the same, to the token and the pico-dollar, for every group of jobs that shares a call;
calls whose reply never came must be listed, and are what the meters show beyond the ledger. Nothing is timed.

Example: python -m tests.bench.ledger --calls 2000 --kills 2
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from tests.bench._ledger_books import KINDS, Books, Tariff, compared
from tests.bench._ledger_models import LedgerModels
from tests.bench._ledger_work import read_lines
from tests.bench._race import conditions
from tests.support.fake_journal import JournalEntry, read_journal
from tests.support.fake_process import ROOT
from tests.support.processes import Child, wait_until
from tests.support.tickets import bank_tickets

IN_FLIGHT = 200
A_ROUND = 4000  # jobs
_PLAIN = {"input_mtok": 0.15, "cache_read_mtok": 0.075, "output_mtok": 0.6}
_DEAR = {"input_mtok": 0.3, "cache_read_mtok": 0.15, "output_mtok": 1.2}
_FRONTIER = {"input_mtok": 5, "cache_read_mtok": 0.5, "cache_write_mtok": 6.25, "output_mtok": 25}
_TIER = 60  # input tokens by the fakes' count: of a third of the tickets
WIRE = {"alone": "mini-alone", "shared": "mini-shared", "packed": "mini-packed", "frontier": "opus-1"}


def _tariff(price: Mapping[str, float], dearer: tuple[int, Tariff] | None = None) -> Tariff:
    plain = price["input_mtok"]
    rates = (plain, price["cache_read_mtok"], price.get("cache_write_mtok", plain), price["output_mtok"])
    return Tariff(*(round(rate * 1_000_000) for rate in rates), dearer)


TARIFFS = {
    WIRE["alone"]: _tariff(_PLAIN),
    WIRE["shared"]: _tariff(_PLAIN, (_TIER, _tariff(_DEAR))),
    WIRE["packed"]: _tariff(_PLAIN),
    WIRE["frontier"]: _tariff(_FRONTIER),
}
"""Written anew from the prices, not taken from the product."""


def policy(cheap: str, frontier: str) -> dict[str, Any]:
    """Three tasks, each on a cheap model of its own, with one reference."""
    small = {"provider": "openai", "base_url": f"{cheap}/v1", "tier": "small", "timeout": "4s"}
    prices = {"alone": _PLAIN, "shared": {**_PLAIN, "tiers": [{"from_tokens": _TIER, **_DEAR}]}, "packed": _PLAIN}
    task = {
        "prompt": "Classify this ticket of a bank's customer by what it is about.",
        "labels": ["billing", "login", "refund", "delivery", "card lost", "limits", "fees", "other"],
        "gate": {"score": "label_logprob", "threshold": 0.85},
        "deadline": "30m",
        "retries": {"tries": 4, "first_wait": "5ms", "longest_wait": "50ms"},
        "failed_share": 1.0,
    }
    packing = {"jobs": 10, "wait": "250ms"}
    reference = {"provider": "anthropic", "base_url": frontier, "model": WIRE["frontier"], "tier": "frontier"}
    return {
        "sharing": {"coalesce": True, "cache": "1h"},
        "models": {
            **{name: {**small, "model": WIRE[name], "price": price, "params": {"max_tokens": 60}}
               for name, price in prices.items()},
            "frontier": {**reference, "timeout": "4s", "price": _FRONTIER, "params": {"max_tokens": 200}},
        },
        "tasks": {
            name: {**task, "ladder": [name, "frontier"]} | ({"packing": packing} if name == "packed" else {})
            for name in prices
        },
    }  # fmt: skip


def mixed(count: int, lap: int, seed: int) -> list[dict[str, Any]]:
    """`count` jobs: 35% alone, 35% of which half are copies, early and late, and 30% to be packed."""
    dice = random.Random(f"{seed} {lap}")
    shared, packed = round(count * 0.35), round(count * 0.3)
    texts = {task: _texts(task, size, lap) for task, size in
             (("alone", count - shared - packed), ("shared", shared - shared // 2), ("packed", packed))}  # fmt: skip
    first = [(task, text) for task, each in texts.items() for text in each]
    dice.shuffle(first)
    copied = dice.choices(texts["shared"], k=shared // 2)
    soon, late = set(copied[::2]), [("shared", text) for text in copied[1::2]]
    at_once = [pair for each in first for pair in [each] * (1 + (each[0] == "shared" and each[1] in soon))]
    late += [("shared", text) for text in copied[::2][len(soon) :]]
    return [_job(f"{lap}-{number}", task, text) for number, (task, text) in enumerate([*at_once, *late])]


def lone(count: int) -> list[dict[str, Any]]:
    """`count` jobs that share nothing, for the worker that is killed."""
    return [_job(f"k-{number}", "alone", text) for number, text in enumerate(_texts("killed", count, 0))]


def _texts(task: str, count: int, lap: int) -> list[str]:
    """One line each, as a pack's texts are told apart by their lines; distinct in the whole run."""
    return [f"{' '.join(text.split())} ({task} {lap})" for text in bank_tickets(count)]


def _job(number: str, task: str, text: str) -> dict[str, Any]:
    return {"id": f"job-{number}", "task": task, "input": text}


class Course:
    """The servers, and the worker's turns on them."""

    def __init__(self, folder: Path, cheap: LedgerModels, frontier: LedgerModels) -> None:
        self._folder = folder
        self._models = (cheap, frontier)
        self._policy = folder / "policy.yaml"
        self._policy.write_text(yaml.safe_dump(policy(cheap.url, frontier.url), sort_keys=False))
        self.texts: dict[str, str] = {}
        self.lines: list[dict[str, Any]] = []
        self._made = 0
        self.kills = 0

    def run(self, made: Sequence[Mapping[str, Any]], *, kills: int = 0, dice: random.Random | None = None) -> None:
        """Lets a worker do these jobs; it is killed so many times on its way, and started again."""
        self._made += 1
        todo, out = self._folder / f"jobs-{self._made}.jsonl", self._folder / f"out-{self._made}.jsonl"
        todo.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in made))
        self.texts |= {job["id"]: job["input"] for job in made}
        settings = {"policy": str(self._policy), "state": str(self._folder / "state"), "jobs": str(todo),
                    "out": str(out), "in_flight": IN_FLIGHT}  # fmt: skip
        command = [sys.executable, "-m", "tests.bench._ledger_work", json.dumps(settings)]
        worker = Child(command, log=self._folder / "worker.log", cwd=ROOT, name="the ledger bench's worker")
        try:
            for number in range(kills):
                worker.start()
                assert dice is not None
                enough = round(len(made) * (number + dice.random()) / (kills + 1))
                wait_until(lambda least=enough: _done(out) >= least or _ended(worker), within=600, what="outcomes")
                worker.kill()
                self.kills += 1
            worker.start()
            code = worker.wait(3600)
        finally:
            worker.kill()
        if code:
            raise SystemExit(f"the worker ended with {code}:\n{worker.tail()}")
        found = read_lines(out)
        self.lines += found
        spent = sum(line["spent"] for line in found if "spent" in line)
        cost = sum(line["cost"] for line in found if "id" in line)
        if not kills and spent != cost:
            raise SystemExit(f"the runner has spent {spent} pico-dollars, and its jobs cost {cost}")

    def entries(self) -> list[JournalEntry]:
        return [entry for models in self._models for entry in read_journal(models.journal)]

    def calls(self) -> int:
        return sum(models.journal.read_bytes().count(b"\n") for models in self._models)


def _done(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def _ended(worker: Child) -> bool:
    return worker.returncode is not None


def measure(calls: int, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    with (
        LedgerModels(folder / "cheap.jsonl", "cheap", seed) as cheap,
        LedgerModels(folder / "frontier.jsonl", "frontier", seed + 1) as frontier,
    ):
        course = Course(folder, cheap, frontier)
        if kills:
            course.run(lone(max(100, calls // 5)), kills=kills, dice=random.Random(seed))
        lap = 0
        while course.calls() < calls:
            lap += 1
            course.run(mixed(min(A_ROUND, max(200, calls)), lap, seed))
            print(f"{course.calls():,} calls", file=sys.stderr)
        # Each server has ended before it is read: what it was asked last it has written down.
    books = compared(course.texts, course.lines, course.entries(), TARIFFS, WIRE)
    return judged(books, course, seed)


def judged(books: Books, course: Course, seed: int) -> dict[str, Any]:
    """The rows, and whether every law holds."""
    rows = [
        {"model": model, "kind": kind, "attempts": row.attempts, "calls": row.calls, "ledger_picousd": row.ledger,
         "metered_picousd": row.metered, "difference": row.metered - row.ledger if kind != "lost" else 0}
        for (model, kind), row in sorted(books.rows.items(), key=lambda each: (each[0][0], KINDS.index(each[0][1])))
    ]  # fmt: skip
    seen = {row["kind"] for row in rows if row["calls"]}
    outcomes = [line for line in course.lines if "id" in line]
    laws = {
        "every job has one outcome": sorted(line["id"] for line in outcomes) == sorted(course.texts),
        "there were calls of every kind": seen == set(KINDS),
        "each account comes to the same on both sides": not books.breaches,
        "the meters show the ledger and the listed lost calls": books.metered == books.ledger + books.lost,
        "no more is listed than was in flight at the kills": books.unasked <= course.kills * IN_FLIGHT,
    }
    return {
        "jobs": len(course.texts),
        "calls": course.calls(),
        "kills": course.kills,
        "seed": seed,
        "rows": rows,
        "ledger_picousd": books.ledger,
        "lost_picousd": books.lost,
        "metered_picousd": books.metered,
        "listed": books.listed,
        "listed_and_never_asked": books.unasked,
        "breaches": books.breaches[:20],
        "laws": laws,
        "held": all(laws.values()),
    }


def show(found: Mapping[str, Any]) -> None:
    print(f"\n{found['jobs']:,} jobs, {found['calls']:,} calls, {found['kills']} kills; seed {found['seed']}")
    print(
        f"  {'model':12} {'kind':10}{'attempts':>9}{'calls':>8}{'ledger, pico-$':>21}{'meters':>21}{'difference':>12}"
    )
    whole = {
        "model": "in all",
        "kind": "",
        "attempts": sum(row["attempts"] for row in found["rows"]),
        "calls": found["calls"],
        "ledger_picousd": found["ledger_picousd"],
        "metered_picousd": found["metered_picousd"] - found["lost_picousd"],
        "difference": found["metered_picousd"] - found["lost_picousd"] - found["ledger_picousd"],
    }
    for row in (*found["rows"], whole):
        print(
            f"  {row['model']:12} {row['kind']:10}{row['attempts']:>9,}{row['calls']:>8,}{row['ledger_picousd']:>21,}"
            f"{row['metered_picousd']:>21,}{row['difference']:>12,}"
        )
    print(f"  the lost calls, {found['lost_picousd']:,} pico-$ of the meters', are not in the last line's")
    print(f"  {found['listed']} calls listed as lost, {found['listed_and_never_asked']} of which had not gone out")
    for breach in found["breaches"]:
        print(f"  {breach}")
    for law, held in found["laws"].items():
        print(f"  {law}: {'held' if held else 'NOT held'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=50_000, help="that the servers are asked, at least")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.calls, given.kills, given.seed, Path(folder))
    found["conditions"] = conditions()
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()
