"""Conditions: what the world looks like at one instant, and what a trail keeps of it so that `verify` needs no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from sluiceway.core.health import Health
from sluiceway.core.value import value
from sluiceway.core.worth import NONE, TooDear


@value
class Conditions:
    """What a cascade decides under, beside the event itself. `health` may go on changing: it is read at once.

    `day_left`: pico-dollars of the task's day, None where unbounded. `may_fail`: whether `failed_share` lets another
    failed job escalate. `too_dear`: the models that cost more for each success than the next one.
    """

    health: Mapping[str, Health]
    day_left: int | None = None
    may_fail: bool = True
    language: str = "und"
    too_dear: Mapping[str, TooDear] = field(default_factory=lambda: NONE)

    def unusual(self, now: float) -> dict[str, Any] | None:
        """What may turn a decision, None where nothing does: models out or too dear, a bounded day, a share used up."""
        out = {}
        for name, known in self.health.items():  # written out: a comprehension is a call, twice a job
            if known.out_until > now:
                out[name] = known.out_until
        if not out and self.day_left is None and self.may_fail and not self.too_dear:
            return None
        seen: dict[str, Any] = {"out_until": out} if out else {}
        if self.day_left is not None:
            seen["day_left_picousd"] = self.day_left
        if not self.may_fail:
            seen["may_fail"] = False
        if self.too_dear:
            seen["too_dear"] = {name: known.instead for name, known in self.too_dear.items()}
        return seen


USUAL = Conditions({})
"""Nothing is known that could turn a decision."""
