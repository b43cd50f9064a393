"""A line in a terminal: points in data units to rows of text, drawn in braille dots or, where those can't be shown, in
plain ASCII. Knows nothing of colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_BRAILLE = 0x2800
# Which bit of a braille character is the dot at (column, row): Unicode's own numbering.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_GUTTER = 7  # columns left of the plot: a label and the axis


@dataclass(frozen=True, slots=True)
class Mark:
    """One character at a place of interest."""

    x: float
    y: float
    sign: str


@dataclass(frozen=True, slots=True)
class Span:
    """What an axis shows, from its left or lower end to the other."""

    low: float
    high: float

    def place(self, value: float, cells: int) -> int:
        """The cell of `value` among `cells`, held within them."""
        part = (value - self.low) / (self.high - self.low)
        return min(cells - 1, max(0, int(part * cells)))


def draw(
    points: Sequence[tuple[float, float]],
    marks: Sequence[Mark],
    *,
    x: Span,
    y: Span,
    width: int,
    height: int,
    ascii_only: bool = False,
) -> list[str]:
    """`height` rows of plot, the axis below it and its labels (shares as per cent), each at most `width` columns."""
    columns = width - _GUTTER
    cells = _ascii(points, x, y, columns, height) if ascii_only else _braille(points, x, y, columns, height)
    for mark in marks:
        row = height - 1 - y.place(mark.y, height)
        cells[row][x.place(mark.x, columns)] = mark.sign
    bar, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    lines = []
    for number, row_cells in enumerate(cells):
        label = ""
        if number in (0, height // 2, height - 1):
            label = f"{y.low + (y.high - y.low) * (height - 1 - number + 0.5) / height:.3f}".lstrip("0")
        lines.append(f"{label:>{_GUTTER - 2}} {bar}{''.join(row_cells)}".rstrip())
    lines.append(" " * (_GUTTER - 1) + corner + dash * columns)
    lines.append(_scale(x, columns))
    return lines


def _scale(x: Span, columns: int) -> str:
    cells = [" "] * (columns + _GUTTER)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        if x.low <= part <= x.high:
            text = f"{part:.0%}"
            at = min(columns - len(text), max(0, x.place(part, columns) - len(text) // 2))
            cells[_GUTTER + at : _GUTTER + at + len(text)] = text
    return "".join(cells).rstrip()


def _braille(points: Sequence[tuple[float, float]], x: Span, y: Span, columns: int, height: int) -> list[list[str]]:
    bits = [[0] * columns for _ in range(height)]
    for across, up in _dots(points, x, y, columns * 2, height * 4):
        down = height * 4 - 1 - up
        bits[down // 4][across // 2] |= _DOTS[across % 2][down % 4]
    return [[chr(_BRAILLE + cell) if cell else " " for cell in row] for row in bits]


def _ascii(points: Sequence[tuple[float, float]], x: Span, y: Span, columns: int, height: int) -> list[list[str]]:
    cells = [[" "] * columns for _ in range(height)]
    for across, up in _dots(points, x, y, columns, height):
        cells[height - 1 - up][across] = "."
    return cells


def _dots(points: Sequence[tuple[float, float]], x: Span, y: Span, columns: int, height: int) -> set[tuple[int, int]]:
    """The dots of the line through the points."""
    dots = set()
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(1, abs(x.place(x1, columns) - x.place(x0, columns)), abs(y.place(y1, height) - y.place(y0, height)))
        for step in range(steps + 1):
            part = step / steps
            dots.add((x.place(x0 + (x1 - x0) * part, columns), y.place(y0 + (y1 - y0) * part, height)))
    return dots
