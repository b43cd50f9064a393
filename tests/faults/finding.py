"""What a row has found: the checker's report, what the row asked beyond the laws, and the line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.laws import Report

_HEADS = (
    "row",
    "fault",
    "seed",
    "acked",
    "lost",
    "duplicates",
    "kills",
    "worst recovery",
    "calls a job",
    "seconds",
    "",
)
_ALIGN = "<<>>>>>>>><"


@dataclass(slots=True)
class Finding:
    """`lost` counts job ids; `asked` are the row's own assertions, broken ones with what is wrong; `baseline` marks
    a run of somebody else's code, whose losses are what it is there to show."""

    row: str
    fault: str
    report: Report
    lost: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    asked: dict[str, str | None] = field(default_factory=dict)
    baseline: bool = False

    @property
    def holds(self) -> bool:
        laws = True if self.baseline else self.report.holds
        return laws and not any(self.asked.values())

    def breaches(self) -> list[str]:
        laws = [] if self.baseline else list(self.report.breaches.items())
        found = [f"{law}: {breach}" for law, breaches in laws for breach in breaches]
        return found + [f"{what}: {wrong}" for what, wrong in self.asked.items() if wrong]

    def line(self) -> tuple[str, ...]:
        report = self.report
        differ = f" ({report.duplicates.differing} differ)" if report.duplicates.differing else ""
        worst = "" if report.worst_recovery is None else f"{report.worst_recovery:.1f} s"
        calls = f"{report.calls / max(1, report.jobs):.3f}" if report.calls else ""
        verdict = ("baseline" if self.baseline else "holds") if self.holds else "BROKEN"
        counts = (str(report.jobs), str(self.lost), f"{report.duplicates.raw}{differ}", str(report.disturbance.kills))
        return (self.row, self.fault, str(report.seed), *counts, worst, calls, f"{self.seconds:.0f}", verdict)

    def tree(self) -> dict[str, Any]:
        """For --json."""
        report = self.report
        return {
            "row": self.row,
            "fault": self.fault,
            "seed": report.seed,
            "jobs_acked": report.jobs,
            "lost": self.lost,
            "outcomes": report.outcomes,
            "duplicate_outcomes": report.duplicates.raw,
            "duplicates_that_differ": report.duplicates.differing,
            "duplicates_allowed": report.disturbance.redo,
            "kills": report.disturbance.kills,
            "revokes": report.disturbance.revokes,
            "worst_recovery_seconds": report.worst_recovery,
            "calls": report.calls,
            "calls_a_job": round(report.calls / max(1, report.jobs), 4),
            "seconds": round(self.seconds, 1),
            "baseline": self.baseline,
            "laws": dict(report.breaches),
            "asked": dict(self.asked),
            "notes": list(self.notes),
            "holds": self.holds,
        }


def table(findings: Sequence[Finding]) -> str:
    """The table that the fault matrix asks for, with the notes and breaches of each row below it."""
    rows = [_HEADS, *(finding.line() for finding in findings)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    lines = [
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, _ALIGN, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    for finding in findings:
        lines += [f"{finding.row}: {note}" for note in finding.notes]
        lines += [f"{finding.row}: BROKEN {breach}" for breach in finding.breaches()]
    return "\n".join(lines)
