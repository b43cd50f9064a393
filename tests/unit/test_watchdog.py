"""Laws of the watchdog: what hangs is ended and says where; what waits for others, or was frozen itself, never is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.watchdog import Bounds, Ear, Facts, Findings, RoleFacts, Watch
from sluiceway.telemetry.metrics import Metrics
from sluiceway.telemetry.watchdog import Watchdog

ROOT = Path(__file__).parents[2]
BOUNDS = Bounds(held=10.0, watermark=100.0, commit=20.0, unacked=15.0, lag=2.0, silent=30.0)


def a_role(
    running: int = 1,
    waiting: int = 0,
    idle: float = 1e6,
    *,
    group: str = "g",
    watermark_age: float = 0.0,
    commit_age: float = 0.0,
) -> RoleFacts:
    return RoleFacts(group, running, waiting, idle, watermark_age, commit_age)


def looks(watch: Watch, count: int, *roles: RoleFacts, begin: int = 0) -> Findings:
    """What the last of `count` looks finds, a second apart."""
    findings = Findings()
    for now in range(begin, begin + count):
        findings = watch.look(Facts(roles), 0.0, float(now))
    return findings


# -- what is found -----------------------------------------------------------------------------------------------------


def test_held_work_makes_slow_and_at_twice_the_bound_wedged() -> None:
    """The first look at it is second 0; the reason names the role, the jobs and the seconds."""
    assert looks(Watch(BOUNDS, interval=1.0), 11, a_role()) == Findings(held=(("g", 10.0),))
    slow = looks(Watch(BOUNDS, interval=1.0), 12, a_role(3))
    assert slow.slow == ("g: 3 jobs held, none has got on for 11 s",)
    assert slow.wedged == ()
    assert looks(Watch(BOUNDS, interval=1.0), 21, a_role()).wedged == ()
    assert looks(Watch(BOUNDS, interval=1.0), 22, a_role()).wedged == ("g: 1 jobs held, none has got on for 21 s",)


def test_one_role_s_progress_does_not_hide_that_another_hangs() -> None:
    """Each role is judged by its own jobs."""
    found = looks(Watch(BOUNDS, interval=1.0), 30, a_role(group="jobs", idle=0.1), a_role(group="escalations"))
    assert [reason.split(":")[0] for reason in found.wedged] == ["escalations"]


def test_a_job_that_got_on_begins_the_count_anew() -> None:
    """However little: one job settled, or one reply."""
    watch = Watch(BOUNDS, interval=1.0)
    assert looks(watch, 21, a_role()).slow
    assert looks(watch, 1, a_role(idle=0.5), begin=21) == Findings(held=(("g", 0.0),))
    assert looks(watch, 10, a_role(idle=5.0), begin=22).slow == ()


def test_a_job_that_waited_long_by_rule_is_not_held_from_before() -> None:
    """After an hour behind an open breaker its first call has the whole bound."""
    watch = Watch(BOUNDS, interval=1.0)
    looks(watch, 3600, a_role(running=4, waiting=4))
    assert looks(watch, 11, a_role(running=4, waiting=3), begin=3600).slow == ()
    assert looks(watch, 1, a_role(running=4, waiting=3), begin=3611).slow == (
        "g: 1 jobs held, none has got on for 11 s",
    )


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6),  # seconds between two looks
            st.integers(0, 500),
            *[st.floats(0, 1e9)] * 5,
        ),
        max_size=30,
    )
)
def test_what_waits_for_others_never_ends_a_process(steps: list[tuple[Any, ...]]) -> None:
    """Jobs that wait by rule or for an ack, a silent broker, an old watermark, a late loop: slow at most, for ever."""
    watch, now = Watch(BOUNDS, interval=1.0), 0.0
    for passed, running, idle, watermark, commit, unacked, lag in steps:
        now += passed
        role = a_role(running, running, idle, watermark_age=watermark, commit_age=commit)
        found = watch.look(Facts((role,), unacked), lag, now)
        assert found.wedged == ()
        assert found.held == ()
        assert bool(found.slow) == (commit > 20.0 or unacked > 15.0 or lag > 2.0)


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.integers(1, 500), st.booleans()), max_size=60))
def test_no_process_ends_before_its_bound_in_looks(steps: list[tuple[float, int, bool]]) -> None:
    """Wedged needs that no job got on for more looks than twice the bound has seconds at two a look: frozen or not."""
    watch, now, progress, since = Watch(BOUNDS, interval=1.0), 0.0, 0.0, 0
    for passed, running, moved in steps:
        now += passed
        if moved:
            progress, since = now, 0
        found = watch.look(Facts((a_role(running, idle=now - progress),)), 0.0, now)
        assert not found.wedged or since * 2.0 > 2 * BOUNDS.held
        since += 1


def test_a_watermark_is_late_only_where_jobs_are_held() -> None:
    """A queue behind a job that waits by rule is as old as that wait."""
    watch = Watch(BOUNDS, interval=1.0)
    assert looks(watch, 1, a_role(2, 2, watermark_age=101.0)).slow == ()
    assert looks(watch, 1, a_role(2, 1, watermark_age=101.0)).slow == ("g: one record held for 101 s",)
    assert looks(watch, 1, a_role(2, 1, watermark_age=100.0)).slow == ()


def test_each_way_to_be_slow_says_what_it_is() -> None:
    """In words for `/readyz`."""
    found = Watch(BOUNDS, interval=1.0).look(Facts((a_role(0, commit_age=21.0),), unacked_age=16.0), 2.5, 0.0)
    assert found.slow == (
        "g: nothing committed for 21 s",
        "publisher: no ack for 16 s",
        "the loop turned 2.5 s late",
    )


def test_a_silent_loop_is_wedged_by_looks_not_by_the_clock() -> None:
    """31 looks a second apart; a gap of an hour, in which the listener was frozen as well, counts for two seconds."""
    ear = Ear(BOUNDS, interval=1.0)
    assert [ear.listen(7, float(now)) for now in range(31)] == [()] * 31
    assert ear.listen(7, 31.0) == ("the loop has not turned for 31 s",)
    ear = Ear(BOUNDS, interval=1.0)
    ear.listen(7, 0.0)
    assert ear.listen(7, 3600.0) == ()
    assert [ear.listen(7, 3600.0 + now) for now in range(1, 29)] == [()] * 28
    assert ear.listen(7, 3629.0) != ()
    assert ear.listen(8, 3630.0) == ()


def test_bounds_leave_a_job_what_the_policy_allows_it() -> None:
    """`held` is beyond the longest job, and the watermark's bound beyond that."""
    for longest in (0.1, 120.0, 3600.0):
        bounds = Bounds.for_jobs(longest)
        assert longest < bounds.held < bounds.watermark
    assert Bounds.for_jobs(1.0, silent=5.0).silent == 5.0
    with pytest.raises(ValueError, match="positive"):
        Bounds(held=0.0)


