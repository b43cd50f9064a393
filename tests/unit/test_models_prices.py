"""Prices from genai-prices: found by the names users write, equal to the library's own sums, never fetched."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluiceway.core.call import Usage
from sluiceway.core.ledger import cost
from sluiceway.models import prices

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NAMES = [
    ("openai", "gpt-5.4-mini"),
    ("openai", "gpt-5.5"),
    ("anthropic", "claude-opus-4-8"),
    ("anthropic", "claude-sonnet-4-5"),
    ("deepseek", "deepseek-v4-flash"),
    ("fireworks", "accounts/fireworks/models/glm-5p1"),
    ("openrouter", "z-ai/glm-5.1"),
    ("gcp.gemini", "gemini-2.5-pro"),
]


@pytest.mark.parametrize(("provider", "model"), NAMES)
def test_the_names_that_policies_use_have_prices(provider: str, model: str) -> None:
    """Each with its origin, library version included."""
    found = prices.find(provider, model, AT)
    assert found is not None
    assert found.origin.startswith(f"genai-prices {version('genai-prices')}: ")
    assert found.price.input_mtok > 0
    assert found.price.output_mtok > 0


@given(
    st.sampled_from(NAMES),
    st.integers(0, 500_000),
    st.integers(0, 500_000),
    st.integers(0, 100_000),
)
def test_our_ledger_sums_what_the_library_sums(names: tuple[str, str], uncached: int, cached: int, output: int) -> None:
    """Tiers included: the same tokens cost the same, to the pico-dollar."""
    provider, model = names
    found = prices.find(provider, model, AT)
    assert found is not None
    library = {"gcp.gemini": "google"}.get(provider, provider)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=uncached + cached, cache_read_tokens=cached, output_tokens=output),
        model,
        provider_id=library,
        genai_request_timestamp=AT,
    )
    ours = cost(Usage(input_uncached=uncached, input_cache_read=cached, output_text=output), found.price)
    assert abs(Decimal(ours) - theirs.total_price * 10**12) <= Decimal("0.5")


def test_a_price_is_the_one_of_its_day_and_hour() -> None:
    """DeepSeek's price changes by the hour; the origin says so."""
    noon = prices.find("deepseek", "deepseek-v4-flash", AT)
    early = prices.find("deepseek", "deepseek-v4-flash", AT.replace(hour=2))
    assert noon is not None
    assert early is not None
    assert early.price.input_mtok > noon.price.input_mtok
    assert "varies by the hour" in noon.origin


def test_a_service_tier_has_its_own_price() -> None:
    """flex is half of default."""
    flex, plain = (
        prices.find("openai", "gpt-5.4-mini", AT, "flex"),
        prices.find("openai", "gpt-5.4-mini", AT, "default"),
    )
    assert flex is not None
    assert plain is not None
    assert flex.price.input_mtok * 2 == plain.price.input_mtok
    assert flex.origin == f"{plain.origin} (service tier flex)"


def test_an_unknown_name_has_no_price_but_close_spellings() -> None:
    """The mend of a typing error is the name that was meant."""
    assert prices.find("openai", "gpt5.4mini", AT) is None
    assert "openai/gpt-5.4-mini" in prices.suggestions("openai", "gpt5.4mini")
    assert prices.find("nobody", "gpt-5.5", AT) is None
    assert prices.find("", "gpt-5.5", AT) is None
    assert prices.suggestions("openai", "zzzzzzzz") == []
