"""Bad input: one dead letter each, byte for byte the original, and the neighbours never notice."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import urllib.request
from collections import Counter

import orjson
import pytest
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import DEAD_LETTERS, ESCALATIONS, JOBS, RESULTS, REVIEWS, body
from tests.support.processes import wait_until
from tests.support.rig import Item, Rig, job, metric, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import Seen

from sluiceway.kafka import topics
from sluiceway.ports import Headers

Fakes = tuple[FakeProcess, FakeProcess]

LARGE = "documents.large"
LIMIT = 50_000  # bytes that the triage task takes
HEADERS: Headers = (("trace", b"1"), ("trace", b"2"), ("binary", bytes(range(256))), ("empty", b""), ("null", None))
SPOOFED = (("__dlq.errors.topic", b"elsewhere"), ("sluiceway.reason", b"crashes"), ("sluiceway.trail", b"[]"))


def _job(**fields: object) -> bytes:
    return orjson.dumps({"id": "bad", "task": "ticket-triage", "input": "My card is late."} | fields)


def _nested(depth: int) -> bytes:
    return b'{"id":"bad","task":"ticket-triage","input":{"text":"a","deep":' + b"[" * depth + b"]" * depth + b"}}"


BAD: dict[str, tuple[bytes, str]] = {
    "cut": (_job()[:-9], "undecodable"),
    "empty": (b"", "undecodable"),
    "utf8": (_job().replace(b"card", b"\xff\xfe"), "undecodable"),
    "surrogate": (_job().replace(b"card", b"\\ud800"), "undecodable"),
    "nan": (b'{"id":"bad","task":"ticket-triage","input":{"n":NaN}}', "undecodable"),
    "deeper-than-json": (_nested(2_000), "undecodable"),
    "deep": (_nested(300), "invalid"),
    "array": (b"[" + _job() + b"]", "invalid"),
    "string": (b'"ticket-triage"', "invalid"),
    "number": (b"42", "invalid"),
    "null": (b"null", "invalid"),
    "no-input": (b'{"id":"bad","task":"ticket-triage"}', "invalid"),
    "input-type": (_job(input=7), "invalid"),
    "input-empty": (_job(input=""), "invalid"),
    "id-type": (_job(id=7), "invalid"),
    "id-long": (_job(id="x" * 257), "invalid"),
    "task-type": (_job(task=None), "invalid"),
    "stakes": (_job(stakes="enormous"), "invalid"),
    "context-type": (_job(context="some text"), "invalid"),
    "round": (_job(round=-1), "invalid"),
    "schema": (_job(schema="sluiceway.result/1"), "invalid"),
    "expires": (_job(expires_at="tomorrow"), "invalid"),
    "task": (_job(task="no-such-task"), "unknown_task"),
    "large": (_job(input="late card " * 6_000), "too_large"),
}

DECODED = ("task", "large")  # jobs, though no work for this worker: their ids are known


def dead_letters_by_key(letters: list[Seen]) -> dict[bytes | None, Seen]:
    assert Counter(letter.key for letter in letters).most_common(1)[0][1] == 1, "one dead letter each"
    return {letter.key: letter for letter in letters}


def told(letter: Seen, kept: Headers) -> dict[str, str]:
    """What we know, from the headers after the original's own, each there once and in UTF-8."""
    assert letter.headers[: len(kept)] == kept
    ours = letter.headers[len(kept) :]
    assert max(Counter(name for name, _ in ours).values()) == 1
    return {name: (value or b"").decode("utf-8") for name, value in ours}


