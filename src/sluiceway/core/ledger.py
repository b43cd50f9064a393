"""Money: metered tokens x price, in integer pico-dollars (10^-12 USD), and the budgets that bound it.

A price with six decimals a million tokens is a whole number of pico-dollars a token. Where a price is finer,
one attempt's cost is rounded once, half to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from sluiceway.core.call import Failure, FailureKind, Reply, Usage
from sluiceway.core.catalog import Price

PICO = 10**12


def cost(usage: Usage, price: Price) -> int:
    """What one attempt costs, in pico-dollars. A context tier is chosen by the call's whole input."""
    rates = price.rates_at(usage.input) if price.tiers else price.rates
    total = (
        usage.input_uncached * rates.uncached
        + usage.input_cache_read * rates.cache_read
        + usage.input_cache_write_5m * rates.cache_write_5m
        + usage.input_cache_write_1h * rates.cache_write_1h
        + (usage.output_text + usage.output_reasoning) * rates.output
    )
    return total if rates.scale == 1 else round(Fraction(total, rates.scale))  # half to even


def plain_cost(input_tokens: int, output_tokens: int, price: Price) -> int:
    """The same of a call that no cache took part in."""
    rates = price.rates_at(input_tokens) if price.tiers else price.rates
    total = input_tokens * rates.uncached + output_tokens * rates.output
    return total if rates.scale == 1 else round(Fraction(total, rates.scale))


def exact(shares: Sequence[Usage], price: Price | str | None) -> Sequence[Usage]:
    """The shares of one call, such that their costs sum to what the call costs.

    They are left as they are where they do. Else (the price rises with a call's whole input, which no share has; or it
    is so fine that each share is rounded) the first one has all of it.
    """
    if not isinstance(price, Price) or (price.rates.scale == 1 and not price.tiers):
        return shares
    whole = sum(shares, Usage())
    if sum([cost(share, price) for share in shares]) == cost(whole, price):
        return shares
    return [whole, *[Usage()] * (len(shares) - 1)]


def worst_cost(input_tokens: int, output_tokens: int, price: Price) -> int:
    """What a call can cost at most, in pico-dollars: each input token of the dearest kind, and the longest answer."""
    rates = price.rates_at(input_tokens) if price.tiers else price.rates
    total = input_tokens * max(rates.uncached, rates.cache_read, rates.cache_write_5m) + output_tokens * rates.output
    return -(-total // rates.scale)


_FREE = ("http_", "connect", "tls")


def lost(event: Reply | Failure) -> bool:
    """Whether the endpoint may want money for a call of which no count came back.

    Not where it was not reached, or has refused by a status; nor is what another's call may cost a copy's as well.
    """
    if isinstance(event, Reply) or event.kind is not FailureKind.TRANSIENT or event.usage != Usage():
        return False
    return not event.detail.startswith(_FREE) and not (event.copy and event.packed == 1)


def usd(pico: int) -> float:
    """Pico-dollars as US dollars, for people; never computed with."""
    return pico / PICO


def from_usd(amount: Decimal) -> int:
    return int((amount * PICO).to_integral_value(rounding=ROUND_HALF_EVEN))


@dataclass(slots=True)
class DayBudget:
    """One task's budget for a day: what counts as spent, and what calls in flight may yet cost.

    A call whose cost nobody can tell counts with its worst: `spent` may be more than the ledger holds, never less.
    A new day begins at midnight of `zone`. The bound is kept by reserving a call's worst cost before it is made. Where
    the budget is shared (core/claim.py), `granted` of it is ours today, and `opening` of each new day at first.
    """

    limit: int  # pico-dollars
    zone: tzinfo = UTC
    spent: int = 0
    reserved: int = 0
    granted: int | None = None
    opening: int = 0
    _ends: float = 0.0  # the next midnight
    _day: str = ""

    def _turn(self, now: float) -> None:
        if now >= self._ends:
            tomorrow = datetime.fromtimestamp(now, self.zone).date() + timedelta(days=1)
            self._ends = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=self.zone).timestamp()
            self._day = (tomorrow - timedelta(days=1)).isoformat()
            self.spent = 0
            if self.granted is not None:
                self.granted = self.opening

    def day(self, now: float) -> str:
        """The day that money is counted for, as `2026-01-31`."""
        self._turn(now)
        return self._day

    def left(self, now: float) -> int:
        self._turn(now)
        bound = self.limit if self.granted is None else min(self.limit, self.granted)
        return bound - self.spent - self.reserved

    def reserve(self, worst: int) -> None:
        self.reserved += worst

    def settle(self, worst: int, actual: int, now: float) -> None:
        """A reserved call has ended: its worst cost is released, and what it cost, or may have cost, is counted."""
        self._turn(now)
        self.reserved -= worst
        self.spent += actual
