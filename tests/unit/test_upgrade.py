"""Two versions in one group: each reads what the other wrote.

fixtures/former holds records and a commit's metadata as the version before retry topics wrote them, and its reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support.core import Climb, climb, down, job, plan, reply
from tests.unit.fixtures.former import outcome as former

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Role
from sluiceway.core.offsets import decode_finished, encode_finished
from sluiceway.core.outcome import Ending, Escalation, Result, Review
from sluiceway.core.trail import Waited

HERE = Path(__file__).parent / "fixtures" / "former"
KINDS: dict[type, type] = {Escalation: former.Escalation, Result: former.Result, Review: former.Review}
FINISHED = ((103, 104), (110, 115))  # what commit.txt says above watermark 100


def written(kind: type) -> bytes:
    return (HERE / f"{kind.__name__.lower()}.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_former_version_wrote_is_read_whole(kind: Any) -> None:
    """Nothing of it is lost: what we write of it again says all that it said."""
    value = written(kind)
    again = orjson.loads(outcomes.encode(outcomes.decode(kind, value)))
    _says_all(orjson.loads(value), again)


def _says_all(old: Any, new: Any) -> None:
    if isinstance(old, dict):
        assert set(old) <= set(new)
        for name, part in old.items():
            _says_all(part, new[name])
    elif isinstance(old, list):
        assert len(old) == len(new)
        for one, other in zip(old, new, strict=True):
            _says_all(one, other)
    else:
        assert old == new


def test_a_job_that_the_former_version_escalated_is_taken_up() -> None:
    """From its trail on: what it cost is kept, and the reference alone is called."""
    first = outcomes.decode(Escalation, written(Escalation))
    known = job(id="j-1", tenant="acme", stakes="high", origin="cluster/sluiceway.jobs/3/41")
    done = climb(plan(), known, lambda _call: reply(p=None), Role.ESCALATIONS, resumed=first)
    assert isinstance(done.record, Result)
    assert done.models == ["frontier"]
    assert done.record.trail.steps[: len(first.trail.steps)] == first.trail.steps
    assert done.record.cost_picousd > first.trail.cost_picousd > 0


def _made() -> list[Ending]:
    """One record of each kind, whose jobs waited: the trail is where the versions differ."""
    busy = down(FailureKind.OVERLOADED, "http_429", retry_after=3.0)

    def run(*answers: Reply | Failure, resumed: Escalation | None = None) -> Climb:
        told = list(answers)

        def answer(_call: Call) -> Reply | Failure:
            return told.pop(0)

        role = Role.JOBS if resumed is None else Role.ESCALATIONS
        return climb(plan({"retries": {"tries": 2}}), job(), answer, role, resumed=resumed)

    escalated = run(busy, reply(p=0.3)).record
    assert isinstance(escalated, Escalation)
    ends: list[Ending] = [escalated, run(busy, reply(p=None), resumed=escalated).record]
    return [*ends, run(busy, Reply("nothing", reply().usage), resumed=escalated).record]


@pytest.mark.parametrize("record", _made(), ids=lambda record: type(record).__name__)
def test_the_former_version_reads_what_we_write(record: Any) -> None:
    """A worker that is not yet replaced takes up our escalations, and readers of outcomes go on."""
    assert any(isinstance(step, Waited) and step.model for step in record.trail.steps), "with what is new in a trail"
    read: Any = former.decode(KINDS[type(record)], outcomes.encode(record))
    assert read.trail.cost_picousd == record.trail.cost_picousd
    assert (read.trail.taken_at, read.trail.remaining) == (record.trail.taken_at, record.trail.remaining)
    assert [type(step).__name__ for step in read.trail.steps] == [type(step).__name__ for step in record.trail.steps]
    _says_all(orjson.loads(former.encode(read)), orjson.loads(outcomes.encode(record)))


def test_records_of_each_kind_were_made() -> None:
    """The test above is about all three."""
    assert [type(record) for record in _made()] == [Escalation, Result, Review]


def test_the_former_versions_commits_are_read() -> None:
    """What it had finished above its watermark is not done again; and ours reads the same there, byte for byte."""
    text = (HERE / "commit.txt").read_text("ascii").strip()
    assert decode_finished(100, text) == FINISHED
    assert encode_finished(100, FINISHED, 4096) == (text, 0)
