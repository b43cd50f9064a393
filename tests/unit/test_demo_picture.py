"""What the demo draws: it fits a small terminal, shows what is there, and falls back to plain ASCII."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sluiceway.demo import picture, plot, report
from sluiceway.demo.plot import Mark, Span
from sluiceway.demo.rows import Row

UNIT = Span(0.0, 1.0)


def drawn(thing: object, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=file, width=width, legacy_windows=False).print(thing)
    return raw.getvalue().decode(encoding)


def row(number: int, *, escalated: bool) -> Row:
    return Row(
        id=str(number), kind="answered", model="big" if escalated else "small", tier="t", answer="x" * 60,
        escalated="uncertain" if escalated else None, cost=11 * 10**8 if escalated else 10**8, cheap="a",
        cheap_cost=10**8, score=number / 100, reference="a", reference_cost=10**9, gold="a", seconds=0.02,
        spent={"small": 10**8} | ({"big": 10**9} if escalated else {}),
    )  # fmt: skip


ROWS = [row(number, escalated=number < 30) for number in range(100)]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Neither the live view nor the last page wraps a plot, whatever the labels' length."""
    live = picture.Live(100, ("small", "big"))
    for one in ROWS:
        live.add(one, "a question\nover two lines with a rather long ending " * 3)
    page = picture.final(report.figures(ROWS, seconds=1.0), ("small", "big"), notes=["word " * 60], names={})
    for text in (drawn(live, width), drawn(page, width)):
        assert max(len(line) for line in text.splitlines()) <= width


def test_the_live_view_fits_a_small_terminal() -> None:
    """24 rows hold it, with every kind of outcome in it."""
    live = picture.Live(100, ("small", "big"))
    for one in ROWS:
        live.add(one, "a question")
    for kind in ("review", "refused", "dead_letter"):
        live.add(Row(kind, kind), "a question")
    assert len(drawn(live).splitlines()) < 24


def test_the_live_view_counts_each_outcome_once() -> None:
    """Bars, costs and escalations are those of the rows it was given."""
    live = picture.Live(100, ("small", "big"))
    for one in ROWS:
        live.add(one, "a question")
    text = drawn(live)
    assert "outcomes 100" in text
    assert "escalated 30" in text
    assert "$0.0100" in text  # 100 cheap calls
    assert "$0.0300" in text  # 30 of the reference


def test_the_last_page_shows_the_figures() -> None:
    """Jobs, both tiers, reasons, cost beside the all-frontier cost, saving, quality, times."""
    figures = report.figures(ROWS, seconds=2.0)
    page = drawn(picture.final(figures, ("small", "big"), notes=["honest"], names={"big": "anthropic/big"}))
    for part in ("100", "70.0%", "30 uncertain", "$0.0400", "$0.1000", "60.0%", "anthropic/big", "20 ms", "honest"):
        assert part in page


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """No character that it could not show, in the live view or on the page."""
    live = picture.Live(100, ("small", "big"))
    live.add(ROWS[0], "a question")
    page = picture.final(report.figures(ROWS), ("small", "big"), notes=["note"], names={})
    for thing in (live, page):
        assert drawn(thing, encoding="ascii").isascii()


def test_a_plot_has_its_line_and_marks_where_the_values_are() -> None:
    """A rising line begins below on the left and ends above on the right; a mark replaces the line's cell."""
    lines = plot.draw(
        [(0.0, 0.0), (1.0, 1.0)], [Mark(0.5, 0.0, "@")], x=UNIT, y=UNIT, width=47, height=8, ascii_only=True
    )
    assert len(lines) == 10
    assert lines[0].rstrip().endswith(".")
    assert lines[7].partition("|")[2].startswith(".")
    assert lines[7].partition("|")[2].index("@") == 20
    assert "50%" in lines[9]


def test_values_outside_the_axes_are_held_at_the_edge() -> None:
    """Nothing is drawn out of the frame and nothing fails."""
    lines = plot.draw([(-1.0, 5.0), (2.0, -5.0)], [Mark(9.0, 9.0, "@")], x=UNIT, y=UNIT, width=40, height=5)
    assert max(len(line) for line in lines) <= 40
    assert lines[0].endswith("@")
