"""A record of an outgoing topic as one readable line, or as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from rich.text import Text

from sluiceway.cli.show import plain, usd
from sluiceway.ports import Record

COLUMNS = (
    ("time", 8),
    ("job", 26),
    ("task", 18),
    ("model", 20),
    ("answer", 36),
    ("score", 6),
    ("cost", 12),
    ("reason", 0),
)
"""Names and widths in characters; the last takes what is left."""

_DLQ = "__dlq.errors."


def head() -> Text:
    """The names of the columns."""
    return _line([name for name, _ in COLUMNS], "bold")


def line(record: Record) -> Text:
    """What a person wants to see of it."""
    tree = _tree(record)
    if tree is None:
        return _dead(record)
    attempts = [step for step in _trail(tree) if step.get("step") == "attempt"]
    last: Mapping[str, Any] = attempts[-1] if attempts else {}
    who = tree if tree.get("model") else last
    score = tree.get("score") if tree.get("model") else (last.get("score") or {}).get("value")
    cost = tree.get("cost_picousd", sum(step.get("cost_picousd", 0) for step in attempts))
    reasons = (
        tree.get("status") if tree.get("status") == "refused" else None,
        tree.get("escalated"),
        tree.get("reason"),
    )
    return _line(
        [
            _time(tree.get("finished_at") or record.timestamp),
            str(tree.get("job_id")),
            str(tree.get("task")),
            "/".join(str(who[name]) for name in ("tier", "model") if who.get(name)),
            _answer(tree.get("answer") or last.get("answer")),
            "" if score is None else f"{score:.3f}",
            usd(cost),
            ": ".join(dict.fromkeys(str(reason) for reason in reasons if reason)),
        ],
        "" if tree.get("status") == "answered" else "yellow",
    )


def as_json(record: Record) -> bytes:
    """The record's own JSON; of a dead letter what is known of it, never its bytes."""
    if _tree(record) is not None and record.value is not None:
        return record.value
    return orjson.dumps(_facts(record))


def _tree(record: Record) -> dict[str, Any] | None:
    """The record's JSON where it is one of ours; None for a dead letter, whose value is somebody else's."""
    if record.value is None or any(name.startswith(_DLQ) for name, _ in record.headers):
        return None
    try:
        tree = orjson.loads(record.value)
    except orjson.JSONDecodeError:
        return None
    ours = isinstance(tree, dict) and str(tree.get("schema")).startswith("sluiceway.")
    return tree if ours and isinstance(tree.get("trail"), dict) else None


def _trail(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [step for step in tree["trail"].get("steps") or () if isinstance(step, dict)]


def _facts(record: Record) -> dict[str, Any]:
    known = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    facts: dict[str, Any] = {
        name.removeprefix(_DLQ).removeprefix("sluiceway."): value
        for name, value in known.items()
        if name.startswith((_DLQ, "sluiceway."))
    }
    key = None if record.key is None else record.key.decode("utf-8", "replace")
    return {**facts, "key": key, "bytes": len(record.value or b""), "timestamp": record.timestamp}


def _dead(record: Record) -> Text:
    facts = _facts(record)
    where = f"{facts['topic']}/{facts.get('partition')}/{facts.get('offset')}" if "topic" in facts else record.topic
    said = f"{facts.get('reason', 'not a record of ours')}: {facts.get('message', '')}".rstrip(": ")
    cells = [_time(record.timestamp), facts["key"] or "", "", where, f"{facts['bytes']} bytes", "", "", said]
    return _line(cells, "red")


def _answer(answer: Any) -> str:
    if isinstance(answer, dict) and len(answer) == 1:
        (answer,) = answer.values()
    if answer is None or isinstance(answer, str):
        return answer or ""
    return orjson.dumps(answer).decode()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def _line(cells: list[str], style: str) -> Text:
    parts = []
    for (_, width), cell in zip(COLUMNS, cells, strict=True):
        text = plain(cell)
        parts.append(text if not width else (text if len(text) <= width else f"{text[: width - 1]}…").ljust(width))
    return Text(" ".join(parts).rstrip(), style=style, no_wrap=True, overflow="ellipsis")
