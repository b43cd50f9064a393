"""Bytes are a job or somebody's fault; and what is a job can be carried all the way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.core import climb, plan, reply

from sluiceway.core import job as jobs
from sluiceway.core import outcome as outcomes
from sluiceway.core.coin import Purpose, coin
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job, Source
from sluiceway.core.outcome import Escalation

PLAN = plan({"review": {"sample": 1.0}, "prompt": "Sort it: {{ input }} {{ input.text }}"})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),  # lone surrogates, too
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
LEVELS = st.sampled_from([None, "low", "high", "HIGH", 3, ""])
JOBS = st.fixed_dictionaries(
    {
        "task": st.just("triage"),
        "input": st.one_of(st.text(max_size=40), st.dictionaries(st.text(), TREES, max_size=4)),
    },
    optional={
        "id": st.one_of(st.text(max_size=300), SCALARS),
        "schema": st.sampled_from(["sluiceway.job/1", "other", None]),
        "tenant": SCALARS,
        "stakes": LEVELS,
        "clearance": st.sampled_from(["public", "secret", None]),
        "context": st.lists(st.fixed_dictionaries({"id": SCALARS, "text": SCALARS}), max_size=3),
        "expires_at": st.one_of(SCALARS, st.sampled_from(["2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"])),
        "round": SCALARS,
        "more": TREES,
    },
)
SOURCE = Source("foreign", {"text": "/input", "deep": "/more/0"}, id="/id", tenant="/tenant", stakes="/stakes")


def decoded(value: bytes, source: Source | None = None) -> Job | None:
    try:
        return jobs.decode(value, origin="o", default_id="d", source=source, task="triage")
    except InputError as error:
        reason = error.reason
    assert reason in ("undecodable", "invalid")
    return None


def carried(job: Job) -> None:
    """Everything that happens to a job later: prompt, digest, coin, records and back."""
    assert len(job.digest) == 32
    assert 0 <= coin(b"secret", Purpose.SAMPLE, job.origin) < 1
    assert job.fields is not None
    for probability in (0.99, 0.1):
        record = climb(PLAN, job, lambda _call, p=probability: reply(p=p), coin=0.0).record
        written = outcomes.encode(record)
        assert outcomes.decode(type(record), written) == record
        if isinstance(record, Escalation):
            again = jobs.admit(outcomes.decode(Escalation, written).job, origin="o", default_id="d")
            assert (again.id, again.digest, again.text) == (job.id, job.digest, job.text)


@given(value=st.one_of(st.binary(max_size=200), TREES.map(lambda tree: json.dumps(tree).encode())))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_job_or_an_input_error(value: bytes) -> None:
    """Nothing else comes out."""
    decoded(value)
    decoded(value, SOURCE)


@given(tree=JOBS)
@settings(max_examples=400, deadline=None)
def test_what_is_admitted_can_be_carried_to_its_end(tree: dict[str, Any]) -> None:
    """A tree from any parser: admitted and then never in the way, or refused at the door."""
    try:
        job = jobs.admit(tree, origin="o", default_id="d")
    except InputError:
        return
    carried(job)


@given(tree=JOBS.filter(lambda tree: _writable(tree)))
@settings(max_examples=200, deadline=None)
def test_bytes_and_trees_are_read_alike(tree: dict[str, Any]) -> None:
    """A record from Kafka and a line of a file make the same job, foreign ones included."""
    value = orjson.dumps(tree)
    job = decoded(value)
    if job is not None:
        assert job == jobs.admit(orjson.loads(value), origin="o", default_id="d")
    foreign = decoded(value, SOURCE)
    if foreign is not None:
        carried(foreign)


def _writable(tree: object) -> bool:
    try:
        orjson.dumps(tree)
    except TypeError:
        return False
    return True


@given(depth=st.integers(1, 1500), kind=st.sampled_from(["[]", "{}"]), inside=st.booleans())
@settings(max_examples=100, deadline=None)
def test_depth_is_no_trap(depth: int, kind: str, inside: bool) -> None:
    """However deep a record nests, it is a job that can be carried or an input error."""
    nested = '{"a":' * depth + "1" + "}" * depth if kind == "{}" else "[" * depth + "]" * depth
    held = f'"input":{{"text":{nested}}}' if inside else f'"input":"x","more":{nested}'
    job = decoded(f'{{"task":"triage",{held}}}'.encode())
    if job is not None:
        carried(job)
    assert (job is None) == (depth > (62 if inside else 63))


@given(path=st.text(max_size=30), tree=TREES)
@settings(max_examples=200, deadline=None)
def test_a_pointer_finds_something_or_nothing(path: str, tree: object) -> None:
    """Never an exception, whatever the policy's author wrote."""
    jobs.pointer(tree, path)


@given(
    st.fixed_dictionaries(
        {
            name: st.one_of(st.text(max_size=3), st.integers(0, 300).map("x".__mul__), SCALARS)
            for name in ("id", "task", "input")
        }
    )
)
def test_a_job_of_the_least_fields_is_read_as_any_other(tree: dict[str, Any]) -> None:
    """Most jobs name an id, a task and a text and are read without the model of a record: to the same end."""
    whole = orjson.dumps(tree, option=orjson.OPT_NON_STR_KEYS) if jobs.trees.unfit(tree) is None else b"{"
    least, any_other = decoded(whole), decoded(whole[:-1] + b',"schema":null}')
    assert (least is None) == (any_other is None)
    if least is not None and any_other is not None:
        assert least == replace(any_other, raw=least.raw)
