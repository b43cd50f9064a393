"""A policy file made ready: the same file means the same to worker, replay and check, and what is missing is named."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.core import Counter

from sluiceway import language
from sluiceway.cli.init import POLICY
from sluiceway.clock import WallClock
from sluiceway.core.catalog import JsonMode, Price
from sluiceway.core.errors import InputError, PolicyError
from sluiceway.policyfile import open_runner, read_policy, read_secret

SMALLEST = yaml.safe_load(POLICY.format(name="policy.yaml"))


def write(folder: Path, tree: dict[str, Any], name: str = "policy.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def smallest(**changes: Any) -> dict[str, Any]:
    """The policy that `init` writes, with `changes` to its task."""
    return {**SMALLEST, "tasks": {"ticket-triage": {**SMALLEST["tasks"]["ticket-triage"], **changes}}}


def test_the_smallest_policy_is_priced_by_the_library(tmp_path: Path) -> None:
    """Each price has its origin, provider and model included; addresses are the providers'."""
    policy = read_policy(write(tmp_path, SMALLEST))
    assert policy.prices["cheap"].endswith("openai/gpt-5.4-mini")
    assert policy.prices["frontier"].endswith("anthropic/claude-opus-4-8")
    cheap = policy.models["cheap"]
    assert isinstance(cheap.price, Price)
    assert cheap.price.output_mtok > 0
    assert cheap.endpoints[0].base_url == "https://api.openai.com/v1"
    assert policy.warnings == ()


def test_a_model_is_priced_in_the_service_tier_it_is_asked_in(tmp_path: Path) -> None:
    """priority is twice the standard price of it: a budget that counted the standard one would spend double."""
    cheap = SMALLEST["models"]["cheap"]
    dear = {**cheap, "params": {**cheap["params"], "service_tier": "priority"}}
    plain, policy = (
        read_policy(write(tmp_path, {**SMALLEST, "models": {**SMALLEST["models"], "cheap": model}}))
        for model in (cheap, dear)
    )
    assert policy.models["cheap"].price.input_mtok == 2 * plain.models["cheap"].price.input_mtok
    assert policy.prices["cheap"] == f"{plain.prices['cheap']} (service tier priority)"
    assert policy.digest != plain.digest


