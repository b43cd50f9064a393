"""`-b embedded`: a broker that is started for one command and ends with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from sluiceway.cli.options import EMBEDDED
from sluiceway.kafka import topics
from sluiceway.kafka.embedded import SETTINGS, EmbeddedBroker
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.policyfile import read_policy
from sluiceway.topicmap import topic_map


@contextmanager
def reached(
    bootstrap: str | None, settings: list[str] | None, file: Path | None, policy: Path, *, shadow: bool
) -> Iterator[Connection]:
    """The cluster that the options name; where that is `embedded`, one started here with the policy's topics in it."""
    asked = read_connection(bootstrap, settings or (), file, os.environ)
    if asked.bootstrap != EMBEDDED:
        yield asked
        return
    broker = EmbeddedBroker()
    asyncio.run(broker.start())
    try:
        given = Connection({**SETTINGS, **asked.settings}).replaced(bootstrap_servers=broker.bootstrap)
        overrides = topic_map(read_policy(policy), shadow=shadow).overrides()
        asyncio.run(topics.apply(given, topics.declared(overrides=overrides, replicas=1)))
        typer.echo(f"Embedded broker at {broker.bootstrap}: in memory, ends with this command.", err=True)
        yield given
    finally:
        asyncio.run(broker.stop())
