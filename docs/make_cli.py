"""Writes docs/reference/cli.md from the command line itself: `python docs/make_cli.py`. A test holds them together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from sluiceway.cli.app import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """\
# The command line

Made from the code by `python docs/make_cli.py`.

Exit codes: 0 done; 1 failed; 2 wrong use (of a command, a policy, a file, a cluster), with the mend; 130 interrupted.

Every verb that speaks to Kafka takes the cluster by `-b`, client settings by `-X KEY=VALUE` and `-F FILE` in
librdkafka's names (`security.protocol`, `sasl.mechanism`, `ssl.ca.location`), or from the environment
(`SLUICEWAY_BOOTSTRAP_SERVERS`, `SLUICEWAY_SECURITY_PROTOCOL`, ...). [Examples](../security.md#kafka-with-tls-and-sasl).
`-b embedded` starts a broker in memory that ends with the command (`demo`, `work`).

`work` never guesses where to start: a group without offsets needs `--from`, and an offset that has expired stops it
with a message. `work --shadow` needs its topics: `topics apply --shadow --policy FILE` before.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for part in _verbs(typer.main.get_command(app), ()) for line in part)])


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[list[str]]:
    if hasattr(command, "commands"):
        for name, part in command.commands.items():
            yield from _verbs(part, (*path, name))
        return
    lines = [f"## sluiceway {' '.join(path)}", "", command.help.strip(), ""]
    if command.epilog:
        lines += ["    " + command.epilog.removeprefix("Example: "), ""]
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    for argument in arguments:
        lines.append(f"- `{argument.metavar or argument.name.upper()}`{': ' + argument.help if argument.help else ''}")
    lines += [""] if arguments else []
    options = [part for part in command.params if part.param_type_name == "option"]
    if options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [f"| {_names(option)} | {_default(option)} | {option.help} |" for option in options]
        lines.append("")
    yield lines


def _names(option: Any) -> str:
    metavar = f" {option.metavar}" if option.metavar else ""
    return ", ".join(f"`{name}{metavar}`" for name in option.opts).replace("|", "\\|")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        return "off"
    value = getattr(option.default, "value", option.default)
    return "none" if value in (None, (), []) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
