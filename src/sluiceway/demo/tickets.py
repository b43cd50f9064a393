"""The demo's tickets: real questions of bank customers with their true labels and what two models said to them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

_FILE = "tickets.csv.gz"
_OURS = ("id", "text", "gold")


@dataclass(frozen=True, slots=True)
class Ticket:
    """One recorded ticket. `recorded` maps a column of the recording to the answer in it."""

    id: str
    text: str
    gold: str
    recorded: Mapping[str, str]

    def job(self, task: str) -> dict[str, Any]:
        """The record that publishes it."""
        return {"id": self.id, "task": task, "input": self.text}


def policy_file() -> Path:
    """Where the demo's own policy lies; the files it names lie beside it."""
    return Path(__file__).parent / "policy.yaml"


def tickets(count: int | None = None, prefix: str = "") -> list[Ticket]:
    """`count` tickets, all of them without a count; beyond that they repeat under new ids (`ticket-001-2`)."""
    every = _recorded()
    wanted = len(every) if count is None else count
    found = []
    for number in range(wanted):
        lap, place = divmod(number, len(every))
        ticket = every[place]
        name = f"{prefix}{ticket.id}-{lap + 1}" if lap else f"{prefix}{ticket.id}"
        found.append(Ticket(name, ticket.text, ticket.gold, ticket.recorded))
    return found


@cache
def _recorded() -> tuple[Ticket, ...]:
    packed = resources.files(__package__).joinpath(_FILE).read_bytes()
    rows = csv.DictReader(io.StringIO(gzip.decompress(packed).decode(), newline=""))
    return tuple(
        Ticket(
            row["id"], row["text"], row["gold"], {name: cell for name, cell in row.items() if name not in _OURS}
        )
        for row in rows
    )  # fmt: skip
