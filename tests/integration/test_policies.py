"""The policies in deploy/policies are promises: each is complete, priced, and runs on servers that speak its formats.

The fake model server stands in for every provider: a copy of each policy, of which only the addresses are replaced,
sends all of its calls there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.fake_models import FakeAnswer, FakeModels, FakeRequest, labels
from typer.testing import CliRunner

from sluiceway.cli.app import app
from sluiceway.clock import WallClock
from sluiceway.core import document, ledger
from sluiceway.core import job as jobs
from sluiceway.core.call import Usage
from sluiceway.core.catalog import Price
from sluiceway.core.outcome import Escalation, Result, Review, Status
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task
from sluiceway.policyfile import open_runner, read_policy

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "deploy" / "policies"
SHIPPED = sorted(path.name for path in POLICIES.glob("*.yaml"))
HOSTED = [name for name in SHIPPED if name != "recorded.yaml"]  # which answers from a file; the demo's tests run it
CHEAP_SWAP = ("gpt-5.5-with-deepseek-v4-flash.yaml", "gpt-5.5-with-gpt-5.4-mini.yaml")
ENVIRON = {
    "OPENAI_API_KEY": "sk-fake",
    "ANTHROPIC_API_KEY": "sk-fake",
    "DEEPSEEK_API_KEY": "sk-fake",
    "FIREWORKS_API_KEY": "sk-fake",
    "SLUICEWAY_SECRET": "a secret of this test and of nobody else",
}
JOBS = 1000
SEED = 3
DOUBTED = 0.001  # probability of a whole doubted answer: low enough for the mean over its tokens too


class _NoMeter:
    def finished(self, record: Result | Review | Escalation, *, known: int) -> None:
        """Counts nothing: the test reads the records themselves."""


class _Scripted:
    """The fake's usual answers, 10% of them in deep doubt. It knows no patterns, so dates are put right here; and plain
    JSON mode sends no schema for words, so there the words listed in the prompt tell the task."""

    def __init__(self, policy: Policy) -> None:
        self._tasks = policy.tasks.values()
        self._usual = labels(seed=SEED, doubt=0.1, doubted=DOUBTED)

    def __call__(self, request: FakeRequest) -> Any:
        if request.json_mode == "on":
            for task in self._tasks:
                words = task.labels or task.tags or ()
                if words and all(word in request.system for word in words):
                    chosen = words[int(request.share("word", SEED) * len(words))]
                    value = {"label": chosen} if task.labels else {"tags": [chosen]}
                    return FakeAnswer(value=value, confidence=DOUBTED if request.share("doubt", SEED) < 0.1 else 0.99)
        answer = self._usual(request)
        if isinstance(answer, FakeAnswer) and isinstance(answer.value, dict):
            dates = {name: "2024-01-31" for name in answer.value if name.endswith("_date")}
            return dataclasses.replace(answer, value={**answer.value, **dates})
        return answer


def _pointed_at(url: str, name: str, folder: Path) -> Path:
    """A copy of the policy whose models are all served at `url`; nothing else differs."""
    shutil.copytree(POLICIES, folder, dirs_exist_ok=True)
    tree = document.parse((POLICIES / name).read_text("utf-8"), name).data
    for model in tree["models"].values():
        model.pop("endpoints", None)
        model["base_url"] = url if model["provider"] == "anthropic" else f"{url}/v1"
    copy = folder / name
    copy.write_text(yaml.safe_dump(tree), "utf-8")
    return copy


def _record(number: int, tasks: list[Task]) -> dict[str, Any]:
    task = tasks[number % len(tasks)]
    stakes = ("normal", "normal", "normal", "high", "critical")[number // len(tasks) % 5]
    text = f"Case {number}: I was charged twice for my order and cannot log in to my account since Monday, please help."
    return {"id": f"job-{number}", "task": task.name, "input": {"text": text}, "stakes": stakes}


async def _run_all(policy: Policy) -> list[Result | Review]:
    """All jobs through both roles: what the first hands on, the second takes up."""
    runner, pool = open_runner(policy, clock=WallClock(), meter=_NoMeter(), environ=ENVIRON)
    tasks = list(policy.tasks.values())
    room = asyncio.Semaphore(100)

    async def one(number: int) -> Result | Review:
        async with room:
            job = jobs.admit(_record(number, tasks), origin=f"test:jobs:0:{number}", default_id="")
            record = await runner.run(job)
            if isinstance(record, Escalation):
                record = await runner.resume(record)
            assert not isinstance(record, Escalation), "the escalations role handed a job on"
            return record

    try:
        return list(await asyncio.gather(*(one(number) for number in range(JOBS))))
    finally:
        await pool.close()


@pytest.mark.parametrize("name", HOSTED)
async def test_a_thousand_jobs_all_end_in_an_outcome_and_cost_what_the_server_metered(
    name: str, tmp_path: Path
) -> None:
    """Every job ends in one result or review, and the trails' cost is the server's metered tokens times the price."""
    print(f"seed {SEED}")
    async with FakeModels() as fake:
        policy = read_policy(_pointed_at(fake.url, name, tmp_path))
        fake.script = _Scripted(policy)
        outcomes = await _run_all(policy)
        entries = list(fake.journal.entries)

    served = {model.model: model.price for model in policy.models.values()}
    billed = 0
    for entry in entries:
        price = served[entry.model]
        assert isinstance(price, Price)
        assert entry.metered is not None
        billed += ledger.cost(Usage(**dataclasses.asdict(entry.metered)), price)

    assert len(outcomes) == JOBS
    assert {outcome.job_id for outcome in outcomes} == {f"job-{number}" for number in range(JOBS)}
    assert sum(outcome.cost_picousd for outcome in outcomes) == billed
    # The fake answers well, so nothing but the policy's own rules may keep an answer from being delivered.
    undelivered = {o.reason.value for o in outcomes if isinstance(o, Review) or o.status is Status.REFUSED if o.reason}
    assert undelivered <= {"always", "out_of_scope"}
    assert sum(isinstance(o, Result) and o.status is Status.ANSWERED for o in outcomes) > JOBS / 2
    # Each model of the policy has work: the cheap ones by default, the frontier by doubt and by rule.
    assert {entry.model for entry in entries} == set(served)


@pytest.mark.parametrize("name", SHIPPED)
def test_check_passes_and_names_each_price_and_where_it_is_from(name: str) -> None:
    """`sluiceway check` accepts the policy as it is shipped, and prints the origin of every price."""
    result = CliRunner().invoke(app, ["check", str(POLICIES / name)], env={**ENVIRON, "COLUMNS": "240"})
    assert result.exit_code == 0, result.output
    policy = read_policy(POLICIES / name)
    for model in policy.models:
        assert model in result.output
        assert policy.prices[model].split(" (")[0] in result.output


def test_swapping_the_cheap_model_changes_nothing_but_its_entry() -> None:
    """The two GPT-5.5 policies, resolved, are equal but for the one model named `cheap`."""
    first, second = (read_policy(POLICIES / name) for name in CHEAP_SWAP)
    assert first.models["cheap"].model == "deepseek-v4-flash"
    assert second.models["cheap"].model == "gpt-5.4-mini"
    assert {name: model for name, model in first.models.items() if name != "cheap"} == {
        name: model for name, model in second.models.items() if name != "cheap"
    }
    assert first.tasks == second.tasks


def test_swapping_the_cheap_model_touches_one_block_of_the_file() -> None:
    """Line by line too: whatever differs stands inside the entry of `cheap`."""
    before, after = ((POLICIES / name).read_text("utf-8").splitlines() for name in CHEAP_SWAP)
    changed = [
        (first, last)
        for kind, first, last, _, _ in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        if kind != "equal"
    ]
    start, end = before.index("  cheap:"), before.index("  frontier:")
    assert changed
    assert all(start < first and last < end for first, last in changed)


def test_the_readme_shows_what_the_recorded_policy_gives(tmp_path: Path) -> None:
    """The picture on the front page is of this policy and these prices: counts and costs are those of a replay now."""
    tickets = ROOT / "src" / "sluiceway" / "demo" / "tickets.csv.gz"
    words = ["replay", str(tickets), "--policy", str(POLICIES / "recorded.yaml"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*words, "--gold", "gold", "--json"])
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout.splitlines()[-1])
    picture = (ROOT / "README.md").read_text("utf-8").split("<!-- demo:begin -->")[1].split("<!-- demo:end -->")[0]
    for label, figure in (
        ("jobs", str(seen["jobs"])),
        ("cost", f"${seen['cost_usd']:.4f}"),
        ("escalated", str(seen["escalated"]["uncertain"])),
        ("reviews", str(seen["reviews"]["unsettled"])),
        *((f"answered by {tier['model']}", str(tier["jobs"])) for tier in seen["answered"]),
    ):
        (line,) = re.findall(rf"^{label} {{2,}}.*$", picture, re.M) or [""]
        assert figure in line, (label, figure)
