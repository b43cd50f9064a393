"""Requests of an OpenAI batch file, read as jobs: what the user said is the job's text.

The system message is left out: a task has a prompt of its own, and a job never brings instructions.
Source of the format: OpenAI's Batch API guide (`custom_id, method, url, body`) for chat completions,
responses and completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluiceway.core.errors import InputError


def is_request(tree: Mapping[str, Any]) -> bool:
    """Whether the object is a batch request."""
    return "custom_id" in tree and isinstance(tree.get("body"), dict)


def text(body: Mapping[str, Any]) -> str:
    """What the user said in a request's body. Raises InputError where there is no text in it."""
    said = body.get("messages", body.get("input", body.get("prompt")))
    parts = [said] if isinstance(said, str) else [_content(turn) for turn in said or () if _by_user(turn)]
    found = "\n\n".join(part for part in parts if part)
    if not found:
        raise InputError("invalid", "this batch request holds no text of a user")
    return found


def _by_user(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "user"


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "input_text")]
    if len(texts) != len(content):
        raise InputError("invalid", "this batch request holds more than text (images, files), which is not supported")
    return "\n".join(str(part.get("text", "")) for part in texts)
