"""What a log line holds, and what it never does."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from sluiceway.core.errors import Bug
from sluiceway.telemetry import logs
from sluiceway.telemetry.logs import Event

CANARY = "canary-4711-a-secret-diagnosis"


@pytest.fixture
def restored() -> Iterator[None]:
    """The process's logging is another test's again."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def work(text: str) -> None:
    headers = {"authorization": f"Bearer sk-{text}"}
    raise Bug(f"a programming error beside {len(headers)} header")


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("readable", [False, True])
def test_a_fault_is_told_without_what_the_code_had_in_hand(*, readable: bool) -> None:
    """No job text and no key, on a terminal as in JSON, in our own lines as in a library's."""
    out = io.StringIO()
    logs.configure(out, readable=readable)
    try:
        work(CANARY)
    except Bug as error:
        logs.logger().error(Event.WORKER_FAILED, reason="Bug", exc_info=error)
        logging.getLogger("a library").error("failed", exc_info=error)
    told = out.getvalue()
    assert told.count("a programming error beside 1 header") == 2
    assert CANARY not in told
