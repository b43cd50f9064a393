"""A policy as a tree of plain values: what `check --json` prints, and what its tables are drawn from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sluiceway.core.catalog import Model, Price
from sluiceway.core.outcome import BAR_NOT_PROVED
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task
from sluiceway.models import providers
from sluiceway.topicmap import topic_map

PRICES = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")


def describe(policy: Policy, file: str) -> dict[str, Any]:
    """All that will run under `policy`. Prices are USD a million tokens, times are seconds."""
    topics = topic_map(policy)
    return {
        "schema": "sluiceway.check/1",
        "policy": file,
        "digest": policy.digest,
        "models": [_model(model, policy.prices[name]) for name, model in policy.models.items()],
        "tasks": [_task(task, policy.models) for task in policy.tasks.values()],
        "topics": {"read": list(topics.jobs), "written": list(topics.written)},
        "warnings": list(policy.warnings),
    }


def _model(model: Model, origin: str) -> dict[str, Any]:
    price = model.price if isinstance(model.price, Price) else Price()
    return {
        "name": model.name,
        "provider": model.provider,
        "model": model.model,
        "tier": model.tier,
        "api": model.api.value,
        "endpoints": [providers.origin(endpoint.base_url) for endpoint in model.endpoints],
        "file": model.file,
        "key": _key(model),
        "price": {name: float(value) for name in PRICES if (value := getattr(price, name)) is not None},
        "price_origin": origin,
        "price_tiers": [tier.from_tokens for tier in price.tiers],
        "clearance": model.clearance.name.lower(),
        "context_window": model.context_window,
        "json_mode": model.json_mode.value,
        "params": model.params.model_dump(exclude_none=True),
        "limits": model.limits.model_dump(exclude_none=True),
    }


def _key(model: Model) -> str | None:
    """Where the key comes from, and whether its variable is set; never the key."""
    if not model.endpoints:
        return None
    known = providers.find(model.provider)
    first = model.endpoints[0]
    if first.api_key_file or (model.api_key_file and not first.api_key_env):
        return f"file {first.api_key_file or model.api_key_file}"
    name = first.api_key_env or model.api_key_env or (known.key_env if known else None)
    return None if name is None else f"{name} ({'set' if os.environ.get(name) else 'not set'})"


def _task(task: Task, models: Mapping[str, Model]) -> dict[str, Any]:
    written = task.model_dump(mode="json")
    rungs = []
    for rung in task.ladder:
        gate = task.gate_of(rung)
        rungs.append(
            {
                "model": rung.model,
                "tier": models[rung.model].tier,
                "reference": rung is task.reference,
                "gate": None if gate is None else gate.model_dump(mode="json", exclude_none=True),
                "input_tokens": rung.input_tokens,
            }
        )
    return {
        "name": task.name,
        "kind": task.kind.value,
        "ladder": rungs,
        "bar": None if task.bar is None else {**written["bar"], "state": BAR_NOT_PROVED},
        "agree_on": list(task.compared),
        **{name: written[name] for name in ("clearance", "stakes", "priority", "risk", "deadline", "budget")},
        **{name: written[name] for name in ("start", "refuse", "review", "on_failure", "failed_share", "out_of_scope")},
        **{name: written[name] for name in ("max_bytes", "trim", "packing", "topic", "results", "source")},
    }
