"""What the rows judge with beyond the laws must fail when it should: plain values in, no broker, no process."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults.clocks import negative_durations
from tests.faults.endpoints import asked_wait, beyond_deadline, over_share, overtime, too_soon
from tests.faults.finding import Finding, table
from tests.faults.orders import overlapping
from tests.faults.planted import POINTS
from tests.faults.scene import Scene
from tests.faults.watch import Look, Watch
from tests.support.evidence import Place, Published, read_outcomes
from tests.support.fake_journal import JournalEntry, ends_of
from tests.support.laws import check, lost_jobs
from tests.support.outgoing import ESCALATIONS, RESULTS, Outgoing
from tests.support.topics import Seen

JOBS = "sluiceway.jobs"


def result(n: int, *, seconds: float = 0.1, topic: str = RESULTS) -> Seen:
    trail = {"origin": f"c/{JOBS}/0/{n}", "remaining": 9.0, "steps": [{"step": "attempt", "seconds": seconds}]}
    value = json.dumps({"job_id": f"job-{n}", "round": 0, "trail": trail}).encode()
    return Seen(topic, 0, n, None, value, (), 0)


def watch(looks: list[tuple[int, int]], written: list[Seen]) -> Watch:
    """`looks`: what was committed, and how many records had been read."""
    made = Watch(cast(Any, SimpleNamespace(out=Outgoing())))
    made._reader = cast(Any, SimpleNamespace(seen=written))
    made.looks = [Look(float(n), {(JOBS, 0): done}, {(JOBS, 0): 9}, read) for n, (done, read) in enumerate(looks)]
    made.jobs_ends = {(JOBS, 0): 9}
    return made


PUBLISHED = [Published(f"job-{n}", Place(JOBS, 0, n)) for n in range(4)]


@pytest.mark.parametrize(
    ("looks", "early"),
    [
        ([(0, 0), (2, 2), (3, 3)], 0),
        ([(1, 2), (3, 3)], 0),
        ([(2, 1)], 1),
        ([(2, 2), (3, 2), (3, 3)], 1),  # what comes late does not mend it
    ],
)
def test_a_commit_before_its_jobs_record_lies_out_is_seen(looks: list[tuple[int, int]], early: int) -> None:
    found = watch(looks, [result(n) for n in range(3)]).early_commits(PUBLISHED)
    assert len(found) == early, found


def test_lags_count_from_the_first_outgoing_record_on() -> None:
    assert [lag.at for lag in watch([(0, 0), (0, 1), (1, 1)], [result(0)]).lags()] == [1.0, 2.0]


def test_a_negative_duration_in_any_record_is_found() -> None:
    out = Outgoing().read([result(0), result(1, seconds=-0.2), result(2, topic=ESCALATIONS)])
    found = negative_durations(cast(Scene, SimpleNamespace(rig=SimpleNamespace(out=out))))
    assert found == ["job-1: seconds -0.2"]


@pytest.mark.parametrize(("second", "overlaps"), [(1.5, 0), (1.4, 1)])
def test_calls_of_one_key_that_overlap_are_found(tmp_path: Path, second: float, overlaps: int) -> None:
    """The first call runs from 1.0 to 1.5, another key's beside it."""
    journal = tmp_path / "journal"
    ends_of(journal).write_text("1 1.5\n2 9.0\n3 9.0\n")
    calls = [(1.0, 1, "a"), (1.1, 2, "b"), (second, 3, "c")]
    entries = [SimpleNamespace(ts=ts, seq=seq, text=text) for ts, seq, text in calls]
    cheap = SimpleNamespace(journal=journal, entries=lambda: entries)
    keys = {"a": b"k", "b": b"other", "c": b"k"}
    found, unknown = overlapping(cast(Scene, SimpleNamespace(cheap=cheap)), keys)
    assert (len(found), unknown) == (overlaps, 0)
    found, unknown = overlapping(cast(Scene, SimpleNamespace(cheap=cheap)), {"a": b"k"})
    assert unknown == 2


