"""`sluiceway demo`: the whole flow on this machine, with recorded answers and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sluiceway.cli.options import EMBEDDED, AsJson, Bootstrap, CommandConfig, Settings, connection

EXAMPLE = "Example: sluiceway demo --jobs 200"


def demo(
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many tickets (else all of them).")] = None,
    bootstrap: Bootstrap = EMBEDDED,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own policy, with your own models.")] = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    as_json: AsJson = False,
) -> None:
    """Watch 500 real tickets flow through Kafka: most are answered by a cheap model, the doubtful ones escalated."""
    from sluiceway.demo.run import demo as run

    # Only -b leads to a real cluster: a variable that is set for workers must not make the demo publish there.
    own = None if bootstrap in (None, EMBEDDED) else connection(bootstrap, settings, command_config)
    raise typer.Exit(run(jobs, own, policy, as_json=as_json))
