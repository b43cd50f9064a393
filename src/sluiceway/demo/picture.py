"""The demo on a terminal: the live view while tickets flow, and the page it ends with. Shows numbers, makes none."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from sluiceway.core import ledger
from sluiceway.demo import plot
from sluiceway.demo.plot import Mark, Span
from sluiceway.demo.report import THIRD, Figures
from sluiceway.demo.rows import Row

_WIDTH = 78
_LAST = 9  # tickets in the stream
_LABEL = 28  # columns
_COLOURS = ("green", "yellow", "magenta", "cyan")


@dataclass
class Live:
    """What the live view shows; a rich renderable, so it is drawn as it is at each refresh."""

    jobs: int
    ladder: tuple[str, ...]
    stage: str = "starting"
    published: int = 0
    escalated: int = 0
    resolved: int = 0  # escalations that came to an outcome
    done: int = 0
    cost: int = 0
    alone: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    spent: Counter[str] = field(default_factory=Counter)
    last: deque[tuple[Row, str]] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, row: Row, text: str) -> None:
        """One more outcome; `text` is the ticket's."""
        self.done += 1
        self.cost += row.cost
        self.spent.update(row.spent)
        self.alone += row.reference_cost or 0
        self.resolved += row.escalated is not None
        self.answered[row.model or row.kind] += 1
        self.last.append((row, text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(_WIDTH, options.max_width)
        full = not options.ascii_only
        yield Text.assemble(("Sluiceway", "bold cyan"), " demo   ", (self.stage, "dim"))
        yield Text()
        for name, style in zip((*self.ladder, *self._others()), _COLOURS * 3, strict=False):
            count = self.answered[name]
            spent = f"${ledger.usd(self.spent[name]):.4f}" if name in self.ladder else ""
            yield _bar(name, count, self.jobs, style, width - 34, full) + Text(f"   {spent}", "dim")
        waiting = max(0, self.escalated - self.resolved)
        yield Text()
        yield Text.assemble(
            f"published {self.published}/{self.jobs}   outcomes ",
            (str(self.done), "bold"),
            f"   escalated {max(self.escalated, self.resolved)}, of them waiting {waiting}",
        )
        saved = f"{1 - self.cost / self.alone:.0%} less" if self.alone else ""
        cost, alone = ledger.usd(self.cost), ledger.usd(self.alone)
        yield Text.assemble("cost ", (f"${cost:.4f}", "bold"), f"   all-frontier ${alone:.4f}   ", (saved, "green"))
        yield Text()
        for row, text in self.last:
            yield self._line(row, text, width, "…" if full else "~")

    def _others(self) -> list[str]:
        return sorted(name for name in self.answered if name not in self.ladder)

    def _line(self, row: Row, text: str, width: int, cut: str) -> Text:
        style = _COLOURS[self.ladder.index(row.model) % len(_COLOURS)] if row.model in self.ladder else "red"
        room = max(10, width - 52)
        flat = " ".join(text.split())
        shown = flat if len(flat) <= room else flat[: room - 1] + cut
        label = (row.answer or row.kind)[:_LABEL]
        return Text.assemble(
            (f"{shown:<{room}}", "dim"), f"  {label:<{_LABEL}}  ",
            (f"{(row.model or 'a person')[:10]:<10}", style), (f" ${ledger.usd(row.cost):.5f}", "dim"),
        )  # fmt: skip


def _bar(name: str, count: int, of: int, style: str, room: int, full: bool) -> Text:
    filled = round(room * count / of) if of else 0
    sign, rest = ("█", "░") if full else ("#", ".")
    return Text.assemble(
        (f"{name[:16]:<16} ", "bold"), (sign * filled, style), (rest * (room - filled), "dim"), f" {count:>6}"
    )


def final(
    figures: Figures,
    ladder: Sequence[str],
    *,
    notes: Sequence[str],
    names: Mapping[str, str],
    times: str = "publish to outcome",
) -> Group:
    """The page that the demo ends with; `names` says which real model is behind a rung, `times` what p50 is of."""
    parts: list[Text | Table | _Curve] = [_table(figures, ladder, names, times)]
    if figures.curve and figures.curve[0].accuracy is not None:
        parts += [Text(), _Curve(figures)]
    parts.append(Text())
    about = Table.grid(padding=(0, 1, 0, 0))
    for note in notes:
        about.add_row(Text("-", "dim"), Text(note, "dim"))
    return Group(*parts, about)


def _table(figures: Figures, ladder: Sequence[str], names: Mapping[str, str], times: str) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    of = figures.jobs or 1
    table.add_row("jobs", str(figures.jobs), "")
    for rung in ladder:
        count, spent = figures.answered.get(rung, 0), ledger.usd(figures.spent.get(rung, 0))
        table.add_row(
            f"answered by {rung}", str(count), f"{count / of:.1%}  ${spent:.4f} {names.get(rung, '')}".rstrip()
        )
    escalated = sum(figures.escalated.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in figures.escalated.items())
    table.add_row("escalated", str(escalated), f"{escalated / of:.1%}  {reasons}".rstrip())
    for name, count, meaning in (
        ("reviews", figures.reviews, f"for a person: {ladder[-1]} gave no answer"),
        ("refused", figures.refused, "by the policy"),
        ("dead letters", figures.dead_letters, "sluiceway tail dead-letters shows why"),
    ):
        if count:
            table.add_row(name, str(count), meaning)
    alone = figures.reference_cost
    beside = f"{ladder[-1]} for every job: ${ledger.usd(alone):.4f}" if alone else ""
    table.add_row("cost", f"${ledger.usd(figures.cost):.4f}", beside)
    if figures.saving is not None:
        table.add_row("saving", Text(f"{figures.saving:.1%}", "bold green"), "beside the all-frontier cost")
    if figures.agreement is not None:
        table.add_row("agreement", f"{figures.agreement:.3f}", f"with the reference, {ladder[-1]}")
    if figures.accuracy is not None:
        both = ((ladder[0], figures.cheap_accuracy), (ladder[-1], figures.reference_accuracy))
        beside = ", ".join(f"{name} alone {value:.3f}" for name, value in both if value is not None)
        table.add_row("accuracy on gold", Text(f"{figures.accuracy:.3f}", "bold"), beside)
    if figures.accuracy_at_third is not None:
        table.add_row("  at 1/3 of cost", f"{figures.accuracy_at_third:.3f}", "at a third of the all-frontier cost")
    if figures.p50 is not None and figures.p99 is not None:
        table.add_row("p50 / p99", f"{_ms(figures.p50)} / {_ms(figures.p99)}", times)
    if figures.jobs_per_second is not None:
        table.add_row("jobs/s", f"{figures.jobs_per_second:.0f}", f"in {figures.seconds:.1f} s")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


class _Curve:
    """Accuracy over cost, with what each model reaches alone, this run, and the run at one third of the cost."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = self._figures
        plain = options.ascii_only
        cheap, run, third, frontier = ("o", "@", "*", "#") if plain else ("○", "●", "◆", "■")
        points = [(point.cost, point.accuracy) for point in figures.curve if point.accuracy is not None]
        marks = [Mark(*points[0], cheap)]
        legend = [(cheap, "green", f" cheap {points[0][1]:.3f}")]
        if figures.reference_accuracy is not None:
            marks.append(Mark(1.0, figures.reference_accuracy, frontier))
        if figures.accuracy_at_third is not None:
            marks.append(Mark(THIRD, figures.accuracy_at_third, third))
            legend.append((third, "cyan", f" at 1/3 {figures.accuracy_at_third:.3f}"))
        if figures.cost_share is not None and figures.accuracy is not None:
            marks.append(Mark(figures.cost_share, figures.accuracy, run))
            legend.append((run, "bold white", f" this run {figures.accuracy:.3f}"))
        if figures.reference_accuracy is not None:
            legend.append((frontier, "yellow", f" frontier {figures.reference_accuracy:.3f}"))
        ys = [y for _, y in points] + [mark.y for mark in marks]
        margin = max(0.005, (max(ys) - min(ys)) * 0.1)
        lines = plot.draw(
            points,
            marks,
            x=Span(0.0, max(1.1, points[-1][0])),
            y=Span(min(ys) - margin, max(ys) + margin),
            width=min(_WIDTH, options.max_width),
            height=8,
            ascii_only=plain,
        )
        yield Text("accuracy over cost as the threshold rises (100% = frontier only)", "bold")
        for line in lines:
            text = Text(line, "blue")
            for sign, style, _ in legend:
                text.highlight_words([sign], style)
            yield text
        yield Text.assemble(*(part for sign, style, name in legend for part in ((sign, style), name, "  ")))
