"""Which dead letters go back: filters, parking, what went back before; and a record of it that reads as written."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sluiceway.core import redriven
from sluiceway.core.errors import InputError
from sluiceway.core.redrive import Fate, Filter, Letter, Mark, Tally, decide, read
from sluiceway.core.redriven import Redriven
from sluiceway.core.round import MOST, Headers

MARK = Mark(1, 7, 1_700_000_000_000)
DIED = MARK.stamp / 1000


def facts(**more: bytes) -> Headers:
    """The headers of a dead letter of round 1 of job j-1."""
    known = {
        "__dlq.errors.topic": b"sluiceway.jobs",
        "__dlq.errors.partition": b"3",
        "__dlq.errors.offset": b"41",
        "sluiceway.reason": b"unknown_task",
        "sluiceway.round": b"1",
        "sluiceway.job_id": b"j-1",
        **more,
    }
    return tuple((name, content) for name, content in known.items() if content != b"absent")


def letter(value: bytes = b'{"id":"j-1","task":"triage","round":1}', **more: bytes) -> Letter:
    found = read(MARK, value, facts(**more))
    assert found is not None
    return found


def fate(of: Letter | None, wanted: Filter | None = None, **more: Any) -> Fate:
    settings: dict[str, Any] = {"max_rounds": 3, "before": (), "never": ()}
    return decide(of, wanted or Filter(), **settings | more)


def test_a_letter_is_known_by_its_headers() -> None:
    """Where it came from, why, its round and its job's id; the task is its JSON's where no header names one."""
    assert letter() == Letter(MARK, "sluiceway.jobs", "unknown_task", "triage", "j-1", 1, frozenset(["j-1"]))
    assert letter(b"\xff", **{"sluiceway.task": b"other"}).task == "other"
    assert letter(b"\xff").task is None
    assert letter(b'{"task":["no text"]}').task is None


def test_a_letter_of_an_older_version_has_the_round_of_its_json_and_the_id_of_its_place() -> None:
    """Whatever the id in its JSON is worth, the job that is read from it has it anyway."""
    old = letter(**{"sluiceway.round": b"absent", "sluiceway.job_id": b"absent"})
    assert (old.round, old.job_id) == (1, "sluiceway.jobs-3-41")
    assert old.names == frozenset(["sluiceway.jobs-3-41", "j-1"])
    for value in (b'{"round":-1}', b'{"round":true}', b'{"round":1.0}', b"[]", b"{", b'{"round":1000001}'):
        assert letter(value, **{"sluiceway.round": b"absent"}).round == 0, value


@pytest.mark.parametrize("name", ["__dlq.errors.topic", "__dlq.errors.partition", "__dlq.errors.offset"])
def test_what_says_not_where_it_came_from_stays(name: str) -> None:
    """A record that somebody else put there is nobody's job to publish anywhere."""
    assert read(MARK, b"{}", facts(**{name: b"absent"})) is None
    assert read(MARK, None, facts()) is None
    assert fate(None) is Fate.FOREIGN


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(reasons=frozenset(["invalid", "unknown_task"])),
        Filter(tasks=frozenset(["triage"])),
        Filter(topics=frozenset(["sluiceway.jobs"])),
        Filter(ids=frozenset(["other", "j-1"])),
        Filter(since=DIED, until=DIED + 0.001),
        Filter(),
    ],
    ids=["reasons", "task", "topic", "ids", "time", "all"],
)
def test_a_filter_takes_what_it_names(wanted: Filter) -> None:
    assert fate(letter(), wanted) is Fate.REDRIVEN


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(reasons=frozenset(["invalid"])),
        Filter(tasks=frozenset(["tri"])),
        Filter(topics=frozenset(["jobs"])),
        Filter(ids=frozenset(["j-11"])),
        Filter(since=DIED + 0.001),
        Filter(until=DIED),
        Filter(reasons=frozenset(["unknown_task"]), tasks=frozenset(["other"])),
    ],
    ids=repr,
)
def test_a_filter_leaves_all_else(wanted: Filter) -> None:
    """All that is given must hold."""
    assert fate(letter(), wanted) is Fate.UNMATCHED


def test_what_has_gone_back_often_enough_is_parked() -> None:
    """It died in round N, so it went back N times; and no round is opened that a record can't have."""
    by_round = {number: letter(**{"sluiceway.round": b"%d" % number}) for number in (0, 2, 3, 4, MOST)}
    fates = {number: fate(of) for number, of in by_round.items()}
    assert [number for number, found in fates.items() if found is Fate.REDRIVEN] == [0, 2]
    assert [number for number, found in fates.items() if found is Fate.PARKED] == [3, 4, MOST]
    assert fate(by_round[4], max_rounds=5) is Fate.REDRIVEN
    assert fate(by_round[MOST], max_rounds=2 * MOST) is Fate.PARKED


def test_what_went_back_before_never_goes_again() -> None:
    """Whatever the filters; another record at its offset, of a topic made anew, is another letter."""
    for wanted in (Filter(), Filter(reasons=frozenset(["invalid"]))):
        assert fate(letter(), wanted, before={MARK}) is Fate.BEFORE
    assert fate(letter(), before={MARK._replace(stamp=MARK.stamp + 1)}) is Fate.REDRIVEN


def test_nothing_is_sent_where_it_may_not_go() -> None:
    """A forged place must not make dead letters of dead letters."""
    assert fate(letter(**{"__dlq.errors.topic": b"dead"}), never=("dead",)) is Fate.FOREIGN


def test_the_tally_counts_each_fate_by_reason_topic_and_round() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add(Fate.REDRIVEN, letter())
    tally.add(Fate.PARKED, letter(**{"sluiceway.round": b"3"}))
    tally.add(Fate.FOREIGN, None)
    assert dict(tally.counts) == {Fate.REDRIVEN: 2, Fate.PARKED: 1, Fate.FOREIGN: 1}
    assert tally.rows() == [
        (Fate.REDRIVEN, "unknown_task", "sluiceway.jobs", 1, 2),
        (Fate.PARKED, "unknown_task", "sluiceway.jobs", 3, 1),
    ]
    assert tally.topics(Fate.REDRIVEN) == {"sluiceway.jobs"}
    assert tally.topics(Fate.BEFORE) == set()


def test_the_record_of_a_redrive_reads_as_it_was_written() -> None:
    """And a field of a newer minor version passes; anything else is refused, never half read."""
    record = Redriven("run", "sluiceway.dead-letters", 1.5, (MARK, Mark(0, 2, 3)))
    value = redriven.encode(record)
    assert redriven.decode(value) == record
    assert orjson.loads(value)["letters"] == [[1, 7, 1_700_000_000_000], [0, 2, 3]]
    assert redriven.decode(value.replace(b"{", b'{"invented_later":1,', 1)) == record
    for other in (b"", b"{}", b"\xff", value.replace(b"redriven/1", b"redriven/2"), value.replace(b"[0,2,3]", b"[0]")):
        with pytest.raises(InputError):
            redriven.decode(other)
