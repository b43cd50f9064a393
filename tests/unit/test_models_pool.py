"""The pool: what its models may be asked of their endpoints together."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.core import HandClock

from sluiceway.core.catalog import Endpoint, Limits, Model
from sluiceway.core.permit import Need, Permit
from sluiceway.models import tokens
from sluiceway.models.pool import Pool

HOSTS = ("http://one.test/v1", "http://two.test/v1")
NEED = Need("triage", "", 1e9, 10, 10)
SAVED = 50.0  # seconds; the buckets are full


def named(name: str, **given: Any) -> Model:
    given = {"provider": "own", "model": "tiny", "base_url": HOSTS[0], "limits": Limits(rpm=1200), **given}
    return Model(name=name, **given)


def at_once(pool: Pool, clock: HandClock) -> dict[str, int]:
    """How many calls of each name go now."""
    went = {}
    for name, served in pool._served.items():
        assert served.line is not None
        found = [served.line.permits.ask(NEED, clock.now()) for _ in range(250)]
        went[name] = sum(isinstance(each, Permit) for each in found)
    return went


@pytest.mark.parametrize("part", [1.0, 0.5])
async def test_names_of_one_providers_model_are_given_its_limit_once(part: float) -> None:
    """Another model, or another host, has a limit of its own. 1200 a minute are 100 in the 5 s that are saved up."""
    clock = HandClock(1000.0)
    models = [
        named("quick"),
        named("careful", base_url=f"{HOSTS[0]}/"),
        named("large", model="large"),
        named("afar", base_url=HOSTS[1]),
        named("both", model="wide", endpoints=tuple(Endpoint(base_url=host) for host in HOSTS)),
        named("narrow", model="wide", base_url=HOSTS[1]),
    ]
    pool = Pool.open({each.name: each for each in models}, clock, tokens.default(), environ={})
    if part != 1.0:
        pool.share(dict.fromkeys(pool.limits, part))
    clock.time += SAVED
    found = at_once(pool, clock)
    await pool.close()
    whole = {"quick": 50, "careful": 50, "large": 100, "afar": 100, "both": 150, "narrow": 50}
    assert found == {name: round(count * part) for name, count in whole.items()}
