"""`sluiceway replay`: a backlog through the same runner, without Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from sluiceway.cli.options import AsJson, IdField, Limit, MaxCost, PolicyFile, TextField, picousd

EXAMPLE = "Example: sluiceway replay tickets.csv --policy policy.yaml --out run1 --text-field body --gold label"

_INTERRUPTED = 130


def replay(
    file: Annotated[str, typer.Argument(help="JSONL, CSV or an OpenAI batch file; plain, gz or zst; - is stdin.")],
    policy: PolicyFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where outcomes go; run again to go on.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="The task of rows that name none (else the only one).")
    ] = None,
    id_field: IdField = None,
    text_field: TextField = None,
    gold: Annotated[
        str | None, typer.Option("--gold", metavar="COLUMN", help="The right answers: accuracy at ten thresholds.")
    ] = None,
    limit: Limit = None,
    max_cost: MaxCost = None,
    in_flight: Annotated[int, typer.Option(min=1, max=5000, help="How many jobs run at once.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Answer a file of jobs as Kafka's workers would. A run that was stopped or killed goes on where it was."""
    from sluiceway.archive.backlog import Backlog
    from sluiceway.cli import show
    from sluiceway.cli.progress import Progress
    from sluiceway.policyfile import read_policy
    from sluiceway.replay.run import Bounds, Ended
    from sluiceway.replay.session import ReplayOptions, only_task
    from sluiceway.replay.session import replay as run

    found = read_policy(policy)
    backlog = Backlog(file, task or only_task(found), id_field, text_field)
    options = ReplayOptions(backlog, found, out, gold, Bounds(in_flight, limit, picousd(max_cost)))
    with Progress(backlog.count(), limit) as progress:
        done = run(options, progress)
    if as_json:
        tree = {**done.summary.as_json(), "ended": done.ended, "policy": found.digest, "out": str(out)}
        typer.echo(orjson.dumps({**tree, "gold": [one.as_json() for one in done.held or ()]}).decode())
    else:
        show.replayed(done.summary, done.held)
    if done.ended is not Ended.FINISHED:
        typer.echo(f"Stopped ({done.ended}). Run the same command again to go on.", err=True)
    if done.ended is Ended.INTERRUPTED:
        raise typer.Exit(_INTERRUPTED)
