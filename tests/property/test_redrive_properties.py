"""A record that dies and goes back is the record that it was; how often, only its round tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import core

from sluiceway.core import outcome as outcomes
from sluiceway.core.cascade import Role
from sluiceway.core.outcome import Escalation, Result, outcome_id
from sluiceway.core.redrive import Mark, read, revived
from sluiceway.core.round import ROUND, Headers, kept, stated, written
from sluiceway.ports import Outgoing, Record
from sluiceway.topicmap import topic_map
from sluiceway.work import Desk

POLICY = core.policy()
REST = ("cluster", lambda *_: None, lambda _: None)
RUNNER, _ = core.runner(POLICY, core.Scripted(lambda _call: core.reply()))
DESK = Desk(RUNNER, topic_map(POLICY), *REST)

NAMES = st.sampled_from(["traceparent", "sluiceway", "Sluiceway.round", "__dlq", "content-type", "", "é"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=8)), max_size=6).map(tuple)
# Nothing of these becomes a job: no JSON, JSON of another shape, a task that the policy has not.
VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"{}", b"[]", b'{"task":"nowhere","input":"x"}', b'{"id":"own","task":"nowhere","input":"x"}']),
)


async def dead(record: Record) -> Outgoing:
    letter = await DESK.work(Role.JOBS)(record)
    assert letter is not None
    assert letter.topic == "sluiceway.dead-letters"
    return letter


@given(st.none() | st.binary(max_size=8), VALUES, HEADERS, st.integers(1, 5))
async def test_what_dies_and_goes_back_is_byte_for_byte_what_was_published(
    key: bytes | None, value: bytes, headers: Headers, deaths: int
) -> None:
    """Key, value and the user's headers in their order; each death is of the next round of one and the same job."""
    headers = kept(headers)  # what is named like our own facts is not the user's
    record = Record("sluiceway.jobs", 2, 99, 1.0, key, value, headers)
    ids = set()
    for number in range(deaths):
        letter = await dead(record)
        known = read(Mark(0, number, 1), letter.value, letter.headers)
        assert known is not None
        assert (known.topic, known.round) == ("sluiceway.jobs", number)
        ids.add(known.job_id)
        back = revived(letter.headers, known)
        assert (letter.key, letter.value) == (key, value)
        assert kept(back) == headers == back[: len(headers)]
        assert stated(back).round == number + 1
        record = Record("sluiceway.jobs", 5, 1000 + number, 2.0 + number, letter.key, letter.value, back)
    assert ids == ({"own"} if b"own" in value else {"sluiceway.jobs-2-99"})


async def test_an_escalation_that_goes_back_resumes_its_trail_in_the_next_round() -> None:
    """The record of an internal topic is believed as before: only its round, and with it the outcome's id, is new."""
    escalation = core.climb(core.plan(), core.job(), lambda _call: core.reply(p=0.3)).record
    assert isinstance(escalation, Escalation)
    value = outcomes.encode(escalation)
    nowhere = Desk(core.runner(core.policy(), core.Scripted(lambda _call: core.reply()))[0], topic_map(POLICY), *REST)
    nowhere._runner.plans.clear()  # a policy that has lost the task
    record = Record("sluiceway.escalations", 1, 8, 1.0, b"key", value, ())
    letter = await nowhere.work(Role.ESCALATIONS)(record)
    assert letter is not None
    known = read(Mark(0, 0, 1), letter.value, letter.headers)
    assert known is not None
    assert (known.topic, known.reason, known.job_id, known.round) == ("sluiceway.escalations", "unknown_task", "j1", 0)
    assert letter.value == value
    again = Record("sluiceway.escalations", 0, 30, 2.0, letter.key, letter.value, revived(letter.headers, known))
    made = await DESK.work(Role.ESCALATIONS)(again)
    assert made is not None
    assert made.topic == "sluiceway.results"
    result = outcomes.decode(Result, made.value or b"")
    assert (result.job_id, result.round, result.outcome_id) == ("j1", 1, outcome_id("j1", 1))
    first = escalation.trail.attempts[0]
    assert result.trail.attempts[0].response_id == first.response_id
    assert result.trail.attempts[0].cost_picousd == first.cost_picousd
    assert len(result.trail.attempts) == len(escalation.trail.attempts) + 1
    assert not [name for name, _ in made.headers if name.startswith("sluiceway.")]


