"""`sluiceway redrive`: dead letters back to the topics they came from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from sluiceway.cli.options import AsJson, Bootstrap, CommandConfig, Settings, connection
from sluiceway.core.errors import InputError

if TYPE_CHECKING:
    from sluiceway.core.redrive import Filter
    from sluiceway.redrive import Summary

EXAMPLE = "Example: sluiceway redrive --reason unknown_task --dry-run -b localhost:9092"


def redrive(
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", metavar="REASON", help="Only what died for this; repeatable.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="Only jobs of this task; repeatable.")
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", metavar="NAME", help="Only what came from this topic; repeatable.")
    ] = None,
    job_id: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only the job of this id; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only what died at or after this (ISO 8601; UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only what died before this (ISO 8601; UTC).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Send back at most N.")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, metavar="N", help="Send back at most N a second.")
    ] = None,
    max_rounds: Annotated[
        int, typer.Option("--max-rounds", min=1, metavar="N", help="Leave what has gone back N times.")
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count: nothing is written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to the topics they came from, once what killed them is mended; each opens a new round."""
    from sluiceway.cli.progress import Progress
    from sluiceway.redrive import RedriveOptions, Summary, run

    wanted = _filter(reason, task, topic, job_id, since, until)
    cluster = connection(bootstrap, settings, command_config)
    options = RedriveOptions(cluster, wanted, limit, rate, max_rounds, dry_run)
    summary = Summary()
    with Progress(None, limit, "redriven") as progress:

        def watch(done: int, total: int) -> None:
            progress.of(total)
            progress.acked(done)

        run(options, summary, watch)
    if as_json:
        typer.echo(orjson.dumps(_tree(summary, dry_run)).decode())
    else:
        _show(summary, dry_run)
    for fault in summary.too_large[:5]:
        typer.echo(fault, err=True)
    if summary.failure is not None:
        typer.echo(f"sluiceway: {summary.failure}", err=True)
    if summary.interrupted:
        typer.echo("sluiceway: interrupted; run it again to go on", err=True)
        raise typer.Exit(130)
    if not summary.whole:
        raise typer.Exit(1)


def _filter(
    reasons: list[str] | None,
    tasks: list[str] | None,
    topics: list[str] | None,
    ids: list[str] | None,
    since: str | None,
    until: str | None,
) -> Filter:
    from sluiceway.core.outcome import DeadLetterReason
    from sluiceway.core.redrive import Filter

    known = [reason.value for reason in DeadLetterReason]
    for reason in reasons or ():
        if reason not in known:
            raise InputError("reason", f"--reason {reason}: nothing dies for that. Mend: one of {', '.join(known)}")
    return Filter(
        reasons=frozenset(reasons or ()),
        tasks=frozenset(tasks or ()),
        topics=frozenset(topics or ()),
        ids=frozenset(ids or ()),
        since=_time("--since", since),
        until=_time("--until", until),
    )


def _time(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError("time", f"{option} {text!r} is no time. Mend: such as 2026-01-31T08:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _tree(summary: Summary, dry_run: bool) -> dict[str, object]:
    from sluiceway.core.redrive import Fate

    names = ("reason", "topic", "round", "count")
    return {
        "dry_run": dry_run,
        **{fate.value: summary.tally.counts[fate] for fate in Fate},
        "too_large": len(summary.too_large),
        "waiting": summary.waiting,
        "unrecorded": summary.unrecorded,
        "interrupted": summary.interrupted,
        "failure": summary.failure,
        "kinds": [{"fate": fate.value, **dict(zip(names, row, strict=True))} for fate, *row in summary.tally.rows()],
    }


def _show(summary: Summary, dry_run: bool) -> None:
    """The counts, and of what went back and what is parked the kinds."""
    from sluiceway.cli.show import plain
    from sluiceway.core.redrive import Fate

    counts = summary.tally.counts
    said = [f"{counts[Fate.REDRIVEN]} {'to redrive' if dry_run else 'redriven'}"]
    said.append(f"{counts[Fate.PARKED]} parked")
    said.append(f"{counts[Fate.BEFORE]} redriven before")
    said.append(f"{counts[Fate.UNMATCHED]} left by the filters")
    if counts[Fate.FOREIGN]:
        said.append(f"{counts[Fate.FOREIGN]} that say not where they came from")
    if summary.waiting:
        said.append(f"{summary.waiting} not reached")
    if summary.too_large:
        said.append(f"{len(summary.too_large)} that do not fit")
    if summary.unrecorded:
        said.append(f"{summary.unrecorded} sent that the next run may send again")
    typer.echo(", ".join(said) + ".")
    rows = summary.tally.rows()
    if rows:
        typer.echo(f"{'':9} {'reason':13} {'died in round':>13} {'count':>9}  from")
    for fate, reason, topic, turn, count in rows:
        word = "parked" if fate is Fate.PARKED else ""
        typer.echo(f"{word:9} {plain(reason):13} {turn:13} {count:9}  {plain(topic)}")