async def test_each_bad_record_is_one_dead_letter_and_its_neighbours_are_answered(any_rig: Rig, fakes: Fakes) -> None:
    """Key, value and headers are the original's bytes; what we know stands in headers under Apache Kafka's names."""
    rig, (cheap, frontier) = any_rig, fakes
    tasks = {"ticket-triage": triage(max_bytes=LIMIT), "documents": triage(topic=LARGE, max_bytes="1MB")}
    await rig.open(
        models(cheap.url, frontier.url),
        tasks,
        partitions=2,
        overrides={LARGE: {"config": {"max.message.bytes": 4 << 20}}},
    )
    items: list[Item] = []
    texts = bank_tickets(2 * len(BAD) + 2)
    for n, (name, (value, _)) in enumerate(BAD.items()):
        kept = HEADERS if n % 2 else ()
        items += [
            (*job(2 * n, texts[2 * n])[:2], kept),
            (b"\xffkey-" + name.encode(), value, (*kept, *SPOOFED)),
            job(2 * n + 1, texts[2 * n + 1]),
        ]
    places = dict(zip((key for key, _, _ in items), await rig.publish(JOBS, items), strict=True))
    two_megabytes = orjson.dumps({"id": "huge", "task": "documents", "input": "x" * 2_000_000})
    small = [job(name, texts[-1 - n], "documents") for n, name in enumerate(("before", "after"))]
    huge = await rig.publish(LARGE, [small[0], (b"huge", two_megabytes, HEADERS), small[1]])
    places[b"huge"] = huge[1]

    worker = rig.worker()
    good = {f"job-{n}" for n in (*range(2 * len(BAD)), "before", "after")}
    await rig.until(
        lambda seen: seen.ids(RESULTS, REVIEWS) >= good and len(seen[DEAD_LETTERS]) >= len(BAD) + 1, within=40
    )
    assert await rig.stopped(worker) == [0]
    seen = await rig.settled()
    assert seen.ids(RESULTS, REVIEWS) == good
    assert {outcome["status"] for outcome in seen.bodies(RESULTS, REVIEWS)} == {"answered"}
    report = await rig.report(entries=[entry for fake in fakes for entry in fake.entries()])
    assert report.holds, report

    letters = dead_letters_by_key(seen[DEAD_LETTERS])
    assert len(letters) == len(BAD) + 1
    for n, (name, (value, reason)) in enumerate(BAD.items()):
        letter = letters[b"\xffkey-" + name.encode()]
        assert letter.value == value
        ours = told(letter, HEADERS if n % 2 else ())
        partition, offset = places[letter.key]
        assert ours.pop("__dlq.errors.message")
        assert ours.pop("sluiceway.round") == "0"
        assert ours.pop("sluiceway.job_id") == ("bad" if name in DECODED else f"{JOBS}-{partition}-{offset}")
        assert ours.pop("sluiceway.task", None) == ("ticket-triage" if name == "large" else None)
        assert ours == {
            "__dlq.errors.topic": JOBS,
            "__dlq.errors.partition": str(partition),
            "__dlq.errors.offset": str(offset),
            "__dlq.errors.group": "sluiceway-jobs",
            "__dlq.errors.delivery.count": "1",
            "sluiceway.reason": reason,
            "sluiceway.sha256": hashlib.sha256(value).hexdigest(),
        }, name
    letter = letters[b"huge"]
    assert letter.value == two_megabytes
    ours = told(letter, HEADERS)
    assert (ours["__dlq.errors.topic"], ours["sluiceway.reason"]) == (LARGE, "too_large")
    assert not {entry.digest for fake in fakes for entry in fake.entries() if entry.status != 200}
    log = worker.text()
    assert not any(text in log for text in ("My card", "late card", "x" * 100)), "payloads are never in logs"


async def test_a_tombstone_is_skipped_and_counted(any_rig: Rig, fakes: Fakes) -> None:
    """A null value is nobody's job: no outcome, no dead letter, no call; the metrics say how many there were."""
    rig, (cheap, frontier) = any_rig, fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()}, partitions=1)
    texts = bank_tickets(10)
    items: list[Item] = [item for n, text in enumerate(texts) for item in (job(n, text), (b"gone", None, ()))]
    await rig.publish(JOBS, items)
    worker = rig.worker()
    (url,) = await rig.ready(worker)
    good = {f"job-{n}" for n in range(10)}
    await rig.until(lambda seen: seen.ids(RESULTS) >= good, within=30)
    settled = await asyncio.to_thread(_await_metric, url, "sluiceway_settled_total", 20)
    assert metric(settled, "sluiceway_tombstones_total", topic=JOBS) == 10
    assert await rig.stopped(worker) == [0]
    seen = await rig.settled()
    assert not seen[DEAD_LETTERS]
    assert len(seen[RESULTS]) == 10
    assert len(cheap.entries()) == 10


def _await_metric(url: str, name: str, count: float) -> str:
    """The metrics' text once the counter has reached `count` on the jobs topic."""

    def look() -> str | None:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  our own worker's
            text: str = answer.read().decode()
        return text if metric(text, name, topic=JOBS) >= count else None

    return wait_until(look, within=20, what=f"{name} >= {count}")


