"""The ledger against exact fractions; and a day's budget that no order of calls can pass."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.call import Usage
from sluiceway.core.catalog import Price, PriceTier
from sluiceway.core.ledger import DayBudget, cost, worst_cost

TOKENS = st.integers(0, 10**9)
USAGES = st.builds(Usage, *[TOKENS] * 6)
RATES = st.decimals(0, 10**6, places=6) | st.decimals(0, 100, places=17) | st.just(Decimal("0.0000005"))
MAYBE = st.one_of(st.none(), RATES)
TIERS = st.lists(
    st.builds(PriceTier, from_tokens=TOKENS, input_mtok=RATES, cache_read_mtok=MAYBE, output_mtok=RATES), max_size=2
)
PRICES = st.builds(
    Price,
    input_mtok=RATES,
    cache_read_mtok=MAYBE,
    cache_write_mtok=MAYBE,
    output_mtok=RATES,
    tiers=TIERS.map(tuple),
)


@given(usage=USAGES, price=PRICES)
@settings(max_examples=500, deadline=None)
def test_a_cost_is_exact_and_rounded_once(usage: Usage, price: Price) -> None:
    """Half to even, at the very end, whatever the digits of the price."""
    tier: Price | PriceTier = price
    for candidate in sorted(price.tiers, key=lambda one: one.from_tokens):
        if usage.input >= candidate.from_tokens and not (
            isinstance(tier, PriceTier) and tier.from_tokens == candidate.from_tokens
        ):
            tier = candidate
    plain = Fraction(tier.input_mtok)
    read = plain if tier.cache_read_mtok is None else Fraction(tier.cache_read_mtok)
    write = plain if tier.cache_write_mtok is None else Fraction(tier.cache_write_mtok)
    hour = plain if tier.cache_write_mtok is None else write * 2 / Fraction("1.25")
    exact = (
        usage.input_uncached * plain
        + usage.input_cache_read * read
        + usage.input_cache_write_5m * write
        + usage.input_cache_write_1h * hour
        + usage.output * Fraction(tier.output_mtok)
    ) * 10**6
    assert cost(usage, price) == round(exact)  # Python rounds fractions half to even


WHOLE = st.decimals(0, 10**6, places=6)


@given(first=USAGES, second=USAGES, price=st.builds(Price, input_mtok=WHOLE, output_mtok=WHOLE))
@settings(max_examples=200, deadline=None)
def test_whole_prices_add_up(first: Usage, second: Usage, price: Price) -> None:
    """Two attempts cost what their tokens together cost: nothing is lost to rounding."""
    assert cost(first, price) + cost(second, price) == cost(first + second, price)


CALLS = st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(0, 5), st.floats(0, 3e5))


@given(limit=st.integers(0, 1000), calls=st.lists(CALLS, max_size=40))
@settings(max_examples=300, deadline=None)
def test_reserved_calls_never_pass_the_days_budget(limit: int, calls: list[tuple[int, int, int, float]]) -> None:
    """A call goes out only while its worst cost is left; it costs at most that; so no day costs more than its limit."""
    day = DayBudget(limit)
    now = 0.0
    flying: list[tuple[int, int]] = []
    spent: dict[int, int] = {}
    for worst, share, settle, step in calls:
        now += step
        if worst <= day.left(now):
            day.reserve(worst)
            flying.append((worst, worst * share // 100))
        for _ in range(min(settle, len(flying))):
            bound, actual = flying.pop(0)
            day.settle(bound, actual, now)
            spent[int(now // 86400)] = spent.get(int(now // 86400), 0) + actual
        assert day.reserved == sum(bound for bound, _ in flying)
        assert day.spent + day.reserved <= limit
    assert all(amount <= limit for amount in spent.values())


@given(price=PRICES, size=TOKENS, longest=TOKENS, shares=st.lists(st.integers(0, 3), min_size=3, max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_call_costs_more_than_its_worst(price: Price, size: int, longest: int, shares: list[int]) -> None:
    """However its input splits into plain, read and written cache, and however short its answer."""
    total = sum(shares) or 1
    read, write = size * shares[0] // total, size * shares[1] // total
    usage = Usage(size - read - write, read, write, 0, longest // 2, longest - longest // 2)
    assert cost(usage, price) <= worst_cost(size, longest, price)
