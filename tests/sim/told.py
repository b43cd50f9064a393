"""What a world came to, as it is told: its breaches, its counts, its story."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Told:
    """What a world came to."""

    seed: int
    breaches: dict[str, list[str]]
    counts: Counter[str]
    digest: str
    story: list[str]
    jobs: int
    faults: tuple[str, ...]
    cpu: float = 0.0  # seconds

    @property
    def holds(self) -> bool:
        return not any(self.breaches.values())

    def __str__(self) -> str:
        lines = [f"world {self.seed}: {self.jobs} jobs, faults: {', '.join(self.faults)}"]
        lines += [f"  ... {line}" for line in self.story]
        lines += [f"BROKEN {law}: {'; '.join(found[:5])}" for law, found in self.breaches.items() if found]
        lines.append(f"again: python -m tests.sim --worlds 1 --seed {self.seed}")
        return "\n".join(lines)


def line(at: float, kind: str, facts: dict[str, Any]) -> str:
    return f"{at:8.3f} {kind} " + " ".join(f"{name}={value}" for name, value in facts.items())
