"""The verbs under one name, and the one place where what went wrong becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sluiceway import __version__
from sluiceway.cli import check, demo, init, publish, redrive, replay, resume, tail, topics, work
from sluiceway.core.errors import InputError, PolicyError

app = typer.Typer(
    name="sluiceway",
    help="Routes high-volume Kafka jobs to the cheapest model that can be trusted with them, and escalates the rest.",
    epilog="Begin with: sluiceway demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sluiceway {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(epilog=demo.EXAMPLE)(demo.demo)
app.command(epilog=init.EXAMPLE)(init.init)
app.command(epilog=check.EXAMPLE)(check.check)
app.add_typer(topics.app, name="topics")
app.command(epilog=publish.EXAMPLE)(publish.publish)
app.command(epilog=work.EXAMPLE)(work.work)
app.command(epilog=tail.EXAMPLE)(tail.tail)
app.command(epilog=redrive.EXAMPLE)(redrive.redrive)
app.command(epilog=resume.EXAMPLE)(resume.resume)
app.command(epilog=replay.EXAMPLE)(replay.replay)


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        app()
    except PolicyError as error:
        complain(*(str(fault) for fault in error.faults))
    except InputError as error:
        complain(f"sluiceway: {error.detail}")
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does: nothing is wrong, and nothing can be said any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        complain(f"sluiceway: {error}", code=1)  # a full disk, a terminal that is gone


def complain(*lines: str, code: int = 2) -> None:
    """Writes what the user has to mend to stderr and ends the process."""
    for line in lines:
        print(line, file=sys.stderr)
    raise SystemExit(code) from None
