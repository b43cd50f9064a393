"""`sluiceway demo`: the whole flow on this machine, with recorded answers and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sluiceway.cli.options import EMBEDDED, Bootstrap

EXAMPLE = "Example: sluiceway demo --jobs 200"


def demo(
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many tickets (else all of them).")] = None,
    bootstrap: Bootstrap = EMBEDDED,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own policy, with your own models.")] = None,
) -> None:
    """Watch 500 real tickets flow through Kafka: most are answered by a cheap model, the doubtful ones escalated."""
    from sluiceway.demo.run import demo as run

    raise typer.Exit(run(jobs, bootstrap or EMBEDDED, policy))