# -- what is done ------------------------------------------------------------------------------------------------------


class Rig:
    """A watchdog with a clock that stands, whose end is written down."""

    def __init__(self) -> None:
        self.now, self.codes, self.facts = 0.0, list[int](), Facts((a_role(),))
        self.metrics = Metrics()
        self.dog = Watchdog(BOUNDS, lambda: self.facts, self.metrics, clock=lambda: self.now, end=self.codes.append)

    def seconds(self, count: int, *, beating: bool) -> None:
        for _ in range(count):
            self.now += 1.0
            if beating:
                self.dog.beat(0.25)
            self.dog.listen()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def test_a_wedge_ends_the_process_once_with_code_1() -> None:
    """Held work: at twice the bound and not before."""
    rig = Rig()
    rig.seconds(21, beating=True)
    assert rig.codes == []
    rig.seconds(10, beating=True)
    assert rig.codes == [1]


def test_a_loop_that_stops_beating_ends_the_process() -> None:
    """Though all was well when it was last looked at; and a loop that beats again in time does not."""
    rig = Rig()
    rig.facts = Facts(())
    rig.seconds(3, beating=True)
    rig.seconds(29, beating=False)
    rig.seconds(1, beating=True)
    rig.seconds(30, beating=False)
    assert rig.codes == []
    rig.seconds(1, beating=False)
    assert rig.codes == [1]


def test_a_closed_watchdog_ends_nothing() -> None:
    """A stop has its own budget."""
    rig = Rig()
    rig.seconds(15, beating=True)
    rig.dog.close()
    rig.seconds(100, beating=True)
    rig.seconds(100, beating=False)
    assert rig.codes == []


def test_readiness_and_metrics_say_what_the_last_beat_found() -> None:
    """Late and then well again: the gauges go back to 0."""
    rig = Rig()
    rig.facts = Facts((a_role(5, 2, commit_age=7.0),), unacked_age=3.0)
    rig.seconds(12, beating=True)
    assert rig.dog.slow() == ["g: 3 jobs held, none has got on for 11 s"]
    assert rig.value("sluiceway_held_work_seconds", consumergroup="g") == 11.0
    assert rig.value("sluiceway_jobs_waiting", consumergroup="g") == 2.0
    assert rig.value("sluiceway_commit_age_seconds", consumergroup="g") == 7.0
    assert rig.value("sluiceway_unacked_age_seconds") == 3.0
    assert rig.value("sluiceway_loop_lag_seconds") == 0.25
    assert rig.value("sluiceway_watchdog_slow") == 1.0
    rig.facts = Facts((a_role(0),))
    rig.seconds(1, beating=True)
    assert rig.dog.slow() == []
    assert rig.value("sluiceway_held_work_seconds", consumergroup="g") == 0.0
    assert rig.value("sluiceway_watchdog_slow") == 0.0