async def test_a_job_that_goes_back_is_answered_in_the_next_round_under_the_id_of_its_first_place() -> None:
    """Also where it names no id: its new place is not its own."""
    value = b'{"task":"triage","input":"I was billed twice"}'
    headers = (("traceparent", b"00"), *written("sluiceway.jobs-2-99", 2))
    made = await DESK.work(Role.JOBS)(Record("sluiceway.jobs", 0, 1000, 2.0, b"key", value, headers))
    assert made is not None
    result = outcomes.decode(Result, made.value or b"")
    assert (result.job_id, result.round) == ("sluiceway.jobs-2-99", 2)
    assert result.outcome_id == outcome_id("sluiceway.jobs-2-99", 2)
    assert result.trail.origin == "cluster/sluiceway.jobs/0/1000", "the coins are of its real place"
    assert made.headers == (("traceparent", b"00"), ("content-type", b"application/json"))


async def test_a_header_whose_name_is_no_utf_8_is_a_dead_letter_that_can_be_written() -> None:
    """All but the name's odd bytes is the original's; other names are untouched; and once back it is a job."""
    value = b'{"id":"odd","task":"triage","input":"I was billed twice"}'
    odd = (b"\xffna\xc3\xa9".decode("utf-8", "surrogateescape"), b"1")
    letter = await dead(Record("sluiceway.jobs", 0, 5, 1.0, b"key", value, (("é", b"2"), odd, ("null", None))))
    assert (letter.key, letter.value) == (b"key", value)
    assert letter.headers[:3] == (("é", b"2"), ("\\xffnaé", b"1"), ("null", None))
    assert all(name.encode() for name, _ in letter.headers)
    known = read(Mark(0, 0, 1), letter.value, letter.headers)
    assert known is not None
    assert (known.reason, known.job_id) == ("undecodable", "sluiceway.jobs-0-5")
    again = Record("sluiceway.jobs", 0, 9, 2.0, letter.key, letter.value, revived(letter.headers, known))
    made = await DESK.work(Role.JOBS)(again)
    assert made is not None
    assert outcomes.decode(Result, made.value or b"").outcome_id == outcome_id("odd", 1)


@pytest.mark.parametrize(
    ("value", "job_id", "number"),
    [
        (b'{"id":"own","task":"triage","round":3,"input":"x"}', "own", 3),
        (b'{"job_id":"own","task":"triage","round":2,"job":{}}', "own", 2),
        (b'{"id":"","task":"triage","round":-1}', "sluiceway.jobs-0-5", 1),
        (b'{"id":"own","round":0}', "own", 1),
        (b'{"id":["own"],"round":true,"task":[]}', "sluiceway.jobs-0-5", 1),
        (b"[]", "sluiceway.jobs-0-5", 1),
        (b"\xff", "sluiceway.jobs-0-5", 1),
    ],
    ids=repr,
)
def test_a_job_that_killed_its_processes_tells_its_id_and_round(value: bytes, job_id: str, number: int) -> None:
    """By a look at its JSON alone: it is not to run, and the round that a redrive opens must be a later one."""
    headers = ((ROUND, b"1"),)
    letter = DESK.crashed(Role.JOBS)(Record("sluiceway.jobs", 0, 5, 1.0, None, value, headers))
    known = read(Mark(0, 0, 1), letter.value, letter.headers)
    assert known is not None
    assert (known.reason, known.job_id, known.round) == ("crashes", job_id, number)