@pytest.mark.parametrize("way", ["results", "reviews", "sampled"])
async def test_a_job_just_under_the_limit_passes_every_topic(rig: Rig, fakes: Fakes, way: str) -> None:
    """What the jobs topic accepts fits with its trail wherever it goes: escalations, results, reviews."""
    cheap, frontier = fakes
    cheap.say("labels | told")
    frontier.say("labels | told")
    review = {"results": {}, "reviews": {"always": ["chars > 100"]}, "sampled": {"sample": "100%"}}[way]
    task = triage(max_bytes="2MiB", review=review, ladder=[{"model": "cheap", "input_tokens": 2000}, "frontier"])
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": task}, partitions=1)
    limit = 1_048_576 - 200  # the topic's max.message.bytes counts the batch around the record too
    made = {"ascii": "late card ", "unicode": "späte Karte ✂ ", "escaped": '"\\\n\t'}
    items = []
    for name, unit in made.items():
        head = f"[[sure:0.4]] {name} "
        _, empty, _ = job(name, head)
        size = len(orjson.dumps(unit)) - 2
        value = job(name, head + unit * ((limit - len(empty or b"")) // size))[1]
        assert value is not None
        assert limit - 20 < len(value) <= limit
        items.append((None, value, (("traceparent", b"00-1"),)))
    await rig.publish(JOBS, items)
    worker = rig.worker(environment={"SLUICEWAY_SECRET": "a secret of this test alone"})
    names = {f"job-{name}" for name in made}
    await rig.until(lambda seen: seen.ids(RESULTS, REVIEWS) >= names or bool(seen[DEAD_LETTERS]), within=40)
    assert await rig.stopped(worker) == [0]
    seen = await rig.settled()
    assert not seen[DEAD_LETTERS], [letter.headers for letter in seen[DEAD_LETTERS]]
    assert seen.ids(ESCALATIONS) == names
    assert seen.ids(REVIEWS if way == "reviews" else RESULTS) == names
    if way == "sampled":
        assert all(len(record.value or b"") > limit for record in seen[RESULTS])


async def test_a_worker_refuses_to_start_where_an_accepted_job_might_fit_nowhere(rig: Rig) -> None:
    """A jobs topic that takes more than dead letters do is found at the start, not by the first large job."""
    await rig.open(models("http://127.0.0.1:9", "http://127.0.0.1:9"), {"ticket-triage": triage()}, partitions=1)
    (jobs,) = [topic for topic in topics.declared(replicas=1, partitions=1) if topic.name == JOBS]
    larger = dataclasses.replace(jobs, config={**jobs.config, topics.SIZE: str(16 << 20)})
    await topics.apply(rig.connection, [larger])
    worker = rig.worker()
    assert await asyncio.to_thread(worker.wait, 30) in (1, 2)
    said = worker.text()
    assert "Mend: sluiceway topics apply, or set max.message.bytes=" in said
    assert "Traceback" not in said


@pytest.mark.slow_on_embedded
async def test_a_bad_record_on_the_internal_topic_is_one_dead_letter_too(any_rig: Rig, fakes: Fakes) -> None:
    """Whatever lies in `escalations` and is no escalation becomes a dead letter of that group; the others go on."""
    rig, (cheap, frontier) = any_rig, fakes
    cheap.say("labels doubt=100%")
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()}, partitions=1)
    await rig.publish(JOBS, [job(n, text) for n, text in enumerate(bank_tickets(4))])
    first = rig.worker("--role", "jobs")
    await rig.until(lambda seen: len(seen.ids(ESCALATIONS)) == 4, within=30)
    good = body(rig.out[ESCALATIONS][0])
    bad: dict[bytes, tuple[bytes, str]] = {
        b"cut": (orjson.dumps(good)[:-40], "undecodable"),
        b"job": (job(9, "a job is no escalation")[1] or b"", "invalid"),
        b"no-trail": (orjson.dumps({name: part for name, part in good.items() if name != "trail"}), "invalid"),
        b"reason": (orjson.dumps(good | {"reason": "because"}), "invalid"),
        b"no-job": (orjson.dumps(good | {"job": {}}), "invalid"),
        b"task": (orjson.dumps(good | {"task": "no-such-task"}), "unknown_task"),
        b"steps": (orjson.dumps(good | {"trail": good["trail"] | {"steps": [{"step": "dance"}]}}), "invalid"),
    }
    await rig.publish(ESCALATIONS, [(key, value, ()) for key, (value, _) in bad.items()])
    second = rig.worker("--role", "escalations", start=None)
    await rig.until(lambda seen: len(seen.ids(RESULTS)) == 4 and len(seen[DEAD_LETTERS]) >= len(bad), within=30)
    assert await rig.stopped(first, second) == [0, 0]
    seen = await rig.settled()
    letters = dead_letters_by_key(seen[DEAD_LETTERS])
    for key, (value, reason) in bad.items():
        ours = told(letters[key], ())
        assert letters[key].value == value
        assert (ours["__dlq.errors.topic"], ours["__dlq.errors.group"]) == (ESCALATIONS, "sluiceway-escalations")
        assert ours["sluiceway.reason"] == reason, key
    assert len(frontier.entries()) == 4