def test_files_are_found_from_the_policy_and_not_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, schema and recording lie beside it; the digest holds what is in them, not where they lie."""
    digests = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "p.j2").write_text("Classify: what is it?")
        (folder / "r.csv").write_text("text,cheap\nhello,login\n")
        tree = smallest(prompt="p.j2", gate={"score": "none"})
        tree["models"] = {**tree["models"], "cheap": {"api": "recorded", "file": "r.csv", "price": "free"}}
        path = write(folder, tree)
        monkeypatch.chdir(tmp_path)
        policy = read_policy(path)
        assert policy.tasks["ticket-triage"].prompt == "Classify: what is it?"
        assert policy.models["cheap"].file == str(folder / "r.csv")
        digests.add(policy.digest)
    assert len(digests) == 1
    (tmp_path / "b" / "r.csv").write_text("text,cheap\nhello,billing\n")
    assert read_policy(tmp_path / "b" / "policy.yaml").digest not in digests


def test_a_missing_file_is_a_fault_with_its_line_and_the_policy_itself_an_input_error(tmp_path: Path) -> None:
    """The user is told which, and where it was looked for."""
    path = write(tmp_path, smallest(prompt="nowhere.j2"))
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    (fault,) = caught.value.faults
    assert fault.field == "tasks.ticket-triage.prompt"
    assert str(tmp_path / "nowhere.j2") in fault.problem
    with pytest.raises(InputError, match="sluiceway init"):
        read_policy(tmp_path / "nowhere.yaml")


def test_a_provider_that_takes_no_schema_is_not_sent_one(tmp_path: Path) -> None:
    """DeepSeek's chat has plain JSON mode only: nobody's first run is a 400. What the policy says wins."""
    tree = smallest()
    deepseek = {"provider": "deepseek", "model": "deepseek-v4-flash", "params": {"max_tokens": 50}}
    tree["models"] = {**tree["models"], "cheap": deepseek}
    assert read_policy(write(tmp_path, tree)).models["cheap"].json_mode is JsonMode.ON
    tree["models"]["cheap"] = {**deepseek, "json_mode": "tool"}
    tree["tasks"]["ticket-triage"]["gate"] = {"score": "votes", "votes": 3, "threshold": 0.6}
    assert read_policy(write(tmp_path, tree)).models["cheap"].json_mode is JsonMode.TOOL


def test_a_price_by_the_hour_gives_one_digest_a_day_and_a_warning(tmp_path: Path) -> None:
    """Workers that start at different hours run the same policy."""
    tree = smallest()
    deepseek = {"provider": "deepseek", "model": "deepseek-v4-flash", "params": {"max_tokens": 50}}
    tree["models"] = {**tree["models"], "cheap": deepseek}
    path = write(tmp_path, tree)
    early, late = (read_policy(path, at=datetime(2026, 11, 22, hour, tzinfo=UTC)) for hour in (2, 20))
    assert early.digest == late.digest
    assert early.prices == late.prices
    assert any("varies by the hour" in warning for warning in early.warnings)


def test_the_secret_is_demanded_only_where_a_coin_is_tossed(tmp_path: Path) -> None:
    """With the mend; a short one is refused, and its value is never shown."""
    plain = read_policy(write(tmp_path, smallest()))
    assert read_secret(plain, {})
    tossing = read_policy(write(tmp_path, smallest(review={"sample": "1%"})))
    with pytest.raises(InputError, match=r"export SLUICEWAY_SECRET=\$\(openssl rand -hex 32\)"):
        read_secret(tossing, {})
    with pytest.raises(InputError, match="6 bytes") as caught:
        read_secret(tossing, {"SLUICEWAY_SECRET": "hunter"})
    assert "hunter" not in str(caught.value)
    assert read_secret(tossing, {"SLUICEWAY_SECRET": "0123456789abcdef"}) == b"0123456789abcdef"


async def test_a_runner_is_not_opened_without_its_keys(tmp_path: Path) -> None:
    """The variable is named before any job is taken."""
    policy = read_policy(write(tmp_path, smallest()))
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        open_runner(policy, clock=WallClock(), meter=Counter(), environ={})
    keys = {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-test"}
    runner, pool = open_runner(policy, clock=WallClock(), meter=Counter(), environ=keys)
    await pool.close()
    assert list(runner.plans) == ["ticket-triage"]


def test_a_language_rule_needs_the_extra_and_no_other_policy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what to install."""
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    rules = [{"when": "language not in [en, de]", "at": "frontier"}]
    policy = read_policy(write(tmp_path, smallest(start=rules)))
    keys = {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-test"}
    with pytest.raises(InputError, match=r"sluiceway\[language\]"):
        open_runner(policy, clock=WallClock(), meter=Counter(), environ=keys)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("My card was charged twice for the same order.", "en"),
        ("Meine Karte wurde für dieselbe Bestellung zweimal belastet.", "de"),
        ("Ma carte a été débitée deux fois pour la même commande.", "fr"),
        ("我的卡被重复扣款", "zh"),
        ("12345 999", language.UNKNOWN),
        ("ok", language.UNKNOWN),
        ("", language.UNKNOWN),
        ("\ud800\x00", language.UNKNOWN),
    ],
)
def test_languages_are_told_and_doubt_is_said(text: str, code: str) -> None:
    """The same text is always in the same language; what is in none is `und`."""
    detect = language.detector()
    assert detect(text) == code == detect(text)


async def test_the_clock_runs_forwards_and_wakes_no_sleeper_early() -> None:
    """A time that has passed is no wait."""
    clock = WallClock()
    start = clock.now()
    await clock.sleep_until(start - 100)
    await clock.sleep_until(start + 0.01)
    assert clock.now() >= start + 0.01
