"""`sluiceway topics`: what the cluster has beside what topics/*.yaml declares."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from sluiceway.cli.options import AsJson, Bootstrap, CommandConfig, Settings, connection

if TYPE_CHECKING:
    from sluiceway.kafka.topics import Difference, Topic

app = typer.Typer(
    help="Create, change and check the topics that Sluiceway needs.",
    epilog="Example: sluiceway topics check -b localhost:9092",
    no_args_is_help=True,
)

OfPolicy = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Also the topics that this policy's tasks name.")
]
Shadow = Annotated[bool, typer.Option("--shadow", help="The topics of `work --shadow` instead (with --policy).")]
Replicas = Annotated[int | None, typer.Option(min=1, help="Copies of each partition, instead of the declared 3.")]
Partitions = Annotated[int | None, typer.Option(min=1, help="At most so many partitions a topic.")]


@app.command(epilog="Example: sluiceway topics apply -b localhost:9092 --replicas 1")
def apply(
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    policy: OfPolicy = None,
    shadow: Shadow = False,
    replicas: Replicas = None,
    partitions: Partitions = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the cluster as declared: create topics, add partitions, set their configs. Never shrinks, never deletes."""
    from sluiceway.kafka import topics

    found = declared(policy, shadow, replicas, partitions)
    changed = asyncio.run(topics.apply(connection(bootstrap, settings, command_config), found, dry_run=dry_run))
    if not as_json:
        for change in changed:
            known = "missing" if change.found is None else f"was {change.found}"
            typer.echo(f"{change.topic}: {change.field} -> {change.declared} ({known})")
        typer.echo(f"{len(found)} topics: {len(changed)} {'to change' if dry_run else 'changed'}.")
    else:
        show(found, changed)


@app.command(epilog="Example: sluiceway topics check -b localhost:9092 --policy policy.yaml")
def check(
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    policy: OfPolicy = None,
    shadow: Shadow = False,
    replicas: Replicas = None,
    partitions: Partitions = None,
    as_json: AsJson = False,
) -> None:
    """Tell how the cluster differs from what is declared; exit 1 when it does."""
    from sluiceway.kafka import topics

    found = declared(policy, shadow, replicas, partitions)
    differences = asyncio.run(topics.check(connection(bootstrap, settings, command_config), found))
    if as_json:
        show(found, differences)
    else:
        for difference in differences:
            typer.echo(str(difference))
        typer.echo(
            f"{len(found)} topics: {'all as declared' if not differences else f'{len(differences)} differences'}."
        )
    if differences:
        raise typer.Exit(1)


def declared(policy: Path | None, shadow: bool, replicas: int | None, partitions: int | None) -> list[Topic]:
    """The declared topics, those of a policy among them."""
    from sluiceway.kafka import topics
    from sluiceway.policyfile import read_policy
    from sluiceway.topicmap import topic_map

    overrides = topic_map(read_policy(policy), shadow=shadow).overrides() if policy else None
    return topics.declared(overrides=overrides, replicas=replicas, partitions=partitions)


def show(topics: list[Topic], differences: list[Difference]) -> None:
    tree = {
        "topics": [topic.name for topic in topics],
        "differences": [dataclasses.asdict(difference) for difference in differences],
    }
    typer.echo(orjson.dumps(tree).decode())
