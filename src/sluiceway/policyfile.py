"""A policy file made ready to run: read, completed with known prices and addresses, opened as runner and pool.

Worker, replay and `check --live` all come through here, so that the same file means the same thing to each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sluiceway import language
from sluiceway.core import policy as policies
from sluiceway.core.cascade import Role
from sluiceway.core.catalog import Model
from sluiceway.core.errors import InputError
from sluiceway.core.leave import NEVER, Leaving
from sluiceway.core.policy import Offer, Policy
from sluiceway.core.route import Router
from sluiceway.models import prices, providers, tokens
from sluiceway.models.packing import PackedCalls
from sluiceway.models.pool import Pool
from sluiceway.models.sharing import SharedCalls
from sluiceway.ports import Answers, Clock, Journal, Meter, Models, Tracer
from sluiceway.runner import Runner

_JITTER_ONLY = b"sluiceway: no rule of this policy tosses a coin"
_SHORTEST_SECRET = 16  # bytes


def read_policy(path: str | Path, *, at: datetime | None = None) -> Policy:
    """The policy in `path`, with the prices of the day `at` (today); files that it names are relative to it.

    Raises PolicyError with every fault, InputError where the file itself can't be read.
    """
    file = Path(path)
    text = _read(file, "Mend: name an existing policy file; `sluiceway init` writes one")
    day = (at or datetime.now(UTC)).astimezone(UTC)
    # A price that changes by the hour is taken at noon, so that all workers of a day agree on one digest.
    noon = day.replace(hour=12, minute=0, second=0, microsecond=0)
    policy = policies.load(
        text,
        file=str(path),
        read=lambda name: _read(file.parent / name),
        offers=lambda provider, model, tier: _offer(provider, model, tier, noon),
        locate=lambda name: _located(file.parent / name),
    )
    by_the_hour = tuple(
        f"models.{name}: its price varies by the hour; noon's is counted (write `price:` to count another)"
        for name, origin in policy.prices.items()
        if "varies by the hour" in origin
    )
    return dataclasses.replace(policy, warnings=(*policy.warnings, *by_the_hour))


def open_runner(
    policy: Policy,
    *,
    clock: Clock,
    meter: Meter,
    environ: Mapping[str, str] | None = None,
    journal: Journal | None = None,
    answers: Answers | None = None,
    roles: Collection[Role] = tuple(Role),
    leaving: Leaving = NEVER,
    tracer: Tracer | None = None,
) -> tuple[Runner, Pool]:
    """A runner of `policy` on its real models; whoever opens them closes the pool. No model is called yet.

    Only the models that `roles` can call are opened: a jobs worker needs no key of a reference. `answers`: where those
    that the policy lets be kept outlive the process.

    Raises InputError: a key, a secret, a file or an installed extra is missing; each with its mend.
    """
    environ = os.environ if environ is None else environ
    encoding = tokens.default()
    secret = read_secret(policy, environ)
    detect = language.detector() if _needs_language(policy) else None
    pool = Pool.open(_called_by(policy, roles), clock, encoding, environ=environ)
    models: Models = pool if tracer is None else tracer.calls(pool)
    if any(task.packing for task in policy.tasks.values()):
        models = PackedCalls(models, policy.tasks, encoding, clock, pool.alike)
    if policy.sharing.on:
        models = SharedCalls(models, policy.sharing, policy.digest, clock, answers, pool.alike)
    runner = Runner(
        policy,
        models,
        clock=clock,
        tokens=encoding,
        meter=meter,
        secret=secret,
        language=detect,
        journal=journal,
        leaving=leaving,
        tracer=tracer,
    )
    return runner, pool


def read_secret(policy: Policy, environ: Mapping[str, str]) -> bytes:
    """The coins' secret, from the variable that the policy names; demanded only where a rule tosses one."""
    value = environ.get(policy.secret_env, "").strip().encode()
    if len(value) >= _SHORTEST_SECRET:
        return value
    if value:
        problem = f"{policy.secret_env} holds {len(value)} bytes, fewer than {_SHORTEST_SECRET}"
    elif policy.tosses:
        problem = f"review.sample tosses a coin, and {policy.secret_env} holds no secret for it"
    else:
        return _JITTER_ONLY
    raise InputError("secret", f"{problem}. Mend: export {policy.secret_env}=$(openssl rand -hex 32)")


def _called_by(policy: Policy, roles: Collection[Role]) -> dict[str, Model]:
    names: set[str | None] = set()
    for task in policy.tasks.values():
        rungs = [rung for rung in task.ladder if rung is not task.reference] if Role.JOBS in roles else []
        rungs += [task.reference] if Role.ESCALATIONS in roles else []
        names |= {rung.model for rung in rungs}
        names |= {gate.model for rung in rungs if (gate := task.gate_of(rung)) is not None}
    return {name: model for name, model in policy.models.items() if name in names}


def _needs_language(policy: Policy) -> bool:
    return any(Router(task, policy.models).needs_language for task in policy.tasks.values())


def _read(file: Path, mend: str = "") -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError("file", f"{file}: can't be read ({problem}). {mend}".rstrip(" .")) from None


def _located(file: Path) -> tuple[str, str]:
    """Where a model's file lies, and the sha256 of its bytes."""
    try:
        return str(file), hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError("file", f"{file}: can't be read ({error.strerror})") from None


def _offer(provider: str, model: str, tier: str | None, at: datetime) -> Offer:
    known = providers.find(provider)
    listed = prices.find(provider, model, at, tier)
    return Offer(
        api=known.api if known else None,
        base_url=known.base_url if known else None,
        api_key_env=known.key_env if known else None,
        price=listed.price if listed else None,
        origin=listed.origin if listed else "",
        context_window=listed.context_window if listed else None,
        similar=() if listed else tuple(prices.suggestions(provider, model)),
        json_mode=known.json_mode if known else None,
    )
