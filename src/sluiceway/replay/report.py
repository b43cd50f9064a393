"""What came of a replay, counted from its outcome lines and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sluiceway.core import ledger
from sluiceway.core.call import CACHED
from sluiceway.core.outcome import Status

KINDS = {
    "input": ("input_uncached",),
    "cache_read": ("input_cache_read",),
    "cache_write": ("input_cache_write_5m", "input_cache_write_1h"),
    "output": ("output_text", "output_reasoning"),
}
"""Metered tokens by the types of the metric `sluiceway_tokens_total`, and the fields of a usage that each sums."""

NOTE_REFERENCE = "all-reference cost: what the reference did cost, else our own token counts at its price"


@dataclass(slots=True)
class Summary:
    """Money is in pico-dollars. `answered` counts by (tier, model), the others by reason.

    `answered_cost` and `reference_cost` are of the same jobs: those with an answer, so that the two can be compared.
    `tokens` are metered ones by kind; `kept` counts the attempts that a kept answer served without a call.
    `context_use` sums the shares of its model's context window that each of the `metered` calls took.
    """

    jobs: int = 0
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    escalated: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    cost: int = 0
    answered_cost: int = 0
    reference_cost: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    metered: int = 0
    context_use: float = 0.0
    context_use_most: float = 0.0

    def add(self, outcome: Mapping[str, Any]) -> None:
        """Counts one outcome line."""
        self.jobs += 1
        kind = str(outcome["schema"]).partition("/")[0]
        if kind == "sluiceway.dead-letter":
            self.dead_letters[outcome["reason"]] += 1
            return
        self.cost += outcome["cost_picousd"]
        for step in outcome["trail"]["steps"]:
            if step["step"] == "attempt":
                self._attempt(step)
        if outcome["escalated"] is not None:
            self.escalated[outcome["escalated"]] += 1
        if kind == "sluiceway.review":
            self.reviews[outcome["reason"]] += 1
        elif outcome["status"] == Status.REFUSED:
            self.refused[outcome["reason"]] += 1
        else:
            self.answered[outcome["tier"], outcome["model"]] += 1
            self.answered_cost += outcome["cost_picousd"]
            self.reference_cost += outcome["reference_cost_picousd"]
            self.sampled += outcome["sampled"] is not None

    def _attempt(self, attempt: Mapping[str, Any]) -> None:
        usage = attempt["usage"]
        for kind, names in KINDS.items():
            self.tokens[kind] += sum(usage[name] for name in names)
        self.kept += attempt["endpoint"] == CACHED
        if (use := attempt.get("context_use")) is not None:  # a line of an older version has none
            self.metered += 1
            self.context_use += use
            self.context_use_most = max(self.context_use_most, use)

    @property
    def prompt_cache_hit(self) -> float | None:
        """The share of input tokens that the providers read from their prompt caches; None without any input."""
        whole = self.tokens["input"] + self.tokens["cache_read"] + self.tokens["cache_write"]
        return self.tokens["cache_read"] / whole if whole else None

    @property
    def cost_per_success(self) -> float | None:
        """US dollars of all attempts of all jobs for each answer; None without any."""
        answers = self.answered.total()
        return ledger.usd(self.cost) / answers if answers else None

    @property
    def saving(self) -> float | None:
        """The share of the all-reference cost that was not spent; None where that cost is zero."""
        return 1 - self.answered_cost / self.reference_cost if self.reference_cost else None

    def as_json(self) -> dict[str, Any]:
        """For scripts: counts, pico-dollars, and US dollars for people."""
        return {
            "schema": "sluiceway.summary/1",
            "jobs": self.jobs,
            "answered": [
                {"tier": tier, "model": model, "jobs": count} for (tier, model), count in sorted(self.answered.items())
            ],
            "escalated": dict(sorted(self.escalated.items())),
            "refused": dict(sorted(self.refused.items())),
            "reviews": dict(sorted(self.reviews.items())),
            "dead_letters": dict(sorted(self.dead_letters.items())),
            "sampled": self.sampled,
            "cost_picousd": self.cost,
            "cost_usd": ledger.usd(self.cost),
            "answered_cost_picousd": self.answered_cost,
            "reference_cost_picousd": self.reference_cost,
            "reference_cost_usd": ledger.usd(self.reference_cost),
            "saving": self.saving,
            "cost_per_success_usd": self.cost_per_success,
            "context_use": {
                "mean": self.context_use / self.metered if self.metered else None,
                "most": self.context_use_most if self.metered else None,
            },
            "tokens": {kind: self.tokens[kind] for kind in KINDS},
            "prompt_cache_hit": self.prompt_cache_hit,
            "kept_answers": self.kept,
            "note": NOTE_REFERENCE,
        }


def summarize(lines: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary of outcome lines."""
    summary = Summary()
    for line in lines:
        summary.add(line)
    return summary
