"""The desk: records in, their one outgoing record out; what is believed, and where each goes."""

from __future__ import annotations

import orjson
import pytest
from tests.support.core import USAGE, HandClock, Scripted, down, policy, reply, runner

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Role
from sluiceway.core.leave import Leaving
from sluiceway.core.outcome import DeadLetter, Escalation, Result, Retry
from sluiceway.ports import Headers, Outgoing, Record
from sluiceway.topicmap import DELAYS, topic_map
from sluiceway.work import Desk

POLICY = policy({"deadline": "10m"})
TOPICS = topic_map(POLICY)
JOB = orjson.dumps({"id": "j1", "task": "triage", "input": "I was billed twice"})
COST = 100 * 150_000 + 20 * 3_000 + 5 * 600_000


def record(
    value: bytes | None, topic: str = "sluiceway.jobs", headers: Headers = (), key: bytes | None = b"k"
) -> Record:
    return Record(topic, 3, 41, 1000.0, key, value, headers)


def again(outgoing: Outgoing, offset: int = 7) -> Record:
    """What was written, as it is read."""
    return Record(outgoing.topic, 0, offset, 1000.0, outgoing.key, outgoing.value, outgoing.headers)


class Office:
    """A desk with scripted models, and the dead letters it told of."""

    def __init__(self, *answers: Reply | Failure, leaves: bool = True) -> None:
        told = list(answers)
        self.calls: list[Call] = []
        self.dead: list[tuple[DeadLetter, str]] = []
        self.clock = HandClock()

        def answer(call: Call) -> Reply | Failure:
            self.calls.append(call)
            return told.pop(0)

        leaving = Leaving(DELAYS, 5) if leaves else Leaving((), 0)
        made, _ = runner(POLICY, Scripted(answer, self.clock, 1.0), leaving=leaving)
        self.desk = Desk(
            made, TOPICS, "c", lambda _record, letter, task: self.dead.append((letter, task)), lambda _record: None
        )

    async def work(self, one: Record, role: Role = Role.JOBS) -> Outgoing:
        made = await self.desk.work(role)(one)
        assert made is not None
        return made


def busy(after: float) -> Failure:
    return down(FailureKind.OVERLOADED, "http_429", retry_after=after)


async def test_a_job_that_waits_long_goes_through_its_roles_retry_topic_and_comes_back() -> None:
    """As often as it takes; its key and headers stay, and it ends in the one outcome of its first record."""
    office = Office(busy(90.0), busy(70.0), reply())
    first = await office.work(record(JOB, headers=(("traceparent", b"00-1"),)))
    assert first.topic == "sluiceway.retries-jobs-60000"
    second = await office.work(again(first))
    assert second.topic == "sluiceway.retries-jobs-60000"
    assert office.clock.time == 1000.0 + 1.0 + 30.0 + 1.0, "the rest of the first wait was slept"
    third = await office.work(again(second))
    assert third.topic == "sluiceway.results"
    for outgoing in (first, second, third):
        assert outgoing.key == b"k"
        assert outgoing.headers == (("traceparent", b"00-1"), ("content-type", b"application/json"))
    assert third.value is not None
    result = outcomes.decode(Result, third.value)
    assert result.trail.origin == "c/sluiceway.jobs/3/41"
    assert (result.cost_picousd, len(result.trail.attempts)) == (COST, 3)
    assert office.dead == []


async def test_an_escalated_job_waits_in_topics_of_its_own_role() -> None:
    """They are another group's."""
    office = Office(reply(p=0.1), busy(60.0), reply(p=None))
    first = await office.work(record(JOB))
    assert first.topic == "sluiceway.escalations"
    second = await office.work(again(first), Role.ESCALATIONS)
    assert second.topic == "sluiceway.retries-escalations-60000"
    third = await office.work(again(second), Role.ESCALATIONS)
    assert third.topic == "sluiceway.results"
    assert [call.model.name for call in office.calls] == ["cheap", "frontier", "frontier"]


