"""`sluiceway check`: what a policy will do, before it does it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from sluiceway.cli.options import AsJson
from sluiceway.core.errors import PolicyError

if TYPE_CHECKING:
    from sluiceway.core.policy import Policy

EXAMPLE = "Example: sluiceway check policy.yaml --live"


def check(
    policy: Annotated[Path, typer.Argument(help="The policy.")],
    live: Annotated[bool, typer.Option("--live", help="Make one real, paid call to each model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what will run, at which prices and from where; exit 2 with every fault of a bad policy."""
    from sluiceway.cli import show
    from sluiceway.cli.describe import describe
    from sluiceway.policyfile import read_policy

    try:
        found = read_policy(policy)
    except PolicyError as error:
        if as_json:
            typer.echo(orjson.dumps({"policy": str(policy), "faults": error.faults}).decode())
        raise
    tree = describe(found, str(policy))
    if live:
        tree["live"], tree["refused"] = asyncio.run(_live(found))
    if as_json:
        typer.echo(orjson.dumps(tree).decode())
    else:
        show.policy(tree)
    if tree.get("refused"):
        raise typer.Exit(1)


async def _live(policy: Policy) -> tuple[list[Any], list[str]]:
    """A report of each model's endpoints, and why the policy can't run as it is."""
    from sluiceway.clock import WallClock
    from sluiceway.live import probe

    reports, refused = await probe(policy, WallClock())
    return [orjson.loads(orjson.dumps(report)) for report in reports], refused
