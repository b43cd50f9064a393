"""Money: metered tokens x price, in integer pico-dollars (10^-12 USD), and the budgets that bound it.

A price with six decimals a million tokens is a whole number of pico-dollars a token. Where a price is finer,
one attempt's cost is rounded once, half to even.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache

from sluiceway.core.call import Usage
from sluiceway.core.catalog import Price, PriceTier

PICO = 10**12
_PICO_PER_MTOK_USD = 10**6  # 1 USD a million tokens = 10^6 pico-dollars a token

Rates = tuple[int | Decimal, int | Decimal, int | Decimal, int | Decimal, int | Decimal]

# A cache entry that lives an hour costs 2 x input where one of five minutes costs 1.25 x (Anthropic's price list).
_HOUR_OVER_FIVE_MINUTES = Decimal("1.6")


@lru_cache(maxsize=4096)
def _rates(price: Price | PriceTier) -> Rates:
    """Pico-dollars a token: uncached input, cache read, cache write 5 min, cache write 1 h, output."""
    read = price.input_mtok if price.cache_read_mtok is None else price.cache_read_mtok
    write = price.input_mtok if price.cache_write_mtok is None else price.cache_write_mtok
    hour = price.input_mtok if price.cache_write_mtok is None else price.cache_write_mtok * _HOUR_OVER_FIVE_MINUTES
    exact = [rate * _PICO_PER_MTOK_USD for rate in (price.input_mtok, read, write, hour, price.output_mtok)]
    whole = [int(rate) if rate == rate.to_integral_value() else rate for rate in exact]
    return whole[0], whole[1], whole[2], whole[3], whole[4]


@lru_cache(maxsize=4096)
def _tiers(price: Price) -> tuple[tuple[int, Rates], ...]:
    return tuple((tier.from_tokens, _rates(tier)) for tier in sorted(price.tiers, key=lambda tier: tier.from_tokens))


def cost(usage: Usage, price: Price) -> int:
    """What one attempt costs, in pico-dollars. A context tier is chosen by the call's whole input."""
    rates = _rates(price)
    if price.tiers:
        for from_tokens, tier_rates in _tiers(price):
            if usage.input >= from_tokens:
                rates = tier_rates
    uncached, read, write, hour, output = rates
    total = (
        usage.input_uncached * uncached
        + usage.input_cache_read * read
        + usage.input_cache_write_5m * write
        + usage.input_cache_write_1h * hour
        + (usage.output_text + usage.output_reasoning) * output
    )
    return total if isinstance(total, int) else int(total.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def usd(pico: int) -> float:
    """Pico-dollars as US dollars, for people; never computed with."""
    return pico / PICO


def from_usd(amount: Decimal) -> int:
    return int((amount * PICO).to_integral_value(rounding=ROUND_HALF_EVEN))


@dataclass(slots=True)
class DayBudget:
    """One task's budget for a day: what is spent, and what calls in flight may yet cost.

    A new day begins at midnight of `zone`. The bound is kept by reserving a call's worst cost before it is made.
    """

    limit: int  # pico-dollars
    zone: tzinfo = UTC
    day: str = ""
    spent: int = 0
    reserved: int = field(default=0)

    def _turn(self, now: float) -> None:
        day = datetime.fromtimestamp(now, self.zone).date().isoformat()
        if day != self.day:
            self.day, self.spent = day, 0

    def left(self, now: float) -> int:
        self._turn(now)
        return self.limit - self.spent - self.reserved

    def reserve(self, worst: int) -> None:
        self.reserved += worst

    def settle(self, worst: int, actual: int, now: float) -> None:
        """A reserved call came back: its worst cost is released and its true cost counted."""
        self._turn(now)
        self.reserved -= worst
        self.spent += actual
