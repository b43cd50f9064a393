"""Structured logs: one JSON object a line on stderr, or readable lines on a terminal. Payloads are never fields.

Every event the workers log is a member of `Event`; a redactor runs last and drops what must not be there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO

import structlog

# Fields that could hold job text, keys or headers. The redactor drops them whatever a call passes.
FORBIDDEN = frozenset(
    {
        "value",
        "key",
        "headers",
        "body",
        "prompt",
        "text",
        "input",
        "reply",
        "answer",
        "payload",
        "api_key",
        "password",
        "secret",
    }
)


class Event(StrEnum):
    WORKER_STARTED = "worker_started"
    WORKER_READY = "worker_ready"
    WORKER_DRAINING = "worker_draining"
    WORKER_STOPPED = "worker_stopped"
    WORKER_FAILED = "worker_failed"
    POLICY = "policy"
    DEAD_LETTER = "dead_letter"
    CALL_LOST = "call_lost"
    ID_REUSED = "id_reused"
    LIMIT_REACHED = "limit_reached"
    KAFKA = "kafka"
    STACKS = "stacks"


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in FORBIDDEN.intersection(event):
        event[name] = "[redacted]"
    return event


def configure(stream: TextIO | None = None, *, readable: bool | None = None) -> None:
    """Sets up logging for the process: JSON unless the stream is a terminal. Libraries log from WARNING up."""
    out = stream or sys.stderr
    pretty = out.isatty() if readable is None else readable
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Not structlog's usual one: where rich is installed that prints the locals of each frame, records and keys too.
    console = structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
    renderer = console if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, _redact, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    foreign = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, renderer],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(foreign)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def logger() -> Any:
    """The process's logger: `logger().info(Event.X, name=value)`."""
    return structlog.get_logger()