async def test_a_retry_on_the_jobs_topic_is_believed_in_nothing() -> None:
    """Whoever may publish there can't hand us a trail, a deadline or a paid answer."""
    office = Office(busy(90.0))
    left = await office.work(record(JOB))
    spoofed = await office.work(record(left.value))
    assert spoofed.topic == "sluiceway.dead-letters"
    assert len(office.calls) == 1


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda value: value[:1], "JSON"),
        (lambda value: value.replace(b'"sluiceway.retry/1"', b'"sluiceway.retry/2"'), "schema"),
        (lambda value: value.replace(b'"role":"jobs"', b'"role":"escalations"', 1), "role"),
        (lambda value: value.replace(b'"step":"waited"', b'"step":"slept"'), "trail"),
        (lambda value: value.replace(b'"task":"triage"', b'"task":"gone"'), "no task of that name"),
        (lambda value: value.replace(b'"job_id":"j1"', b'"job_id":"j2"'), "another one"),
    ],
)
async def test_a_bad_record_on_a_retry_topic_is_a_dead_letter(change: object, detail: str) -> None:
    """With its own coordinates, its role's group and its bytes; nothing is called for it."""
    office = Office(busy(90.0))
    left = await office.work(record(JOB))
    assert left.value is not None
    assert callable(change)
    bad = change(left.value)
    assert bad != left.value
    dead = await office.work(record(bad, TOPICS.retries[Role.JOBS][60.0]))
    facts = dict(dead.headers)
    assert (dead.topic, dead.key, dead.value) == ("sluiceway.dead-letters", b"k", bad)
    assert facts["__dlq.errors.topic"] == b"sluiceway.retries-jobs-60000"
    assert facts["__dlq.errors.offset"] == b"41"
    assert facts["__dlq.errors.group"] == b"sluiceway-jobs"
    assert detail in facts["__dlq.errors.message"].decode()
    assert len(office.calls) == 1


async def test_a_tombstone_on_a_retry_topic_is_skipped() -> None:
    """As anywhere."""
    assert await Office().desk.work(Role.JOBS)(record(None, TOPICS.retries[Role.JOBS][10.0])) is None


async def test_an_oversize_outcomes_dead_letter_keeps_what_its_calls_cost() -> None:
    """Model, verdict, cost and response id of each attempt, and their sum, which nothing cuts (L6)."""
    office = Office(busy(0.5), reply(p=0.1, response_id="r-1"))
    one = record(JOB)
    made = await office.work(one)
    dead = dict(office.desk.oversize(Role.JOBS)(one, made, None).headers)
    assert orjson.loads(dead["sluiceway.trail"] or b"") == [
        ["cheap", "retry", 0, ""],
        ["cheap", "escalate", COST, "r-1"],
    ]
    assert dead["sluiceway.cost_picousd"] == str(COST).encode()
    assert dead["sluiceway.reason"] == b"too_large"


async def test_a_long_trail_is_cut_between_attempts_and_its_cost_is_not() -> None:
    """The header is bounded, and what it holds is JSON still."""
    office = Office(reply(p=0.1, response_id="r" * 200))
    one = record(JOB)
    made = await office.work(one)
    value = orjson.loads(made.value or b"")
    (attempt,) = [step for step in value["trail"]["steps"] if step["step"] == "attempt"]
    value["trail"]["steps"] += [attempt] * 199
    large = Outgoing(made.topic, made.key, orjson.dumps(value), ())
    dead = dict(office.desk.oversize(Role.JOBS)(one, large, None).headers)
    trail = dead["sluiceway.trail"] or b""
    assert 16_000 < len(trail) <= 16_384
    assert 0 < len(orjson.loads(trail)) < 200
    assert dead["sluiceway.cost_picousd"] == str(200 * COST).encode()


async def test_what_no_json_can_hold_keeps_its_calls_too() -> None:
    """A job that was called for and whose outcome can't be written costs what it costs (L6)."""
    office = Office(Reply("no answer", USAGE, response_id="r-1\ud800"))
    dead = await office.work(record(JOB))
    facts = dict(dead.headers)
    assert dead.topic == "sluiceway.dead-letters"
    assert facts["sluiceway.cost_picousd"] == str(COST).encode()
    assert facts["__dlq.errors.group"] == b"sluiceway-jobs"
    assert office.dead[0][1] == "triage"


async def test_without_retry_topics_every_wait_is_slept() -> None:
    """What replay and the demo without a broker do."""
    office = Office(busy(90.0), reply(), leaves=False)
    assert (await office.work(record(JOB))).topic == "sluiceway.results"
    assert office.clock.time == 1000.0 + 1.0 + 90.0 + 1.0


async def test_what_is_written_is_read_as_what_it_is() -> None:
    """Each hand-over is of its own kind; neither can be taken for the other."""
    office = Office(busy(90.0), reply(p=0.1))
    left, escalated = await office.work(record(JOB)), await office.work(record(JOB))
    assert left.value is not None
    assert escalated.value is not None
    assert isinstance(outcomes.decode(Retry, left.value), Retry)
    assert isinstance(outcomes.decode(Escalation, escalated.value), Escalation)
    for outgoing, topic, role in (
        (escalated, TOPICS.retries[Role.JOBS][60.0], Role.JOBS),
        (left, TOPICS.escalations, Role.ESCALATIONS),
    ):
        assert (await office.work(record(outgoing.value, topic), role)).topic == "sluiceway.dead-letters"