async def test_it_beats_until_it_is_cancelled_and_the_thread_ends_with_it() -> None:
    """A real loop and a real thread."""
    beaten = asyncio.Event()

    def look() -> Facts:
        beaten.set()
        return Facts(())

    dog = Watchdog(BOUNDS, look, Metrics(), interval=0.01)
    running = asyncio.ensure_future(dog.run())
    await beaten.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(dog.join)


# -- real processes ----------------------------------------------------------------------------------------------------

_PROCESS = """
import asyncio, ctypes, os, sys, time
import uvloop
from sluiceway.core.watchdog import Bounds, Facts, RoleFacts
from sluiceway.telemetry import logs, watchdog
from sluiceway.telemetry.metrics import Metrics

HELD = 0

def look():
    return Facts((RoleFacts("g", HELD, 0, time.monotonic() - BEGIN, 0.0, 0.0),))

def sleeps_in_the_loop(text="canary-4711"):
    time.sleep(600)

def spins_in_the_loop():
    while True:
        pass

def never_lets_go():
    ctypes.PyDLL(None).sleep(600)

def writes_what_nobody_reads():
    watchdog._DUMP = 0.2
    while True:
        os.write(2, b"x" * 65536)

async def job(text="canary-4711"):
    await innermost(text)

async def innermost(text):
    await asyncio.get_running_loop().create_future()

async def hold_jobs():
    global HELD
    jobs = [asyncio.create_task(job()) for _ in range(50)]
    HELD = 50
    await asyncio.wait(jobs)

async def main(what):
    bounds = Bounds(held=0.2, silent=0.5 if what != "hold_jobs" else 600.0)
    running = asyncio.create_task(watchdog.Watchdog(bounds, look, Metrics(), interval=0.1).run())
    await asyncio.sleep(0.3)
    if what == "stop":
        running.cancel()
        await asyncio.wait([running])
        time.sleep(2.0)
        print("stopped")
        return
    done = globals()[what]()
    if done is not None:
        await done

BEGIN = time.monotonic()
logs.configure(readable=False)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(sys.argv[1]))
"""


def run_process(what: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, what], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("what", ["sleeps_in_the_loop", "spins_in_the_loop"])
def test_a_blocked_loop_ends_hard_and_the_dump_names_the_blocking_function(what: str) -> None:
    """Code 1; each line is JSON; no local's value is in it."""
    code, _, log = run_process(what)
    assert code == 1, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[0]["event"] == "worker_failed"
    assert lines[0]["reason"] == "wedged"
    assert "the loop has not turned for" in lines[0]["detail"]
    (main,) = [line for line in lines if line.get("of") == "thread MainThread"]
    assert main["event"] == "stacks"
    assert main["frames"][-1].endswith(f" {what}")
    assert "canary" not in log


def test_jobs_that_wait_for_ever_end_hard_and_the_dump_names_what_they_wait_in() -> None:
    """Fifty alike are one line, from the task's own coroutine down to the innermost."""
    code, _, log = run_process("hold_jobs")
    assert code == 1, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert "g: 50 jobs held" in lines[0]["detail"]
    (jobs,) = [line for line in lines if line.get("of") == "tasks" and line["count"] == 50]
    assert [frame.rsplit(" ", 1)[1] for frame in jobs["frames"]] == ["job", "innermost"]
    assert "canary" not in log


def test_a_loop_that_hangs_in_native_code_ends_hard_too() -> None:
    """No other thread of Python runs: faulthandler's own ends it, and names the function."""
    code, _, log = run_process("never_lets_go")
    assert code == 1, log
    assert "in never_lets_go" in log


def test_a_log_that_nobody_reads_does_not_keep_the_process_alive() -> None:
    """The pipe is full and the loop itself hangs in writing to it."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROCESS, "writes_what_nobody_reads"], stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            assert process.wait(120) == 1
        finally:
            process.kill()


def test_a_watchdog_that_was_cancelled_lets_a_stop_take_its_time() -> None:
    """The loop is blocked for four times the bound after it, and the process ends as it wants to."""
    code, out, log = run_process("stop")
    assert (code, out) == (0, "stopped\n"), log
