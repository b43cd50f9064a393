"""`sluiceway work`: the worker."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sluiceway.cli.options import Bootstrap, CommandConfig, Limit, MaxCost, PolicyFile, Settings, TraceSample, picousd

EXAMPLE = "Example: sluiceway work --policy policy.yaml -b localhost:9092 --from latest"


class RoleName(StrEnum):
    JOBS = "jobs"
    ESCALATIONS = "escalations"
    ALL = "all"


def work(
    policy: PolicyFile,
    bootstrap: Bootstrap = None,
    settings: Settings = None,
    command_config: CommandConfig = None,
    role: Annotated[
        RoleName, typer.Option(help="jobs: all models but the reference; escalations: the reference.")
    ] = RoleName.ALL,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="earliest|latest|TIME", help="Where a group without offsets begins."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Read the same jobs under own groups and write to sluiceway.shadow.* only.")
    ] = False,
    in_flight: Annotated[
        int | None,
        typer.Option(
            "--in-flight",
            min=1,
            max=20_000,
            metavar="N",
            help="Jobs that each role runs at once, nearly all of them waiting for a model. Else 500.",
        ),
    ] = None,
    limit: Limit = None,
    max_cost: MaxCost = None,
    instance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A static group member's name, such as a StatefulSet's pod name."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of /metrics, /livez and /readyz; 0 takes a free one. Else 9464 if it is free."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="SLUICEWAY_STATE_DIR",
            help="Where this worker remembers its calls, so that a restart pays for no reply twice."
            " Else sluiceway/ in XDG_STATE_HOME or ~/.local/state.",
        ),
    ] = None,
    trace_sample: TraceSample = None,
) -> None:
    """Answer jobs from Kafka until told to stop. The first SIGTERM or Ctrl-C drains, the second leaves at once."""
    from sluiceway.cli.embedded import reached
    from sluiceway.core.cascade import Role
    from sluiceway.core.held import Limits
    from sluiceway.kafka.start import parse_start
    from sluiceway.worker import WorkOptions, run

    with reached(bootstrap, settings, command_config, policy, shadow=shadow) as connection:
        options = WorkOptions(
            policy=policy,
            connection=connection,
            roles=tuple(Role) if role is RoleName.ALL else (Role(role.value),),
            start=None if start is None else parse_start(start),
            shadow=shadow,
            limit=limit,
            max_cost=picousd(max_cost),
            instance=instance,
            metrics_port=metrics_port,
            trace_sample=trace_sample,
            limits=Limits() if in_flight is None else Limits(jobs=in_flight, queue=max(Limits().queue, 2 * in_flight)),
            state=(state or _state_home()) / ("shadow" if shadow else "work"),
        )
        code = run(options)
    raise typer.Exit(code)


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sluiceway"
