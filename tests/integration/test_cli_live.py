"""`check --live`: one real call to each model; a gate that its model can't feed is refused before any job is paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from tests.support.fake_models import FakeModels, labels
from tests.support.fake_scripts import Script, incapable, with_headers

from sluiceway.clock import WallClock
from sluiceway.core.errors import InputError
from sluiceway.live import probe
from sluiceway.policyfile import read_policy

KEY = "sk-canary-openai"


def policy(folder: Path, fake: FakeModels, **cheap: Any) -> Path:
    model = {"provider": "openai", "model": "m-1", "base_url": f"{fake.url}/v1", "params": {"max_tokens": 50}}
    model["price"] = "free"
    task = {"ladder": ["cheap", "frontier"], "prompt": "Classify.", "labels": ["a", "b"]}
    task["gate"] = {"score": "label_logprob", "threshold": 0.85}
    path = folder / "policy.yaml"
    tree = {"models": {"cheap": {**model, **cheap}, "frontier": {**model, "model": "m-2"}}, "tasks": {"t": task}}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


async def test_a_policy_that_its_models_can_serve_is_not_refused(tmp_path: Path) -> None:
    """Key, JSON mode, logprobs and limit headers are reported; each model is called once."""
    script = with_headers(labels(), {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499"})
    async with FakeModels(script, keys=frozenset({KEY})) as fake:
        reports, refused = await probe(read_policy(policy(tmp_path, fake)), WallClock())
        assert refused == []
        assert [(one.model, one.ok, one.key, one.json_mode, one.logprobs) for one in reports] == [
            ("cheap", True, True, True, True),
            ("frontier", True, True, True, True),
        ]
        assert reports[0].rate_limits is not None
        assert len(fake.journal.entries) == 2
        assert KEY.encode() not in orjson.dumps(reports)


@pytest.mark.parametrize(
    ("script", "cheap", "said"),
    [
        (incapable(labels(), logprobs=False), {}, "tasks.t: gate label_logprob needs logprobs, and cheap gives none"),
        (incapable(labels(), json_schema=False), {}, "models.cheap"),
        (labels(), {"api_key_env": "OTHER_KEY"}, "the key is refused"),
        (labels(), {"base_url": "http://127.0.0.1:1/v1"}, "models.cheap: http://127.0.0.1:1 fails"),
    ],
)
async def test_what_could_not_run_is_refused_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, cheap: dict[str, Any], said: str
) -> None:
    """No logprobs for a logprob gate, no JSON schema, a wrong key, nobody there."""
    monkeypatch.setenv("OTHER_KEY", "sk-of-another")
    async with FakeModels(script, keys=frozenset({KEY})) as fake:
        _, refused = await probe(read_policy(policy(tmp_path, fake, **cheap)), WallClock())
    assert any(said in reason and "Mend: " in reason for reason in refused), refused


async def test_a_key_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any call."""
    monkeypatch.delenv("OPENAI_API_KEY")
    async with FakeModels() as fake:
        with pytest.raises(InputError, match="OPENAI_API_KEY"):
            await probe(read_policy(policy(tmp_path, fake, api_key_env="OPENAI_API_KEY")), WallClock())
        assert fake.journal.entries == []
