"""`sluiceway resume`: partitions that are held for their dead letters, and letting them go on."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from sluiceway.cli.options import AsJson, Bootstrap, CommandConfig, Settings, connection
from sluiceway.core.errors import InputError

if TYPE_CHECKING:
    from sluiceway.core.control import Hold
    from sluiceway.core.held import Partition
    from sluiceway.kafka.security import Connection

    Held = tuple[str, Partition, Hold]

EXAMPLE = "Example: sluiceway resume --topic sluiceway.jobs --partition 3 -b localhost:9092"


def resume(
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Resume what this consumer group holds.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="NAME", help="Resume partitions of this topic.")
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, metavar="N", help="Resume this partition (with --topic).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Resume all that is held.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the partitions that are held and why; resume those that are named, once what flooded them is mended.

    A resumed partition is read on from where it was held; another flood holds it again.
    """
    if partition is not None and topic is None:
        raise InputError("resume", "--partition needs a topic. Mend: add --topic NAME")
    chosen = not (group is None and topic is None and partition is None)
    named = everything or chosen
    if everything and chosen:
        raise InputError("resume", "--all names everything already. Mend: leave the other options out")

    def wanted(one: Held) -> bool:
        return (
            named
            and group in (None, one[0])
            and topic in (None, one[1].topic)
            and partition in (None, one[1].partition)
        )

    held, resumed = asyncio.run(_resume(connection(bootstrap, settings, command_config), wanted))
    asked = [one for one in held if wanted(one)]
    if as_json:
        tree = {"held": [_tree(one) for one in held if one not in resumed], "resumed": [_tree(one) for one in resumed]}
        typer.echo(orjson.dumps(tree).decode())
    else:
        for one in held:
            state = "resumed" if one in resumed else "NOT resumed (no ack)" if one in asked else "held"
            typer.echo(f"{_line(one)}: {state}")
        if not held:
            typer.echo("Nothing is held.")
        elif not named:
            typer.echo(
                "Look at the dead letters first. Then: sluiceway resume --all, or --group, --topic, --partition."
            )
        elif not asked:
            typer.echo("What was named is not held.")
    if named and (not asked or len(resumed) < len(asked)):
        raise typer.Exit(1)


async def _resume(cluster: Connection, wanted: Any) -> tuple[list[Held], list[Held]]:
    """All that is held, and which of it was resumed."""
    from sluiceway.core.control import Resume, groups, held, resume_key
    from sluiceway.kafka.control import Control

    control = Control(cluster)
    await control.start()
    try:
        records = control.records
        found = [(group, *one) for group in groups(records) for one in sorted(held(records, group).items())]
        resumed = [
            one for one in found if wanted(one) and await control.put(resume_key(one[0], one[1]), Resume(one[2].at))
        ]
    finally:
        await control.stop(5.0)
    return found, resumed


def _line(one: Held) -> str:
    group, (topic, partition), hold = one
    since = datetime.fromtimestamp(hold.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{group} {topic}[{partition}]: {hold.reason} since {since} ({hold.detail}; by {hold.instance})"


def _tree(one: Held) -> dict[str, Any]:
    group, (topic, partition), hold = one
    facts = {key: value for key, value in dataclasses.asdict(hold).items() if key not in ("kind", "schema")}
    return {"group": group, "topic": topic, "partition": partition, **facts}
