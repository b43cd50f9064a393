"""Values of the hot path: what `core/value.py` leaves out at run time is held by mypy, and nothing else is lost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import orjson
from mypy import api

from sluiceway.core.call import Usage
from sluiceway.core.trail import Attempt, PromptFacts, VerdictKind

_ASSIGNS = """
from sluiceway.core.value import value

@value
class Point:
    across: int
    down: int = 0

point = Point(1)
point.down = 2
"""


def test_mypy_lets_nobody_assign_to_a_value(tmp_path: Path) -> None:
    """The one guard that a value has of its own is the type checker's: it must see a frozen class."""
    script = tmp_path / "assigns.py"
    script.write_text(_ASSIGNS)
    said, errors, code = api.run(["--strict", "--config-file=", f"--cache-dir={tmp_path}", str(script)])
    assert (errors, code) == ("", 1)
    assert [line for line in said.splitlines() if "assigns.py:10: error: Property" in line and "read-only" in line]
    assert "Found 1 error" in said, sys.version


def test_values_are_compared_and_hashed_by_their_fields() -> None:
    """As frozen dataclasses are."""
    usage = Usage(1, output_text=2)
    assert usage == Usage(1, output_text=2)
    assert usage != Usage(1)
    assert len({usage, Usage(1, output_text=2), Usage(1)}) == 2
    assert replace(usage, output_text=0) == Usage(1)


def test_a_value_is_written_with_its_fields_in_order_and_nothing_else() -> None:
    """orjson writes a value from its dict, which must hold its fields in their order, made or copied, and no more."""
    made = Attempt("m", "small", 1.0, 2.0, VerdictKind.ACCEPT, None, "p", prompt=PromptFacts("d", 3))
    for attempt in (made, replace(made, model="n")):
        assert list(orjson.loads(orjson.dumps(attempt))) == list(Attempt.__dataclass_fields__)  # type: ignore[attr-defined]  # mypy knows the frozen view only
