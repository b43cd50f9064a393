"""Routes: decided before any call, on measured facts and what the job declares."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.core import job, plan

from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.health import Health
from sluiceway.core.outcome import RefusalReason
from sluiceway.core.route import NoRoute, Route

MID = {"mid": {"provider": "openai", "model": "gpt-mid", "params": {"max_tokens": 50}}}


def route(
    task: dict[str, Any] | None = None,
    models: dict[str, Any] | None = None,
    *,
    text: str = "hello",
    health: dict[str, Health] | None = None,
    left: float = 100.0,
    language: str = "und",
    **declared: Any,
) -> Route | NoRoute:
    made = plan({"ladder": ["cheap", "mid", "frontier"], **(task or {})}, {**MID, **(models or {})})
    known = job(text, **declared)
    facts = made.router.facts(known, len(text), language)
    return made.router.plan(known, facts, health or {}, 1000.0, left)


def names(made: Route | NoRoute) -> list[str]:
    assert isinstance(made, Route), made
    return [rung.model for rung in made.rungs]


def test_without_a_reason_the_whole_ladder_is_the_route() -> None:
    """Cheapest first."""
    assert names(route()) == ["cheap", "mid", "frontier"]


def test_a_rule_only_raises_the_start() -> None:
    """Of several rules the highest counts, whatever their order; none can lower it."""
    start = [{"when": "tokens > 0", "at": "mid"}, {"when": "stakes >= high", "at": "frontier"}]
    assert names(route({"start": start})) == ["mid", "frontier"]
    assert names(route({"start": start}, stakes="high")) == ["frontier"]
    assert names(route({"start": start[::-1]}, stakes="high")) == ["frontier"]
    made = route({"start": start}, stakes="high")
    assert isinstance(made, Route)
    assert made.rule == "stakes >= high"
    assert made.left_out == {"cheap": "rule: stakes >= high", "mid": "rule: stakes >= high"}


@pytest.mark.parametrize(
    ("declared", "level"), [(None, Level.HIGH), ("low", Level.HIGH), ("high", Level.HIGH), ("critical", Level.CRITICAL)]
)
def test_a_job_may_only_raise_its_stakes(declared: str | None, level: Level) -> None:
    """What it declares below its task's is not heard; so with its priority."""
    made = plan({"stakes": "high", "priority": "high"})
    facts = made.router.facts(job(stakes=declared, priority=declared), 1)
    assert (facts.stakes, facts.priority) == (level, level)


@pytest.mark.parametrize(
    ("declared", "clearance"),
    [(None, Clearance.INTERNAL), ("public", Clearance.INTERNAL), ("restricted", Clearance.RESTRICTED)],
)
def test_a_job_may_only_raise_its_clearance(declared: str | None, clearance: Clearance) -> None:
    """Public text of an internal task stays internal."""
    assert plan().router.facts(job(clearance=declared), 1).clearance is clearance


def test_a_model_below_the_clearance_is_left_out_with_its_reason() -> None:
    """And without any other there is no route."""
    public = {"cheap": {"provider": "openai", "model": "m", "params": {"max_tokens": 9}, "clearance": "public"}}
    made = route(models=public)
    assert names(made) == ["mid", "frontier"]
    assert made.left_out == {"cheap": "clearance: public < internal"}
    none = route(clearance="confidential")
    assert isinstance(none, NoRoute)
    assert none.reason is RefusalReason.NO_CLEARED_MODEL


def test_a_rung_that_is_down_is_left_out_while_another_cheap_one_is_up() -> None:
    """When all are down the cascade treats it as a failure, so that an outage stays within `failed_share`."""
    down, up = Health(out_until=2000.0), Health(out_until=999.0)
    assert names(route(health={"cheap": down, "mid": up})) == ["mid", "frontier"]
    assert names(route(health={"cheap": down, "mid": down})) == ["cheap", "mid", "frontier"]
    assert names(route(health={"frontier": down})) == ["cheap", "mid", "frontier"]


def test_a_rung_that_would_be_late_is_left_out() -> None:
    """By its recent p95 against the time left; never the reference, and never the last that remains."""
    slow = Health(p95=50.0)
    assert names(route(health={"cheap": slow}, left=49.0)) == ["mid", "frontier"]
    assert names(route(health={"cheap": slow}, left=51.0)) == ["cheap", "mid", "frontier"]
    assert names(route(health={"cheap": slow, "mid": slow, "frontier": slow}, left=5.0)) == ["frontier"]
    public = {"frontier": {"provider": "anthropic", "model": "m", "params": {"max_tokens": 9}, "clearance": "public"}}
    kept = route(models=public, health={"cheap": slow, "mid": slow}, left=5.0)
    assert names(kept) == ["cheap", "mid"]


def test_late_and_down_together_leave_somebody() -> None:
    """Two reasons never empty a route that either alone would not."""
    health = {"cheap": Health(p95=50.0), "mid": Health(out_until=2000.0)}
    assert names(route(health=health, left=5.0)) == ["mid", "frontier"]


def test_context_is_for_models_that_read_it() -> None:
    """A classifier and a recording answer a text alone."""
    recorded = {"cheap": {"api": "recorded", "file": "x.csv", "price": "free"}}
    task = {"gate": {"score": "none"}}
    passages = [{"id": "a", "text": "b"}]
    assert names(route(task, recorded, context=passages)) == ["mid", "frontier"]
    assert names(route(task, recorded)) == ["cheap", "mid", "frontier"]


def test_without_trimming_a_text_needs_a_window_that_holds_it() -> None:
    """A longer text starts higher."""
    small = {"cheap": {"provider": "openai", "model": "m", "params": {"max_tokens": 50}, "context_window": 300}}
    assert names(route({"trim": "none"}, small, text="x" * 251)) == ["mid", "frontier"]
    assert names(route({"trim": "none"}, small, text="x" * 250)) == ["cheap", "mid", "frontier"]
    assert names(route(models=small, text="x" * 251)) == ["cheap", "mid", "frontier"]


def test_a_language_is_a_measured_fact() -> None:
    """Told only where a rule asks."""
    task = {"start": [{"when": "language not in [en, und]", "at": "frontier"}]}
    assert names(route(task, language="fi")) == ["frontier"]
    assert names(route(task, language="en")) == ["cheap", "mid", "frontier"]
    assert plan(task).router.needs_language
    assert not plan().router.needs_language


def test_a_job_that_no_window_holds_is_refused() -> None:
    """With `too_long`, which says what to change."""
    tiny = {"provider": "openai", "params": {"max_tokens": 50}, "context_window": 300}
    models = {name: {**tiny, "model": name} for name in ("cheap", "mid", "frontier")}
    made = route({"trim": "none"}, models, text="x" * 400)
    assert isinstance(made, NoRoute)
    assert made.reason is RefusalReason.TOO_LONG
