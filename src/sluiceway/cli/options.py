"""Options that several verbs share, and what they come to."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sluiceway.core.errors import InputError

if TYPE_CHECKING:
    from sluiceway.kafka.security import Connection

EMBEDDED = "embedded"

Bootstrap = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--bootstrap-server",
        metavar="HOST:PORT",
        help="The Kafka cluster (several with commas), or 'embedded'. Else SLUICEWAY_BOOTSTRAP_SERVERS.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("-X", metavar="KEY=VALUE", help="A client setting by librdkafka's name; repeatable."),
]
CommandConfig = Annotated[
    Path | None, typer.Option("-F", "--command-config", metavar="FILE", help="A properties file of client settings.")
]
PolicyFile = Annotated[Path, typer.Option("--policy", metavar="FILE", help="The policy.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: JSON on stdout.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Take at most N jobs.")]
TraceSample = Annotated[
    float | None,
    typer.Option(
        "--trace-sample",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        envvar="SLUICEWAY_TRACE_SAMPLE",
        help="Send OpenTelemetry traces, this share of them, to OTEL_EXPORTER_OTLP_ENDPOINT. Off unless given.",
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0.0, metavar="USD", help="Take no more jobs once this much is spent."),
]
IdField = Annotated[
    str | None, typer.Option("--id-field", metavar="NAME", help="Column or field that holds a job's id (else 'id').")
]
TextField = Annotated[
    str | None,
    typer.Option("--text-field", metavar="NAME", help="Column or field that holds the text (else text, input, body)."),
]


def connection(bootstrap: str | None, settings: list[str] | None, file: Path | None) -> Connection:
    """The cluster to speak to. Raises InputError; `embedded` is one here, since such a broker ends with its command."""
    import logging

    from sluiceway.kafka.security import read_connection

    # What aiokafka has to say is told by our own messages, or is no news (that a broker has no idempotent producer).
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    found = read_connection(bootstrap, settings or (), file, os.environ)
    if found.bootstrap == EMBEDDED:
        raise InputError(
            "connection",
            "an embedded broker lives inside `demo` or `work` and ends with it."
            " Mend: run one of those with -b embedded, and use the HOST:PORT it shows",
        )
    return found


def picousd(usd: float | None) -> int | None:
    """Pico-dollars of an amount that a user wrote in dollars."""
    from sluiceway.core import ledger

    return None if usd is None else ledger.from_usd(Decimal(str(usd)))