def refused(seq: int, ts: float, **headers: str) -> JournalEntry:
    notes = {name.replace("_", "-"): value for name, value in headers.items()}
    return JournalEntry(ts, "fake", seq, "POST", "/", "m", "", "", 0, "status", 429, notes=notes)


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({"retry_after": "5"}, 5.0),
        ({"retry_after": "-1"}, 0.0),
        ({"retry_after": "abc"}, 0.0),
        ({"retry_after": "Thu, 01 Jan 1970 00:01:47 GMT"}, 7.0),
        ({"retry_after": "1000000000"}, 20.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({}, 0.0),
    ],
)
def test_a_call_that_comes_while_an_endpoint_asked_to_wait_is_found(headers: dict[str, str], waited: float) -> None:
    """Refused at 100: until it may be called again; what was under way when that was told is no breach."""
    assert asked_wait({name.replace("_", "-"): value for name, value in headers.items()}, 100.0, 20.0) == waited
    for at, early in ((100.4, False), (99.0 + waited, waited > 1.5), (100.0 + waited, False)):
        calls = [refused(1, 99.7, **headers), refused(2, at)]
        assert bool(too_soon(calls, {1: 100.0}, 20.0)) is early, at


def test_a_call_or_an_attempt_that_outlasts_its_time_is_found() -> None:
    calls = [refused(1, 10.0), refused(2, 10.0), refused(3, 10.0)]
    assert [line.split()[0] for line in overtime(calls, {1: 12.4, 2: 12.6}, 2.0)] == ["#2", "#3"]
    steps = [{"step": "attempt", "model": "m", "at": 104.0, "seconds": seconds} for seconds in (4.4, 4.6)]
    trees = [{"job_id": "j", "trail": {"taken_at": 100.0, "steps": steps}}]
    assert beyond_deadline(trees, "m", 8.0) == ["j by 0.60 s"]
    assert beyond_deadline(trees, "another", 8.0) == []
    steps.append({"step": "waited", "at": 100.0, "ended": 109.0})
    assert beyond_deadline(trees, "m", 8.0) == ["j by 0.60 s"]
    steps.append({"step": "waited", "at": 100.0, "ended": 110.0})
    assert beyond_deadline(trees, "m", 8.0) == [], "it lay in a retry topic, whose time is another"


def test_more_failed_escalations_than_their_share_of_a_minute_are_found() -> None:
    """A tenth of those taken in the minute before; one is always allowed."""
    taken = [float(n) for n in range(30)]
    assert over_share([29.0] * 3, taken, 0.1) == []
    assert len(over_share([29.0] * 4, taken, 0.1)) == 1
    assert len(over_share([29.0] * 3, taken[:20], 0.1)) == 1
    assert over_share([0.0], [], 0.1) == []
    assert over_share([29.0, 29.0, 29.0, 200.0], taken, 0.1) == []


@pytest.mark.parametrize("point", POINTS)
def test_each_point_of_a_jobs_way_is_still_there(point: str) -> None:
    """A plant in a function that has gone would kill nobody, and its row would hold."""
    module, path, _ = POINTS[point]
    owner, name = path.split(".")
    assert callable(getattr(getattr(importlib.import_module(module), owner), name))


def test_a_dead_letter_of_an_escalation_is_that_of_its_job() -> None:
    headers = (("__dlq.errors.topic", ESCALATIONS.encode()), ("__dlq.errors.partition", b"3"),
               ("__dlq.errors.offset", b"7"), ("sluiceway.reason", b"too_large"))  # fmt: skip
    letter = Seen("sluiceway.dead-letters", 0, 0, None, result(2).value, headers, 0)
    assert lost_jobs(PUBLISHED[2:3], read_outcomes([letter])) == []
    forged = Seen("sluiceway.dead-letters", 0, 0, None, result(2).value, (("__dlq.errors.topic", JOBS.encode()),
                  ("__dlq.errors.partition", b"0"), ("__dlq.errors.offset", b"9")), 0)  # fmt: skip
    assert lost_jobs(PUBLISHED[2:3], read_outcomes([forged])) == PUBLISHED[2:3], "a job's own bytes are not believed"


def test_the_table_says_what_is_broken_and_a_baseline_may_lose() -> None:
    report = check(PUBLISHED, [], seed=5)
    ours, baseline = (Finding("1", "kill -9", report, 4, 1.0, baseline=mark) for mark in (False, True))
    assert not ours.holds
    assert baseline.holds
    baseline.asked["it loses some"] = "it has lost none"
    assert not baseline.holds
    said = table([ours])
    assert "BROKEN L1 no loss: 4 jobs lost" in said
    assert said.splitlines()[2].split()[2:6] == ["-9", "5", "4", "4"]
