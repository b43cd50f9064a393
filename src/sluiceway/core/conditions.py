"""Conditions: what the world looks like at one instant, and what a trail keeps of it so that `verify` needs no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluiceway.core.health import Health


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a cascade decides under, beside the event itself. `health` may go on changing: it is read at once.

    `day_left`: pico-dollars of the task's day, None where unbounded. `may_fail`: whether `failed_share` lets another
    failed job escalate.
    """

    health: Mapping[str, Health]
    day_left: int | None = None
    may_fail: bool = True
    language: str = "und"

    def unusual(self, now: float) -> dict[str, Any] | None:
        """What may turn a decision, None where nothing does: models that are out, a bounded day, a share used up."""
        if not self.health and self.day_left is None and self.may_fail:
            return None
        out = {name: known.out_until for name, known in self.health.items() if known.out_until > now}
        seen: dict[str, Any] = {"out_until": out} if out else {}
        if self.day_left is not None:
            seen["day_left_picousd"] = self.day_left
        if not self.may_fail:
            seen["may_fail"] = False
        return seen or None
