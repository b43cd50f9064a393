"""Jobs: what makes bytes one, and what a foreign record gives."""

from __future__ import annotations

import pytest
from tests.support.core import job

from sluiceway.core import job as jobs
from sluiceway.core.catalog import Clearance, Level
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job, Source


def decode(value: bytes) -> Job:
    return jobs.decode(value, origin="c/jobs/0/7", default_id="jobs-0-7")


def test_three_fields_make_a_job() -> None:
    """id, task and input suffice; the rest is silent."""
    made = decode(b'{"id":"a","task":"triage","input":"hello"}')
    assert (made.id, made.task, made.text, made.round) == ("a", "triage", "hello", 0)
    assert (made.stakes, made.priority, made.clearance, made.expires_at) == (None, None, None, None)


def test_a_job_without_an_id_takes_its_coordinates() -> None:
    """What has no name is named by where it lies."""
    assert decode(b'{"task":"triage","input":"hello"}').id == "jobs-0-7"


def test_unknown_fields_are_kept() -> None:
    """A newer minor version passes through."""
    assert decode(b'{"task":"t","input":"x","colour":{"a":[1]}}').raw["colour"] == {"a": [1]}


def test_declared_levels_are_read() -> None:
    """Stakes, priority and clearance are words in the record and levels in the core."""
    made = job(stakes="high", priority="critical", clearance="restricted")
    assert (made.stakes, made.priority, made.clearance) == (Level.HIGH, Level.CRITICAL, Clearance.RESTRICTED)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"id":"a","task":"t","input":"x"', "undecodable"),  # cut
        (b'{"id":"a","task":"t","input":"\xff"}', "undecodable"),  # not UTF-8
        (b'{"id":"\\ud800","task":"t","input":"x"}', "undecodable"),  # half a character
        (b"", "undecodable"),
        (b"NaN", "undecodable"),
        (b"[]", "invalid"),
        (b'"text"', "invalid"),
        (b"null", "invalid"),
        (b"{}", "invalid"),
        (b'{"task":"t","input":""}', "invalid"),
        (b'{"task":"t","input":{}}', "invalid"),
        (b'{"task":"t","input":5}', "invalid"),
        (b'{"task":"","input":"x"}', "invalid"),
        (b'{"task":"t","input":"x","stakes":"HIGH"}', "invalid"),
        (b'{"task":"t","input":"x","round":-1}', "invalid"),
        (b'{"task":"t","input":"x","round":true}', "invalid"),
        (b'{"task":"t","input":"x","id":7}', "invalid"),
        (b'{"task":"t","input":"x","schema":"sluiceway.job/2"}', "invalid"),
        (b'{"task":"t","input":"x","expires_at":"tomorrow"}', "invalid"),
        (b'{"task":"t","input":"x","context":[{"id":"p"}]}', "invalid"),
        (b'{"task":"t","input":{"a":' + b"[" * 70 + b"]" * 70 + b"}}", "invalid"),
        (b'{"task":"t","input":"x","extra":' + b"[" * 900 + b"]" * 900 + b"}", "invalid"),
    ],
)
def test_what_is_no_job_says_so(value: bytes, reason: str) -> None:
    """Each fault has its closed reason, whatever is wrong."""
    with pytest.raises(InputError) as caught:
        decode(value)
    assert caught.value.reason == reason


def test_a_fault_names_the_field_and_not_its_value() -> None:
    """Reasons go to headers and logs, where no job text may be."""
    with pytest.raises(InputError) as caught:
        decode(b'{"task":"t","input":"x","tenant":["a secret"]}')
    assert "tenant" in caught.value.detail
    assert "a secret" not in caught.value.detail


@pytest.mark.parametrize("tree", [{"task": "t", "input": {"a": "\ud800"}}, {"task": "t", "input": {"n": 1 << 80}}])
def test_a_tree_that_no_record_can_hold_is_refused_at_the_door(tree: dict[str, object]) -> None:
    """Half characters and endless numbers would fail only when the paid answer is written."""
    with pytest.raises(InputError):
        jobs.admit(tree, origin="o", default_id="d")


def test_expiry_is_a_time() -> None:
    """RFC 3339 or seconds since the epoch; a time without a zone is UTC."""
    assert job(expires_at="1970-01-01T00:01:00Z").expires_at == 60.0
    assert job(expires_at="1970-01-01T00:01:00").expires_at == 60.0
    assert job(expires_at="1970-01-01T01:01:00+01:00").expires_at == 60.0
    assert job(expires_at=60).expires_at == 60


def test_text_is_all_of_the_input() -> None:
    """One text field is the text itself; several are laid out by name, null ones left out."""
    assert job({"body": "hello"}).text == "hello"
    assert job({"subject": "hi", "body": "hello", "none": None, "n": 3}).text == "subject: hi\nbody: hello\nn: 3"


def test_fields_are_those_that_say_something() -> None:
    """Null and empty fields are absent for rules."""
    assert job({"a": "x", "b": None, "c": "", "d": [], "e": {}, "f": 0, "g": False}).fields == {"a", "f", "g"}
    assert job("x").fields == {"text"}


def test_the_digest_is_of_the_input_alone() -> None:
    """Neither the id nor the order of fields changes it; the input does."""
    assert job({"a": 1, "b": 2}).digest == job({"b": 2, "a": 1}, id="other").digest
    assert job({"a": 1}).digest != job({"a": 2}).digest


SOURCE = Source(
    topic="support.tickets.v2",
    id="/ticket_id",
    tenant="/org/name",
    stakes="/risk",
    input={"text": "/body", "tag": "/tags/0"},
)


def foreign(value: bytes) -> Job:
    return jobs.decode(value, origin="o", default_id="d", source=SOURCE, task="triage")


def test_a_foreign_record_is_read_by_pointers() -> None:
    """Nobody republishes five million tickets a day: numbers become ids, missing parts are left out."""
    made = foreign(b'{"ticket_id":77,"org":{"name":"acme"},"body":"hello","tags":["a","b"],"risk":"high"}')
    assert (made.id, made.task, made.tenant, made.stakes) == ("77", "triage", "acme", Level.HIGH)
    assert made.input == {"text": "hello", "tag": "a"}
    assert foreign(b'{"body":"hello"}').id == "d"


def test_a_foreign_record_without_any_input_is_invalid() -> None:
    """Nothing to answer is a fault that names the pointers."""
    with pytest.raises(InputError, match="/body, /tags/0"):
        foreign(b'{"ticket_id":1}')


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", {"a/b": [1, {"m~n": 2}]}),
        ("/a~1b/0", 1),
        ("/a~1b/1/m~0n", 2),
        ("/a~1b/2", None),
        ("/a~1b/-1", None),
        ("/a~1b/²", None),
        ("/none/0", None),
        ("/a~1b/0/0", None),
    ],
)
def test_pointers_follow_rfc_6901(path: str, value: object) -> None:
    """~1 is a slash, ~0 a tilde, and what is not there is None."""
    assert jobs.pointer({"a/b": [1, {"m~n": 2}]}, path) == value
