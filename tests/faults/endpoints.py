"""Rows 5, 6 and 7: models that hang, refuse for a while, or break their answers. Their journals are the witness."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from sluiceway.topicmap import DELAYS
from tests.faults.finding import Finding
from tests.faults.scene import REVOKE, SESSION, Job, Scene, tickets
from tests.faults.stage import Stage
from tests.faults.starved import Starved
from tests.support.fake_journal import JournalEntry, read_ends
from tests.support.outgoing import ESCALATIONS, RESULTS, REVIEWS, attempts, body
from tests.support.rig import CHEAP, CHEAP_PRICE, job

CALM = "labels seed=3 doubt=5% delay=0.02"
HUNG = "hang+slow+stall"  # never answers; a byte a second; headers, then nothing
SICK = "sick-triage"
LATE = 0.5  # seconds after its deadline by which an attempt has ended
TIMEOUT = 2.0
REFUSED_AFTER = 0.3  # seconds, so that many calls are under way when the first is refused
UNDER_WAY = 0.5  # seconds for which calls granted before a refusal was read may still arrive
HELD = 30.0  # seconds for which a whole endpoint is held at most, whatever it asks for
FAILED_SHARE = 0.10  # the policy's default
BOMB = 64 << 20  # bytes

STORM = ("retry-after=5", "retry-after=-1", "retry-after=abc", "retry-after=date:5", "retry-after-ms=1500",
         "retry-after=1000000000")  # fmt: skip
"""The last is the worst to recover from."""
BROKEN = "500+502+503+reset+half+html+gzip_bomb"


# -- row 5 -------------------------------------------------------------------------------------------------------------


async def hung(stage: Stage) -> list[Finding]:
    """One task's model hangs, in each way alone (fast form: in all three at once); another task has its own."""
    return [await _hung_model(stage, how) for how in stage.of(HUNG.split("+"), (HUNG,))]


async def _hung_model(stage: Stage, how: str) -> Finding:
    healthy, sick = stage.of((6_000, 1_500), (800, 250))
    deadline = 8.0  # less than a retry topic's shortest delay: each job spends all of it in the worker

    def serving(_cheap: str, _frontier: str, url: str) -> Mapping[str, Mapping[str, Any]]:
        model = {"provider": "openai", "model": CHEAP, "tier": "small", "price": CHEAP_PRICE}
        return {"sick": {**model, "base_url": f"{url}/v1", "params": {"max_tokens": 50}, "timeout": TIMEOUT}}

    tasks = {SICK: {"ladder": ["sick", "frontier"], "deadline": deadline}}
    made = stage.scene("5", cheap=CALM, sick=f"labels | any of={how}", tasks=tasks, serving=serving)
    async with made as scene, Starved() as starved:
        jobs: list[Job] = tickets(healthy)
        step = healthy // sick
        for n in range(sick):
            jobs.insert(n * (step + 1), (f"job-sick-{n}", job(f"sick-{n}", f"My card number {n} is late.", SICK)))
        await scene.publish(jobs)
        worker = scene.worker()
        late = await scene.caught_up(deadline + 60)
        codes = await scene.stopped(worker)
        answered = {tree["job_id"] for tree in scene.rig.out.bodies(RESULTS)}
        without = [id_ for id_, _ in jobs if id_ is not None and "sick" not in id_ and id_ not in answered]
        return await scene.finding(
            "5",
            f"a model of {sick} jobs of {len(jobs)}: {how.replace('+', ', ')}",
            idle_within=deadline + SESSION + REVOKE + 10,
            notes=[_fates(scene), _starved(starved)],
            asked={
                "lag 0": late,
                "exit codes": None if codes == [0] else f"{codes}",
                "every job of the other model has its result": f"{len(without)} have none" if without else None,
                **_judged_hung(scene, "sick", deadline, starved),
            },
        )


