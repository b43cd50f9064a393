"""`sluiceway tail`: what comes out, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sluiceway.cli.options import AsJson, Bootstrap, CommandConfig, Settings, connection
from sluiceway.core.errors import InputError

if TYPE_CHECKING:
    from sluiceway.kafka.security import Connection
    from sluiceway.kafka.start import Start

EXAMPLE = "Example: sluiceway tail escalations -b localhost:9092 --from earliest --limit 20"


class Kind(StrEnum):
    RESULTS = "results"
    ESCALATIONS = "escalations"
    REVIEWS = "reviews"
    DEAD_LETTERS = "dead-letters"


def tail(
    kind: Annotated[Kind, typer.Argument(metavar="[results|escalations|reviews|dead-letters]")] = Kind.RESULTS,
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Also the results topics of this policy's tasks.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="What `work --shadow` writes.")] = False,
    start: Annotated[
        str, typer.Option("--from", metavar="earliest|latest|TIME", help="Where to begin; takes nothing from a worker.")
    ] = "latest",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N records.")] = None,
    as_json: AsJson = False,
) -> None:
    """Watch results, escalations, reviews or dead letters as they come; with --json one record a line."""
    from sluiceway.kafka.start import parse_start

    cluster = connection(bootstrap, settings, command_config)
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow(cluster, _topics(kind, policy, shadow), parse_start(start), limit, as_json))


def _topics(kind: Kind, policy: Path | None, shadow: bool) -> tuple[str, ...]:
    from sluiceway.policyfile import read_policy
    from sluiceway.topicmap import PREFIX, topic_map

    if policy is None:
        return (f"{PREFIX}{'shadow.' if shadow else ''}{kind.value}",)
    topics = topic_map(read_policy(policy), shadow=shadow)
    if kind is Kind.RESULTS:
        return tuple(dict.fromkeys(topics.results.values()))
    return ({"escalations": topics.escalations, "reviews": topics.reviews}.get(kind.value, topics.dead_letters),)


async def _follow(cluster: Connection, topics: Sequence[str], start: Start, limit: int | None, as_json: bool) -> None:
    from sluiceway.cli import lines, show
    from sluiceway.kafka.topics import sizes
    from sluiceway.kafka.watch import Watch

    missing = [name for name, size in (await sizes(cluster, topics)).items() if size is None]
    if missing:
        raise InputError("topics", f"{cluster.bootstrap} has no {', '.join(missing)}. Mend: sluiceway topics apply")
    out = show.console()
    watch = Watch(cluster, topics)
    left = limit
    try:
        await watch.start(start)
        if not as_json:
            out.print(lines.head())
        while left is None or left > 0:
            for record in (await watch.records(within=1.0))[:left]:
                if as_json:
                    typer.echo(lines.as_json(record))
                else:
                    out.print(lines.line(record), no_wrap=True, overflow="ellipsis", soft_wrap=not out.is_terminal)
                left = None if left is None else left - 1
    finally:
        await watch.stop()
