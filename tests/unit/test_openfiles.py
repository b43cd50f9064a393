"""Room for as many connections as jobs in flight, made in processes of their own: a limit can't be given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="this system has no such limit")

SCRIPT = """
import resource
from sluiceway.core.errors import InputError
from sluiceway.openfiles import make_room
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    make_room({connections}, asked={asked})
except InputError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def told(*, asked: bool = True, **numbers: int) -> list[str]:
    command = [sys.executable, "-c", SCRIPT.format(asked=asked, **numbers)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_limit_is_raised_as_far_as_the_jobs_in_flight_need() -> None:
    assert told(soft=256, hard=1000, connections=500) == ["(756, 1000)"]


def test_the_limit_is_never_lowered() -> None:
    assert told(soft=900, hard=1000, connections=10) == ["(900, 1000)"]


def test_a_system_that_allows_fewer_is_told_of_with_the_mend() -> None:
    """At the start, not as calls that fail one by one."""
    said, limits = told(soft=256, hard=1000, connections=2000)
    assert "need 2256 open files, and this system allows 1000" in said
    assert "Mend: raise its limit" in said
    assert limits == "(256, 1000)"


def test_nobody_is_refused_who_has_asked_for_nothing() -> None:
    """As many as the system allows are seldom too few: a policy's limits are most often lower."""
    assert told(soft=256, hard=1000, connections=1000, asked=False) == ["(1000, 1000)"]
