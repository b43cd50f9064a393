"""The sharing bench, run small: it counts calls, so what it demands holds whatever machine runs it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.sharing import Asked, backlog, foreign
from tests.bench.test_stream_benches import run


@pytest.mark.slow
@pytest.mark.usefixtures("apache_kafka")
def test_a_backlog_with_30_percent_duplicates_makes_29_percent_fewer_calls_and_shares_none_with_others() -> None:
    """From topic to topic, one worker; its successor after a kill -9 calls for nothing, another policy for all."""
    found = run("sharing", "--jobs", "300")
    assert len(found["laws"]) == 5
    assert [law for law, held in found["laws"].items() if not held] == []
    calls = {each["name"]: each["calls"] for each in found["runs"]}
    assert calls["off"] > 300 > calls["cache"] > 200


def test_the_backlog_has_its_copies_and_its_look_alikes() -> None:
    """30% exact copies; texts that come again under another tenant or clearance are not among them."""
    asked = backlog(1000, seed=1)
    assert len(asked) == 1000
    assert len(set(asked)) == 700
    assert len({each.text for each in asked}) == 420
    pairs = [(one, other) for one in set(asked) for other in set(asked) if one.text == other.text and one != other]
    assert sum(one.tenant != other.tenant for one, other in pairs) >= 140
    assert sum(one.clearance != other.clearance for one, other in pairs) >= 140


def test_a_reply_that_serves_another_tenant_or_clearance_is_noticed() -> None:
    """The bench's own eye: by the model's id of the reply."""
    mine, copy = Asked("t", "acme", "public"), Asked("t", "acme", "public")
    others = [Asked("t", "globex", "public"), Asked("t", "acme", "internal"), Asked("u", "acme", "public")]

    def answered(response_id: str) -> dict[str, Any]:
        return {"trail": {"steps": [{"step": "routed"}, {"step": "attempt", "response_id": response_id}]}}

    assert foreign([(mine, answered("r1")), (copy, answered("r1"))]) == 0
    assert [foreign([(mine, answered("r1")), (other, answered("r1"))]) for other in others] == [1, 1, 1]
