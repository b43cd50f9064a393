"""`sluiceway publish`: a file of jobs to the jobs topic."""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
import typer

from sluiceway.cli.options import (
    AsJson,
    Bootstrap,
    CommandConfig,
    IdField,
    Limit,
    Settings,
    TextField,
    TraceSample,
    connection,
)

EXAMPLE = "Example: sluiceway publish tickets.csv --task ticket-triage --text-field body -b localhost:9092"


def publish(
    file: Annotated[str, typer.Argument(help="JSONL, CSV or an OpenAI batch file; plain, gz or zst; - is stdin.")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task of rows that name none.")],
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    id_field: IdField = None,
    text_field: TextField = None,
    topic: Annotated[str, typer.Option(metavar="NAME", help="The topic to write to.")] = "sluiceway.jobs",
    limit: Limit = None,
    as_json: AsJson = False,
    trace_sample: TraceSample = None,
) -> None:
    """Publish a file of jobs; counts what the broker acked, and exits 1 if that is not every row."""
    from sluiceway.archive.backlog import Backlog
    from sluiceway.cli.progress import Progress
    from sluiceway.publishing import Published
    from sluiceway.publishing import publish as run

    cluster = connection(bootstrap, settings, command_config)
    backlog, published = Backlog(file, task, id_field, text_field), Published()
    try:
        with Progress(backlog.count(), limit, "acked") as progress:
            rows = backlog.rows()
            sent = run(cluster, topic, rows, published, limit=limit, watcher=progress.acked, trace_sample=trace_sample)
            asyncio.run(sent)
    finally:
        for fault in published.faults:
            typer.echo(fault, err=True)
        if published.failure:
            typer.echo(f"sluiceway: {published.failure}", err=True)
        counts = {"acked": published.acked, "unacked": published.sent - published.acked, "refused": published.refused}
        said = f"{counts['acked']} acked by {topic}, {counts['unacked']} not acked, {counts['refused']} rows refused"
        typer.echo(orjson.dumps({"topic": topic, **counts}).decode() if as_json else said)
    if not published.whole:
        raise typer.Exit(1)
