"""Document tagging by a real language model through Kafka, beside a triage task in the same worker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import DEAD_LETTERS, ESCALATIONS, JOBS, RESULTS, REVIEWS, attempts
from tests.support.real_model import RealModel
from tests.support.rig import LABELS, Rig, job, models, triage
from tests.support.tickets import bank_tickets, stories

TAGS = [
    "earnings", "acquisitions", "money-market", "foreign-exchange", "grain", "crude-oil", "trade", "interest-rates",
    "shipping", "wheat", "corn", "sugar", "coffee", "gold", "natural-gas", "oilseed", "livestock", "cocoa", "copper",
    "other",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.timeout(7200))])
async def test_stories_are_tagged_by_a_real_model_while_tickets_share_its_worker(
    rig: Rig, real_model: RealModel, tmp_path: Path, count: int
) -> None:
    """Every answer holds tags of the schema alone or was escalated; long stories are cut, and their trails say so."""
    with (
        FakeProcess(tmp_path / "cheap.jsonl", "labels seed=3 doubt=10%", name="cheap") as cheap,
        FakeProcess(tmp_path / "frontier.jsonl", "labels seed=4", name="frontier") as frontier,
    ):
        catalog = models(cheap.url, frontier.url)
        catalog["smol"] = {
            "provider": "llama.cpp",
            "base_url": f"{real_model.url}/v1",
            "model": real_model.model,
            "tier": "local",
            "price": "free",
            "context_window": 4096,
            "params": {"max_tokens": 40, "temperature": 0, "seed": 7},
            # Without these so small a model repeats a tag until it is cut.
            "extra_body": {"presence_penalty": 1.5, "frequency_penalty": 0.5},
            "limits": {"max_parallel_requests": 2},
            "timeout": "60s",
        }
        tagging = {
            "ladder": [{"model": "smol", "input_tokens": 290}, "frontier"],
            "prompt": "Which topics is this news story about?",
            "tags": TAGS,
            "gate": {"score": "mean_logprob", "threshold": 0.05},
            "deadline": "6h",
        }
        await rig.open(catalog, {"document-tagging": tagging, "ticket-triage": triage()})
        texts = stories(count)
        documents = [job(f"story-{n}", text, "document-tagging") for n, text in enumerate(texts)]
        tickets = [job(n, text) for n, text in enumerate(bank_tickets(10 * count))]
        mixed = [item for n, document in enumerate(documents) for item in (document, *tickets[10 * n : 10 * n + 10])]
        await rig.publish(JOBS, mixed)
        worker = rig.worker()
        triaged = {f"job-{n}" for n in range(10 * count)}
        tagged = {f"job-story-{n}" for n in range(count)}
        seen = await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= triaged, within=60)
        # The tickets, of which there are ten for each story, do not wait for the slow model.
        waited = len(tagged - seen.ids(RESULTS, REVIEWS, ESCALATIONS))
        await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= tagged, within=60 + 12 * count)
        assert await rig.stopped(worker) == [0]
        seen = await rig.settled()

    assert not seen[DEAD_LETTERS]
    results = {outcome["job_id"]: outcome for outcome in seen.bodies(RESULTS)}
    assert set(results) == triaged | tagged
    escalated: Counter[str] = Counter()
    trimmed = 0
    for name in tagged:
        outcome = results[name]
        own, *_ = attempts(outcome)
        assert own["model"] == "smol"
        assert valid(outcome["answer"])
        trimmed += own["prompt"]["trimmed"]
        if outcome["model"] == "smol":
            assert own["score"]["value"] >= 0.05
            assert outcome["escalated"] is None
        else:
            assert outcome["model"] == "frontier"
            assert outcome["escalated"] in ("uncertain", "malformed", "declined", "failed")
            escalated[outcome["escalated"]] += 1
        assert own["failure"] is None
        assert own["usage"]["output_text"] > 0
    assert all(results[name]["answer"]["label"] in LABELS for name in triaged)
    print(
        f"{count} stories: {count - escalated.total()} answered by the real model, escalated {dict(escalated)}, "
        f"{trimmed} trimmed; {waited} of them still waited when the last of {len(triaged)} tickets was answered"
    )
    assert trimmed > 0
    assert escalated.total() < count, "the real model answered nothing: the test shows little"


def valid(answer: Any) -> bool:
    return (
        isinstance(answer, dict)
        and set(answer) == {"tags"}
        and isinstance(answer["tags"], list)
        and set(answer["tags"]) <= set(TAGS)
    )
