"""Money: exact to the pico-dollar, rounded once, and days that end at midnight."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from sluiceway.core import ledger
from sluiceway.core.call import Usage
from sluiceway.core.catalog import Price, PriceTier
from sluiceway.core.ledger import DayBudget

PLAIN = Price(input_mtok=Decimal("0.15"), cache_read_mtok=Decimal("0.003"), output_mtok=Decimal("0.60"))


def test_usual_prices_are_whole_pico_dollars_a_token() -> None:
    """.15/.003/.60 a million: 150,000, 3,000 and 600,000 each."""
    usage = Usage(input_uncached=7, input_cache_read=11, output_text=13, output_reasoning=17)
    assert ledger.cost(usage, PLAIN) == 7 * 150_000 + 11 * 3_000 + 30 * 600_000


def test_cached_input_without_a_price_of_its_own_costs_plain_input() -> None:
    """Reads and writes alike."""
    price = Price(input_mtok=Decimal(2))
    assert ledger.cost(Usage(1, 1, 1, 1), price) == 4 * 2_000_000


def test_an_hours_cache_costs_more_than_five_minutes() -> None:
    """2 x against 1.25 x input."""
    price = Price(input_mtok=Decimal(5), cache_write_mtok=Decimal("6.25"))
    assert ledger.cost(Usage(input_cache_write_5m=1), price) == 6_250_000
    assert ledger.cost(Usage(input_cache_write_1h=1), price) == 10_000_000


def test_without_a_cache_the_short_way_costs_the_same() -> None:
    """Whole and finer prices alike, and those that rise with the input."""
    fine = Price(input_mtok=Decimal("0.0000005"), output_mtok=Decimal("0.00000025"))
    rising = Price(input_mtok=Decimal(1), tiers=(PriceTier(from_tokens=100, input_mtok=Decimal(2)),))
    for price in (PLAIN, fine, rising):
        for given, answer in ((0, 0), (7, 3), (99, 1), (100, 5), (250, 1)):
            usage = Usage(input_uncached=given, output_text=answer)
            assert ledger.plain_cost(given, answer, price) == ledger.cost(usage, price)


def test_a_finer_price_is_rounded_once_an_attempt_and_half_to_even() -> None:
    """Half a pico-dollar a token: 1, 2, 3 and 5 tokens make 0, 1, 2 and 2."""
    price = Price(input_mtok=Decimal("0.0000005"))
    assert [ledger.cost(Usage(tokens), price) for tokens in (1, 2, 3, 5)] == [0, 1, 2, 2]


def test_a_context_tier_prices_the_whole_call() -> None:
    """From its first token on, by all input that was sent."""
    price = Price(
        input_mtok=Decimal(1),
        tiers=(
            PriceTier(from_tokens=300, input_mtok=Decimal(3)),
            PriceTier(from_tokens=200, input_mtok=Decimal(2)),
        ),
    )
    costs = [ledger.cost(Usage(tokens - 50, 50), price) // tokens for tokens in (199, 200, 299, 300)]
    assert costs == [1_000_000, 2_000_000, 2_000_000, 3_000_000]


def test_shares_of_a_call_cost_together_what_the_call_costs() -> None:
    """Also where a share alone would be billed at the price of a shorter call, or each be rounded: one then has all."""
    halves = [Usage(100, output_text=1), Usage(100, output_text=1)]
    tier = PriceTier(from_tokens=200, input_mtok=Decimal(2))
    assert ledger.exact(halves, Price(input_mtok=Decimal(1))) == halves
    assert ledger.exact(halves, "free") == ledger.exact(halves, None) == halves
    risen = ledger.exact(halves, Price(input_mtok=Decimal(1), tiers=(tier,)))
    assert risen == [Usage(200, output_text=2), Usage()]
    assert ledger.exact(halves, Price(tiers=(PriceTier(from_tokens=201),))) == halves
    fine = Price(input_mtok=Decimal("0.0000005"))
    assert ledger.exact([Usage(3), Usage(3)], fine) == [Usage(6), Usage()]


@pytest.mark.parametrize("price", [Decimal(-1), Decimal("NaN"), Decimal("Infinity"), Decimal(10**9)])
def test_a_price_is_a_price(price: Decimal) -> None:
    """Neither negative nor endless."""
    with pytest.raises(ValidationError):
        Price(input_mtok=price)


def test_dollars_are_for_people() -> None:
    """There and back."""
    assert ledger.usd(150_000) == 1.5e-7
    assert ledger.from_usd(Decimal("0.002")) == 2 * 10**9


def _at(*when: int, zone: str = "UTC") -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type,misc]  # year to second


def test_a_call_is_reserved_at_its_worst_and_settled_at_its_cost() -> None:
    """Calls in flight count, so that the bound holds."""
    day, now = DayBudget(100), _at(2026, 1, 5, 12)
    assert day.left(now) == 100
    day.reserve(60)
    assert day.left(now) == 40
    day.settle(60, 25, now)
    assert day.left(now) == 75


@pytest.mark.parametrize(
    ("zone", "before", "after"),
    [
        ("UTC", (2026, 1, 5, 23, 59, 59), (2026, 1, 6, 0, 0, 0)),
        ("Europe/Berlin", (2026, 3, 29, 23, 59, 59), (2026, 3, 30, 0, 0, 0)),  # the day of 23 hours
        ("America/New_York", (2026, 12, 31, 23, 59, 59), (2027, 1, 1, 0, 0, 0)),
    ],
)
def test_a_day_ends_at_midnight_of_its_time_zone(zone: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """What was spent is forgotten then, what is in flight is not."""
    day = DayBudget(100, ZoneInfo(zone))
    day.settle(0, 90, _at(*before, zone=zone))
    day.reserve(5)
    assert day.left(_at(*before, zone=zone)) == 5
    assert day.left(_at(*after, zone=zone)) == 95
    day.settle(5, 3, _at(*after, zone=zone))
    assert day.left(_at(*after, zone=zone)) == 97


def test_a_clock_that_steps_back_gives_no_second_budget() -> None:
    """Only a later day is a new one."""
    day = DayBudget(100, UTC)
    day.settle(0, 90, _at(2026, 1, 6, 0, 1))
    assert day.left(_at(2026, 1, 5, 23, 59)) == 10
