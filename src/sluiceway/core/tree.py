"""A JSON tree: what it may hold, so that every record which carries it can be written and read again."""

from __future__ import annotations

import math
from typing import Any

import orjson

DEPTH = 64  # levels; orjson writes 254 and pydantic reads 200, and a record puts a job a few levels down


def unfit(tree: Any) -> str | None:
    """Why no record could carry `tree`, None where one can."""
    if deeper(tree, DEPTH):
        return f"nested deeper than {DEPTH} levels"
    if _endless(tree):
        return "not JSON: a number that is infinite, or none"
    try:
        orjson.dumps(tree)
    except TypeError as error:
        return f"not JSON: {error}"  # a lone surrogate, an integer past 64 bits, a key that is no text
    return None


def deeper(tree: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other on more than `levels` levels."""
    if not isinstance(tree, dict | list):
        return False
    if levels == 0:
        return True
    parts = tree.values() if isinstance(tree, dict) else tree
    return any(isinstance(part, dict | list) and deeper(part, levels - 1) for part in parts)


def _endless(tree: Any) -> bool:
    """Whether it holds a number that JSON has no word for; orjson would write it as null."""
    if isinstance(tree, dict):
        return any(map(_endless, tree.values()))
    if isinstance(tree, list):
        return any(map(_endless, tree))
    return isinstance(tree, float) and not math.isfinite(tree)
