"""`sluiceway init`: a policy to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sluiceway.core.errors import InputError

EXAMPLE = "Example: sluiceway init triage.yaml"

POLICY = """\
# A Sluiceway policy: which models answer which task, and how sure a cheap answer must be.
# See what it comes to:  sluiceway check {name}          Ask each model once:  sluiceway check {name} --live
# Keys come from the environment: OPENAI_API_KEY and ANTHROPIC_API_KEY here. Never write one in this file.

models:
  # Prices are known for most models; `price: {{input_mtok: .., output_mtok: ..}}` (USD a million tokens) sets others.
  cheap:
    provider: openai
    model: gpt-5.4-mini
    params: {{max_tokens: 50, reasoning_effort: none}}
  frontier:
    provider: anthropic
    model: claude-opus-4-8
    params: {{max_tokens: 200}}

tasks:
  ticket-triage:
    # Cheapest first. The last one is the reference: it answers whatever the others are unsure of.
    ladder: [cheap, frontier]
    prompt: "Classify this ticket."
    labels: [billing, login, refund, other]
    # The cheap answer stands when the probability of its label reaches the threshold; else the job is escalated.
    gate: {{score: label_logprob, threshold: 0.85}}
    budget: {{usd_per_day: 50}}
    # start: [{{when: "stakes >= high or tokens > 6000", at: frontier}}]   # these go straight to the frontier
    # review: {{always: ["stakes >= critical"]}}                           # these wait for a person
    # clearance: internal                                                # what the text may be shown to
"""


def init(
    file: Annotated[Path, typer.Argument(help="The policy to write.")] = Path("policy.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write the smallest policy, ready to edit."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(POLICY.format(name=file))
    except FileExistsError:
        raise InputError("init", f"{file} is there already. Mend: another name, or --force to overwrite it") from None
    except OSError as error:
        raise InputError("init", f"{file}: {error.strerror}. Mend: name a file that can be written") from None
    typer.echo(f"Wrote {file}. Next: sluiceway check {file}")
