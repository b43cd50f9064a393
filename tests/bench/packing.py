"""What packing saves, and what it costs where answers are bad: `python -m tests.bench.packing [--json] [--real]`.

banking77 tickets, the demo's prompt with its 77 labels and more, one runner in this process, a fake model that leaves
out a share of the answers beside neighbours and garbles another. The same tickets alone and ten a call. Calls and
tokens are counted, not timed. With `--real` a real small model (SmolLM2-135M by llama.cpp) is asked instead, for what
share of its packed answers is usable; it is far too small to be right, and rightness is not looked at.

Example: python -m tests.bench.packing --jobs 500 --bad 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sluiceway.demo
from sluiceway.clock import WallClock
from sluiceway.core import job as jobs
from sluiceway.core import ledger
from sluiceway.core.answer import validator
from sluiceway.core.outcome import Escalation, Result
from sluiceway.core.policy import Policy
from sluiceway.models import tokens
from sluiceway.policyfile import open_runner, read_policy
from tests.bench._race import conditions
from tests.support.core import MODELS, Counter, load, written
from tests.support.fake_models import FakeModels, labels
from tests.support.fake_packed import jobs_of, packed
from tests.support.fake_scripts import FakeAnswer, FakeFault, FakeRequest
from tests.support.real_model import RealModel
from tests.support.tickets import bank_tickets

LEAST_SAVED = 0.5
TASK = "triage"


def policy_on(url: str, size: int | None, **model: Any) -> Policy:
    """The demo's task on one model; `size` jobs a call, None: each alone."""
    demo = read_policy(Path(sluiceway.demo.__file__).with_name("policy.yaml")).tasks["bank-triage"]
    cheap = {**MODELS["cheap"], "base_url": f"{url}/v1", "params": {"max_tokens": 40}, **model}
    task = {
        "prompt": demo.prompt,
        "labels": list(demo.labels or ()),
        "gate": {"score": "none"},
        "deadline": "10m",
        "packing": None if size is None else {"jobs": size, "wait": "50ms"},
    }
    return load(written(task, {"cheap": cheap}))


async def climb(policy: Policy, texts: list[str]) -> dict[str, Any]:
    """What the tickets come to, by the trails."""
    runner, pool = open_runner(
        policy, clock=WallClock(), meter=Counter(), environ={"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
    )
    taken = [
        jobs.admit({"id": f"j{number}", "task": TASK, "input": text}, origin=f"bench/jobs/0/{number}", default_id="j")
        for number, text in enumerate(texts)
    ]
    records = await asyncio.gather(*[runner.run(job) for job in taken])
    await pool.close()
    valid = validator(policy.tasks[TASK].schema_)
    tried = [record.trail.attempts[-1] for record in records if record.trail.attempts]
    return {
        "answered": sum(isinstance(record, Result) for record in records),
        "valid": sum(isinstance(record, Result) and valid(record.answer) for record in records),
        "malformed": sum(isinstance(record, Escalation) and record.reason == "malformed" for record in records),
        "packed": sum(attempt.packed is not None for attempt in tried),
        "metered_input": sum(attempt.usage.input for attempt in tried),
        "metered_output": sum(attempt.usage.output for attempt in tried),
        "cost_usd": ledger.usd(sum(record.trail.cost_picousd for record in records)),
    }


async def fake(count: int, size: int | None, bad: float) -> dict[str, Any]:
    """One run on the fake model, with what it was sent counted by tiktoken."""
    encoding = tokens.default()
    sent = {"calls": 0, "jobs": 0, "input_tokens": 0}

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        sent["calls"] += 1
        sent["jobs"] += len(jobs_of(request)) or 1
        sent["input_tokens"] += encoding.count(request.system) + encoding.count(request.user)
        return packed(labels(), missing=bad / 2, malformed=bad / 2)(request)

    async with FakeModels(script) as server:
        found = await climb(policy_on(server.url, size), bank_tickets(count))
    return {"size": size or 1, "bad": bad, **sent, "redone": sent["jobs"] - count, **found}


async def real(count: int, size: int | None, model: RealModel, json_mode: str) -> dict[str, Any]:
    """One run on the real model; each ticket once."""
    policy = policy_on(
        model.url,
        size,
        provider="llama.cpp",
        model=model.model,
        json_mode=json_mode,
        price="free",
        timeout="300s",
        context_window=4096,
        params={"max_tokens": 40, "temperature": 0},
        limits={"max_parallel_requests": 2},
    )
    return {"size": size or 1, **await climb(policy, bank_tickets(count))}


async def compare(count: int, bad: float) -> dict[str, Any]:
    alone = await fake(count, None, 0.0)
    runs = [alone, await fake(count, 10, 0.0), await fake(count, 10, bad)]
    saved = [1 - run["input_tokens"] / alone["input_tokens"] for run in runs]
    laws = {
        "ten a call cut input tokens by at least half": saved[1] >= LEAST_SAVED,
        "and still do with bad answers redone": saved[2] >= LEAST_SAVED,
        "every ticket has a schema-valid answer": all(run["valid"] == count for run in runs),
        "bad answers, and no others, are redone": runs[1]["redone"] == 0 < runs[2]["redone"] < 1.5 * bad * count + 10,
    }
    return {"runs": [{**run, "saved": share} for run, share in zip(runs, saved, strict=True)], "laws": laws}


def compare_real(count: int, json_mode: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, RealModel(Path(folder)) as model:
        return {"runs": [asyncio.run(real(count, size, model, json_mode)) for size in (None, 10)], "laws": {}}


def show(found: dict[str, Any]) -> None:
    for run in found["runs"]:
        print(
            ", ".join(
                f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}"
                for name, value in run.items()
            )
        )
    for law, held in found["laws"].items():
        print(f"{'holds' if held else 'BROKEN'}: {law}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.packing", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--real", action="store_true", help="ask the real small model")
    parser.add_argument("--json-mode", default="strict", help="how the real model is held to JSON: strict, on, off")
    parser.add_argument("--jobs", type=int, default=0, help="tickets: 1000, or 20 with --real")
    parser.add_argument("--bad", type=float, default=10.0, help="per cent of packed answers that are bad")
    given = parser.parse_args(arguments)
    found = (
        compare_real(given.jobs or 20, given.json_mode)
        if given.real
        else asyncio.run(compare(given.jobs or 1000, given.bad / 100))
    )
    found["conditions"] = conditions()
    if given.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if all(found["laws"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
