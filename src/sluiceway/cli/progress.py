"""Progress on stderr: jobs done, money spent, time left. Silent where stderr is no terminal."""

from __future__ import annotations

from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sluiceway.cli.show import console, usd
from sluiceway.core.outcome import Result, Review


class Progress:
    """Implements `replay.run.Watcher` and `publishing.Watcher`; `total` is None where nobody knows it."""

    def __init__(self, total: int | None, limit: int | None = None, word: str = "jobs") -> None:
        if limit is not None:
            total = limit if total is None else min(limit, total)
        out = console(stderr=True)
        said = TextColumn("{task.fields[said]}")
        columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), said, TimeRemainingColumn())
        self._bars = Bars(*columns, console=out, disable=not out.is_terminal, transient=True)
        self._bar = self._bars.add_task(word, total=total, said="")
        self._escalated = 0

    def done(self, made: Result | Review | None, spent: int) -> None:
        """A job was done with."""
        self._escalated += made is not None and made.escalated is not None
        self._bars.update(self._bar, advance=1, said=f"{usd(spent)} spent, {self._escalated} escalated")

    def acked(self, count: int) -> None:
        """`count` records were acked by the broker in all."""
        speed = self._bars.tasks[self._bar].speed
        self._bars.update(self._bar, completed=count, said=f"{speed:,.0f}/s" if speed else "")

    def of(self, total: int) -> None:
        """It is known now how many there are in all."""
        self._bars.update(self._bar, total=total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
