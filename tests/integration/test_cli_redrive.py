"""`sluiceway redrive` as a user runs it: jobs die, the cause is mended, they go back and are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from tests.support.evidence import Place, Published, read_outcomes
from tests.support.fake_process import FakeProcess
from tests.support.laws import check
from tests.support.outgoing import DEAD_LETTERS, JOBS, OUTCOMES, RESULTS
from tests.support.processes import run_sluiceway, sluiceway
from tests.support.rig import Item, Rig, job, models, triage
from tests.support.topics import read_topic

from sluiceway.core.outcome import outcome_id

Fakes = tuple[FakeProcess, FakeProcess]


async def redrive(rig: Rig, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, what --json says, and stderr."""
    connected = ["-b", rig.bootstrap, *(part for pair in rig.pairs for part in ("-X", pair))]
    done = await asyncio.to_thread(run_sluiceway, "redrive", *connected, "--json", *arguments)
    return done.returncode, orjson.loads(done.stdout or b"{}"), done.stderr


@pytest.mark.slow_on_embedded
async def test_fifty_jobs_of_a_task_that_was_missing_are_answered_in_the_next_round(any_rig: Rig, fakes: Fakes) -> None:
    """unknown_task, the policy is mended, one command: 50 results of round 1, and a second redrive does nothing."""
    rig, (cheap, frontier) = any_rig, fakes
    cheap.say("labels")
    both = models(cheap.url, frontier.url)
    await rig.open(both, {"ticket-triage": triage()}, partitions=2)
    items: list[Item] = [job(n, f"My card {n} is late.", "urgent") for n in range(40)]
    # Ten name no id: theirs is their first place, wherever a redrive puts them.
    items += [(b"k%d" % n, orjson.dumps({"task": "urgent", "input": f"Card {n} is lost."}), ()) for n in range(10)]
    items += [(b"cut", b'{"id":"cut",', ()), job("fine", "My card works.")]
    places = await rig.publish(JOBS, items)
    ids = [*(f"job-{n}" for n in range(40)), *(f"{JOBS}-{place[0]}-{place[1]}" for place in places[40:50])]

    first = rig.worker()
    await rig.until(lambda seen: len(seen[DEAD_LETTERS]) == 51 and "job-fine" in seen.ids(RESULTS), within=40)
    assert await rig.stopped(first) == [0]
    rig.write(both, {"ticket-triage": triage(), "urgent": triage()})
    second = rig.worker(start=None if rig.bootstrap.kind == "apache" else "earliest")
    await rig.ready(second)

    reason = ("--reason", "unknown_task")
    code, said, _ = await redrive(rig, *reason, "--dry-run")
    assert (code, said["redriven"], said["unmatched"]) == (0, 50, 1)
    code, said, err = await redrive(rig, *reason)
    assert (code, err) == (0, "")
    assert (said["redriven"], said["unmatched"], said["waiting"], said["failure"]) == (50, 1, 0, None)
    assert said["kinds"] == [{"fate": "redriven", "reason": "unknown_task", "topic": JOBS, "round": 0, "count": 50}]
    await rig.until(lambda seen: seen.ids(RESULTS) >= set(ids), within=40)
    code, said, _ = await redrive(rig, *reason)
    assert (code, said["redriven"], said["redriven_before"]) == (0, 0, 50)

    code, said, _ = await redrive(rig)  # what was cut stays cut: it dies again, of the next round
    assert (code, said["redriven"], said["redriven_before"]) == (0, 1, 50)
    await rig.until(lambda seen: len(seen[DEAD_LETTERS]) >= 52, within=40)
    for round_ in (1, 2):
        code, said, _ = await redrive(rig)
        assert [kind["round"] for kind in said["kinds"]] == [round_]
        await rig.until(lambda seen, n=52 + round_: len(seen[DEAD_LETTERS]) >= n, within=40)  # type: ignore[misc]
    code, said, _ = await redrive(rig)
    assert (code, said["redriven"], said["parked"]) == (0, 0, 1)

    assert await rig.stopped(second) == [0]
    seen = await rig.settled()
    answered = {outcome["job_id"]: outcome for outcome in seen.bodies(RESULTS) if outcome["job_id"] != "job-fine"}
    assert set(answered) == set(ids)
    assert {outcome["round"] for outcome in answered.values()} == {1}
    assert all(outcome["outcome_id"] == outcome_id(name, 1) for name, outcome in answered.items())
    cut = [letter for letter in seen[DEAD_LETTERS] if letter.value == b'{"id":"cut",']
    assert sorted(letter.header("sluiceway.round") or "" for letter in cut) == ["0", "1", "2", "3"]
    assert {letter.header("sluiceway.job_id") for letter in cut} == {f"{JOBS}-{places[50][0]}-{places[50][1]}"}

    records = await read_topic(rig.bootstrap, JOBS, options=rig.options)
    published = []
    for record in records:
        known = orjson.loads(record.value or b"") if record.value != b'{"id":"cut",' else {"id": None}
        name = known.get("id", record.header("sluiceway.job_id") or f"{JOBS}-{record.partition}-{record.offset}")
        published.append(Published(name, Place(record.topic, record.partition, record.offset)))
    report = check(published, read_outcomes(record for topic in OUTCOMES for record in seen[topic]))
    print(report)
    assert report.holds, report


async def test_ctrl_c_ends_a_redrive_that_the_next_one_goes_on_with(rig: Rig) -> None:
    """Exit 130, the counts are told, and in the end each job has gone back once."""
    await rig.open(models("http://127.0.0.1:1", "http://127.0.0.1:1"), {"ticket-triage": triage()}, partitions=2)
    await rig.publish(JOBS, [job(n, "text", "nowhere") for n in range(60)])
    worker = rig.worker("--role", "jobs")
    await rig.until(lambda seen: len(seen[DEAD_LETTERS]) == 60, within=40)
    assert await rig.stopped(worker) == [0]
    slow = sluiceway("redrive", "-b", rig.bootstrap, "--rate", "4", "--json", log=rig.folder / "slow.log")
    slow.start()
    try:
        while len(await read_topic(rig.bootstrap, "sluiceway.redriven")) < 2:
            assert slow.running, slow.text()
        slow.interrupt()
        assert await asyncio.to_thread(slow.wait, 30) == 130
    finally:
        slow.stop()
    (said,) = slow.events()
    assert said["interrupted"]
    assert said["redriven"] + said["waiting"] == 60
    assert 8 <= said["redriven"] < 60
    assert said["unrecorded"] == 0
    assert "run it again to go on" in slow.text()
    code, rest, _ = await redrive(rig)
    assert (code, rest["redriven"], rest["redriven_before"]) == (0, said["waiting"], said["redriven"])
    records = await read_topic(rig.bootstrap, JOBS)
    again = [record for record in records if record.header("sluiceway.round") == "1"]
    assert sorted(orjson.loads(record.value or b"")["id"] for record in again) == sorted(f"job-{n}" for n in range(60))


async def test_wrong_use_is_told_with_the_mend(rig: Rig) -> None:
    """Exit 2, one line, nothing written."""
    await rig.open(models("http://127.0.0.1:1", "http://127.0.0.1:1"), {"ticket-triage": triage()}, partitions=1)
    for arguments, word in (
        (("--reason", "unknwon_task"), "one of undecodable, invalid, unknown_task"),
        (("--since", "yesterday"), "--since 'yesterday' is no time. Mend: "),
    ):
        code, _, err = await redrive(rig, *arguments)
        assert code == 2
        assert word in err
        assert "Traceback" not in err
    code, said, err = await redrive(rig)
    assert (code, said["redriven"], err) == (0, 0, "")