async def hung_endpoint(stage: Stage) -> list[Finding]:
    """One of a model's two endpoints hangs: the other one serves its jobs."""
    count = stage.of(6_000, 1_000)
    deadline = 30.0

    def serving(cheap: str, _frontier: str, url: str) -> Mapping[str, Mapping[str, Any]]:
        endpoints = [{"base_url": f"{each}/v1"} for each in (cheap, url)]
        return {"cheap": {"base_url": None, "endpoints": endpoints, "timeout": TIMEOUT}}

    made = stage.scene(
        "5-endpoint",
        cheap=CALM,
        parallel=16,
        sick=f"labels | any of={HUNG}",
        tasks={"ticket-triage": {"deadline": deadline}},
        serving=serving,
    )
    async with made as scene, Starved() as starved:
        worker = scene.worker()
        await scene.feed(tickets(count), over=stage.of(40.0, 7.0))
        late = await scene.caught_up(deadline + 60)
        codes = await scene.stopped(worker)
        left = len(scene.rig.out[REVIEWS])
        handed = [tree for tree in scene.rig.out.bodies(ESCALATIONS) if tree["reason"] == "failed"]
        untried = [tree["job_id"] for tree in handed if not any(map(_failure, attempts(tree)))]
        return [
            await scene.finding(
                "5-endpoint",
                f"one of two endpoints: {HUNG.replace('+', ', ')}",
                idle_within=deadline + SESSION + REVOKE + 10,
                notes=[_fates(scene), _starved(starved)],
                asked={
                    "lag 0": late,
                    "exit codes": None if codes == [0] else f"{codes}",
                    "the other endpoint serves every job": f"{left} are left to a person" if left else None,
                    "no job is handed on as failed that was not tried": _some(untried),
                    **_judged_hung(scene, "cheap", deadline, starved),
                },
            )
        ]


def _starved(starved: Starved) -> str:
    return f"a thread here waited for a processor up to {starved.worst:.2f} s, by which bounds in time are wider"


def _judged_hung(scene: Scene, model: str, deadline: float, starved: Starved) -> dict[str, str | None]:
    assert scene.sick is not None
    struck = [entry for entry in scene.sick.entries() if not entry.answers]
    scene.lost_calls += len(struck)  # their provider bills what nobody has read
    timed_out = sum(_failure(attempt) == "transient: timeout" for attempt in _attempts(scene))
    return {
        "calls hung": None if struck else "none did",
        "failed escalations stay within failed_share": _over_share(scene),
        "each call ends at the model's time-out": _some(
            overtime(struck, read_ends(scene.sick.journal), TIMEOUT + starved.worst)
        ),
        "each attempt ends at its job's deadline": _some(
            beyond_deadline(_trees(scene), model, deadline + starved.worst)
        ),
        "each hung call is a failed attempt of a trail": None
        if len(struck) <= timed_out
        else f"{len(struck)} hung, {timed_out} are told of",
    }


# -- row 6 -------------------------------------------------------------------------------------------------------------


