"""Trees and numbers as tables for people. What others wrote is printed as text, never as markup or terminal codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluiceway.core import ledger
from sluiceway.core.outcome import BAR_NOT_PROVED
from sluiceway.replay.gold import Held, Point
from sluiceway.replay.report import NOTE_REFERENCE, Summary


def console(*, stderr: bool = False) -> Console:
    """A console that is as wide as its terminal, and never folds where there is none."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = 200
    return made


def plain(value: object) -> str:
    """`value` on one line, without control characters: a terminal obeys them, whoever wrote them."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def usd(pico: int) -> str:
    """Dollars with as many decimals as tell something."""
    amount = ledger.usd(pico)
    return f"${amount:,.2f}" if abs(amount) >= 100 else f"${amount:.4f}" if abs(amount) >= 0.01 else f"${amount:.8f}"


def share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def policy(tree: Mapping[str, Any]) -> None:
    """What `check` shows."""
    out = console()
    out.print(f"[bold]{plain(tree['policy'])}[/]  digest {tree['digest']}")
    out.print(_models(tree["models"]))
    for task in tree["tasks"]:
        _task(out, task)
    out.print(Text(f"Reads {', '.join(tree['topics']['read'])}; writes {', '.join(tree['topics']['written'])}"))
    for warning in tree["warnings"]:
        out.print(Text(f"Warning: {warning}", style="yellow"))
    if "live" in tree:
        out.print(_live(tree["live"]))
        for reason in tree["refused"]:
            out.print(Text(f"Refused: {reason}", style="red"))


def _models(models: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Models (prices in USD a million tokens)")
    for name in ("model", "tier", "served by", "in", "cached", "out", "price from", "clearance", "json", "key"):
        table.add_column(name, overflow="fold")
    for model in models:
        price = model["price"]
        served = "/".join(part for part in (model["provider"], model["model"]) if part) or model["api"]
        where = ", ".join(model["endpoints"]) or model["file"] or ""
        cells = [model["name"], model["tier"], f"{served} {where}".strip()]
        cells += [f"{price[name]:g}" if name in price else "-" for name in ("input_mtok", "cache_read_mtok")]
        cells += [f"{price['output_mtok']:g}", model["price_origin"], model["clearance"], model["json_mode"]]
        table.add_row(*(Text(plain(cell)) for cell in (*cells, model["key"] or "none needed")))
    return table


def _task(out: Console, task: Mapping[str, Any]) -> None:
    table = _table(f"Task {plain(task['name'])} ({task['kind']})")
    for name in ("rung", "tier", "gate"):
        table.add_column(name, overflow="fold")
    for rung in task["ladder"]:
        table.add_row(*(Text(plain(cell)) for cell in (rung["model"], rung["tier"], _gate(rung["gate"]))))
    out.print(table)
    for name, said in _facts(task):
        out.print(Text.assemble((f"  {name}: ", "dim"), plain(said)))


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "reference: its answers stand"
    if gate["score"] == "none":
        return "none: every schema-valid answer stands"
    by = f" by {gate['model']}" if gate.get("model") else f" of {gate['votes']}" if gate["score"] == "votes" else ""
    return f"{gate['score']}{by} >= {gate['threshold']:g}, else escalate; without a score {gate['on_error']}"


def _facts(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    bar, budget, review = task["bar"], task["budget"], task["review"]
    said = (
        "none declared"
        if bar is None
        else f"agreement {bar['agreement']}, confidence {bar['confidence']}: {BAR_NOT_PROVED}"
    )
    money = [f"${budget[name]:g} a {name[8:]}" for name in ("usd_per_job", "usd_per_day") if budget[name]]
    facts = [
        ("bar", said),
        ("same answer", f"equal {', '.join(task['agree_on'])}"),
        (
            "clearance",
            f"{task['clearance']} (stakes {task['stakes']}, priority {task['priority']}, risk {task['risk']})",
        ),
        ("deadline", f"{task['deadline']:g} s; on failure {task['on_failure']}, at most {task['failed_share']:.0%}"),
        ("budget", f"{', '.join(money)} ({budget['timezone']}), then {budget['on_exceeded']}" if money else "none"),
    ]
    facts += [("start", f"when {rule['when']} at {rule['at']}") for rule in task["start"]]
    facts += [("refuse", f"when {rule['when']}") for rule in task["refuse"]]
    facts += [("review", f"always when {rule}") for rule in review["always"]]
    if review["sample"]:
        facts.append(("review", f"a sample of {review['sample']:.2%}"))
    if task["packing"]:
        packing = task["packing"]
        facts.append(("packing", f"experimental: up to {packing['jobs']} jobs a call, after {packing['wait']:g} s"))
    if task["source"]:
        facts.append(("source", f"{task['source']['topic']} {task['source']['input']}"))
    return facts


def _live(reports: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Live: one call each")
    for name in ("model", "endpoint", "key", "JSON", "logprobs", "limits", "tokens", "seconds", "result"):
        table.add_column(name, overflow="fold")
    for report in reports:
        limits = {name: value for name, value in (report["rate_limits"] or {}).items() if value is not None}
        table.add_row(
            report["model"], report["endpoint"], *(_yes(report[name]) for name in ("key", "json_mode", "logprobs")),
            Text(plain(", ".join(f"{name} {value}" for name, value in limits.items()) or "not told")),
            f"{report['input_tokens']}+{report['output_tokens']}", f"{report['seconds']:.2f}",
            "ok" if report["ok"] else report["failure"] or "no JSON",
        )  # fmt: skip
    return table


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def replayed(summary: Summary, held: Sequence[Held] | None) -> None:
    """What `replay` shows when it ends."""
    out = console()
    table = _table(None)
    table.add_column("outcome")
    table.add_column("jobs", justify="right")
    table.add_column("share", justify="right")
    counts = [(f"answered by {tier} ({model})", count) for (tier, model), count in sorted(summary.answered.items())]
    for word in ("refused", "reviews", "dead_letters"):
        counts += [(f"{word.replace('_', ' ')}: {reason}", n) for reason, n in sorted(getattr(summary, word).items())]
    for name, count in counts:
        table.add_row(Text(plain(name)), str(count), share(count / summary.jobs))
    out.print(table)
    escalated = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.escalated.items()))
    out.print(f"{summary.jobs} jobs; escalated: {escalated or 'none'}")
    out.print(f"Cost {usd(summary.cost)}; the answered jobs' {usd(summary.answered_cost)} beside all-reference "
              f"{usd(summary.reference_cost)}: saving {share(summary.saving)}")  # fmt: skip
    out.print(Text(f"({NOTE_REFERENCE})", style="dim"))
    given = f"; {summary.kept} calls not made: a kept answer was given again" if summary.kept else ""
    out.print(f"Read from prompt caches: {share(summary.prompt_cache_hit)} of the input tokens{given}")
    for one in held or ():
        _held(out, one)


def _held(out: Console, held: Held) -> None:
    out.print(f"Task {plain(held.task)}: {held.right} of {held.gold} right against gold "
              f"({share(held.right / held.gold) if held.gold else 'no gold'}); answered {held.answered}")  # fmt: skip
    if held.points:
        table = _table(f"{plain(held.first)}'s gate, the rest to {plain(held.reference)} (* the policy's threshold)")
        for name in ("threshold", "accuracy", "unknown", "escalated", "cost", "of all-reference"):
            table.add_column(name, justify="right")
        for point in held.points:
            _point(table, f"{'* ' if point.policy else ''}{point.threshold:g}", point)
        if held.reference_alone is not None:
            _point(table, f"{plain(held.reference)} alone", held.reference_alone)
        out.print(table)
    if held.evaluated:
        out.print(Text(f"({held.evaluated} recorded references were read for this table alone, outside the ledger)"))
    if held.left_out:
        out.print(Text(f"({held.left_out} jobs with gold had no attempt to judge)"))


def _point(table: Table, name: str, point: Point) -> None:
    table.add_row(name, share(point.accuracy), share(point.unknown), share(point.escalated), usd(point.cost_picousd),
                  share(point.cost_share))  # fmt: skip


def _table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