async def stormed(stage: Stage) -> list[Finding]:
    """Every call is refused for a while, with each kind of Retry-After in turn; in the fast form all at once."""
    count, seconds, longest, within = stage.of((12_000, 60.0, 20.0, 60.0), (1_500, 8.0, 2.0, 15.0))
    kinds = [f"429,{kind},delay={REFUSED_AFTER}" for kind in STORM]
    scripts = [f"{CALM} | any of={kind}" for kind in stage.of(kinds, ["+".join(kinds)])]

    def serving(*_urls: str) -> Mapping[str, Mapping[str, Any]]:
        limits = {"max_parallel_requests": 64, "start_parallel_requests": 64, "longest_retry_after": longest}
        return {"cheap": {"limits": limits}}

    async with stage.scene("6", cheap=CALM, serving=serving, keep=True) as scene:
        jobs = tickets(count)
        await scene.publish(jobs[: count // 3])
        worker = scene.worker()
        await scene.share(0.5, count // 3)
        feeding = asyncio.create_task(scene.feed(jobs[count // 3 :], over=seconds * 0.8))
        for script in scripts:
            scene.cheap.say(script)
            await asyncio.sleep(seconds / len(scripts))  # the fault's own length
        scene.cheap.say(CALM)
        over = time.monotonic()
        await feeding
        late = await scene.caught_up(within + 60)
        recovered = time.monotonic() - over
        codes = await scene.stopped(worker)
        refused = [entry for entry in scene.cheap.entries() if entry.status == 429]
        told = Counter(_kind(entry) for entry in refused)
        early = too_soon(scene.cheap.entries(), read_ends(scene.cheap.journal), longest)
        left = len(scene.rig.out[REVIEWS])
        unseen = {kind.split(":")[0] for kind in STORM} - set(told)
        return [
            await scene.finding(
                "6",
                f"429 to every call for {seconds:.0f} s",
                idle_within=seconds + within + SESSION + REVOKE,
                recovery=recovered,
                notes=[
                    ", ".join(f"{number} x {kind}" for kind, number in sorted(told.items())),
                    f"lag 0 {recovered:.1f} s after the storm; a wait is {longest:g} s at most; {_fates(scene)}",
                ],
                asked={
                    "lag 0": late,
                    "exit codes": None if codes == [0] else f"{codes}",
                    "every kind of Retry-After was told": f"never {', '.join(sorted(unseen))}" if unseen else None,
                    "no call comes sooner than was asked": _some(early),
                    f"lag 0 within {within:.0f} s of the storm": None if recovered <= within else f"{recovered:.0f} s",
                    "no job is left to a person": f"{left} are" if left else None,
                },
            )
        ]


def _kind(refused: JournalEntry) -> str:
    """As STORM writes it, without a date's seconds."""
    name, value = next(iter(refused.notes.items()))
    return f"{name}=date" if str(value).endswith("GMT") else f"{name}={value}"


# -- row 7 -------------------------------------------------------------------------------------------------------------


async def broken(stage: Stage) -> list[Finding]:
    """Three answers of ten are broken: 5xx, resets, half bodies, a proxy's page, 64 MiB in 64 KiB."""
    count, deadline = stage.of((12_000, 20.0), (1_200, 10.0))
    tasks = {"ticket-triage": {"deadline": deadline}}
    async with stage.scene("7", cheap=CALM, tasks=tasks, parallel=64) as scene:
        first = count // 4
        jobs = tickets(count)
        worker = scene.worker()
        await scene.publish(jobs[:first])
        await scene.share(1.0, first)
        before = peak_memory(worker.pid)
        scene.cheap.say(f"{CALM} | any share=30% of={BROKEN}")
        await scene.publish(jobs[first:])
        late = await scene.caught_up(deadline + 90)
        grown = peak_memory(worker.pid) - before
        codes = await scene.stopped(worker)
        entries = scene.cheap.entries()
        struck = Counter(f"{e.answered} {e.status}" for e in entries if not e.answers)
        halves = struck["half 200"]
        failures = Counter(map(_failure, _attempts(scene)))
        # Billed, and nobody has read whose they are: halves, and calls under way when their job's time was up.
        cut, timed_out = failures["transient: body_cut"], failures["transient: timeout"]
        scene.lost_calls += halves + timed_out
        bombs = struck["gzip_bomb 200"]
        return [
            await scene.finding(
                "7",
                f"{sum(struck.values())} of {len(entries)} answers broken, {len(struck)} ways",
                idle_within=deadline + SESSION + REVOKE + 15,
                notes=[
                    ", ".join(f"{number} {kind}" for kind, number in sorted(struck.items())),
                    f"peak memory grew by {grown / 2**20:.0f} MiB over {bombs} bombs of 64 MiB; {_fates(scene)}",
                ],
                asked={
                    "lag 0": late,
                    "exit codes": None if codes == [0] else f"{codes}",
                    "every way was met": None if len(struck) == len(BROKEN.split("+")) else f"{dict(struck)}",
                    "failed escalations stay within failed_share": _over_share(scene),
                    "no bomb goes off": None if grown < BOMB else f"{grown / 2**20:.0f} MiB more memory",
                    "each half body is a failed attempt of a trail": None
                    if cut <= halves <= cut + timed_out
                    else f"{halves} halves; {cut} are told of, and {timed_out} time-outs",
                },
            )
        ]


# -- judges ------------------------------------------------------------------------------------------------------------


def overtime(struck: Iterable[JournalEntry], ends: Mapping[int, float], timeout: float) -> list[str]:
    """Calls whose connection was still open LATE seconds after the time-out, by the fake's own clock."""
    found = []
    for entry in struck:
        end = ends.get(entry.seq)
        if end is None or end - entry.ts > timeout + LATE:
            found.append(f"#{entry.seq} " + ("never ended" if end is None else f"took {end - entry.ts:.2f} s"))
    return found


def beyond_deadline(trees: Iterable[Mapping[str, Any]], model: str, deadline: float) -> list[str]:
    """Attempts at `model` that ended more than LATE seconds after their job's deadline.

    A job that waited in a retry topic is left out: what it lies there beyond its wait counts for nothing.
    """
    return [
        f"{tree['job_id']} by {over:.2f} s"
        for tree in trees
        if max(_waits(tree), default=0.0) < min(DELAYS)
        for step in attempts(tree)
        if step["model"] == model
        and (over := step["at"] + step["seconds"] - tree["trail"]["taken_at"] - deadline) > LATE
    ]


def _waits(tree: Mapping[str, Any]) -> list[float]:
    """Seconds of each wait."""
    steps = tree["trail"]["steps"]
    return [step["ended"] - step["at"] for step in steps if step["step"] == "waited" and step["ended"] is not None]


def asked_wait(headers: Mapping[str, Any], now: float, longest: float) -> float:
    """Seconds from `now` for which no call may come: what the headers ask for, within 0..`longest`."""
    for name, value in headers.items():
        try:
            if str(value).endswith("GMT"):
                seconds = parsedate_to_datetime(value).timestamp() - now
            else:
                seconds = float(value) / (1000 if name == "retry-after-ms" else 1)
        except ValueError:
            return 0.0
        return min(max(seconds, 0.0), longest, HELD)
    return 0.0


def too_soon(entries: Sequence[JournalEntry], ends: Mapping[int, float], longest: float) -> list[str]:
    """Calls that came while a refusal before them asked to wait, but for those that were under way when it was told.

    It was told at its end or a moment before: the fake notes an end when it has seen all bytes go.
    """
    holds = []
    for entry in entries:
        if entry.status == 429 and entry.seq in ends:
            told, read = ends[entry.seq], entry.ts + REFUSED_AFTER
            holds.append((told + UNDER_WAY, read + asked_wait(entry.notes, told, longest), entry.seq))
    return [
        f"#{entry.seq} while #{holding[0]} held"
        for entry in entries
        if (holding := [seq for since, until, seq in holds if since < entry.ts < until])
    ]


def _over_share(scene: Scene) -> str | None:
    failed: dict[str, list[float]] = {}
    for record in scene.rig.out[ESCALATIONS]:
        tree = body(record)
        if tree["reason"] == "failed":
            failed.setdefault(tree["task"], []).append(record.timestamp / 1000)
    taken = {name: [float(t["trail"]["taken_at"]) for t in _trees(scene) if t["task"] == name] for name in failed}
    return _some([breach for name, times in failed.items() for breach in over_share(times, taken[name], FAILED_SHARE)])


def over_share(failed: Sequence[float], taken: Sequence[float], share: float, minute: float = 60.0) -> list[str]:
    """Moments at which more jobs had been escalated as `failed` within a minute than `share` of those taken in it.

    Both in seconds since the epoch. A record lies out a little later than it was decided on.
    """
    times = sorted(failed)
    found = []
    for place, at in enumerate(times):
        many = sum(at - minute + 1.0 < other for other in times[: place + 1])
        jobs = sum(at - minute - 1.0 < other <= at + 0.001 for other in taken)  # a record's time is in whole ms
        if many > max(1.0, math.ceil(share * jobs)):
            found.append(f"{many} of {jobs} at {at:.0f}")
    return found


def peak_memory(pid: int) -> int:
    """Bytes: the most that the process ever held resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _some(found: Sequence[str]) -> str | None:
    return f"{len(found)}: {', '.join(found[:5])}" if found else None


def _trees(scene: Scene) -> list[dict[str, Any]]:
    return scene.rig.out.bodies(RESULTS, REVIEWS)


def _attempts(scene: Scene) -> list[dict[str, Any]]:
    return [step for tree in _trees(scene) for step in attempts(tree)]


def _failure(attempt: Mapping[str, Any]) -> str:
    return str(attempt.get("failure") or "")


def _fates(scene: Scene) -> str:
    """What became of the jobs, and of the attempts that failed."""
    out = scene.rig.out
    why = Counter(str(tree["reason"]) for tree in out.bodies(REVIEWS))
    reasons = Counter(str(tree["reason"]) for tree in out.bodies(ESCALATIONS))
    failures = Counter(filter(None, map(_failure, _attempts(scene))))
    fates = {"reviews": why, "escalations": reasons, "failures": failures}
    return f"{len(out.bodies(RESULTS))} results" + "".join(f", {name} {dict(n)}" for name, n in fates.items())
