"""Prices from the library genai-prices, as installed: nothing is fetched, so no price changes by itself."""

from __future__ import annotations

import difflib
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import NamedTuple

from genai_prices import data_snapshot
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices
from genai_prices.types import Provider as Lister

from sluiceway.core.catalog import Price, PriceTier

# OpenTelemetry's provider names, and ours, that genai-prices spells otherwise.
_SPELLINGS = {"gcp.vertex_ai": "google", "gcp.gemini": "google", "mistral_ai": "mistral", "x_ai": "x-ai"}


class Listed(NamedTuple):
    """A price and where it comes from, such as `genai-prices 0.2.3: openai/gpt-5.4-mini`."""

    price: Price
    origin: str
    context_window: int | None


def find(provider: str, model: str, at: datetime, service_tier: str | None = None) -> Listed | None:
    """The price of `model` at that provider at the instant `at`, or None where the library knows none.

    A price that changes by the hour (DeepSeek's peak hours) is the one that holds at `at`, and a service tier that has
    a price of its own has that; the origin then says so.
    """
    lister = _lister(provider)
    found = lister.find_model(model.lower(), all_providers=_snapshot().providers) if lister else None
    if lister is None or found is None:
        return None
    raw = found.get_prices(at, {"service_tier": service_tier} if service_tier else None)
    price = _price(raw)
    if price is None:
        return None
    origin = f"genai-prices {version('genai-prices')}: {lister.id}/{found.id}"
    if service_tier and price != _price(found.get_prices(at)):
        origin += f" (service tier {service_tier})"
    if _by_the_hour(found):
        origin += f" (varies by the hour; as of {at:%H:%M %Z})"
    return Listed(price, origin, found.context_window)


def suggestions(provider: str, model: str) -> list[str]:
    """Up to three names that the user may have meant, as `provider/model`; [] where nothing comes close."""
    lister = _lister(provider)
    listers = [lister] if lister else _snapshot().providers
    names = {entry.id: f"{one.id}/{entry.id}" for one in listers for entry in one.models}
    return [names[name] for name in difflib.get_close_matches(model.lower(), names, n=3, cutoff=0.5)]


def _snapshot() -> data_snapshot.DataSnapshot:
    return data_snapshot.get_snapshot()


def _lister(provider: str) -> Lister | None:
    name = provider.lower()
    return data_snapshot.find_provider_by_id(_snapshot().providers, _SPELLINGS.get(name, name)) if name else None


def _by_the_hour(model: ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(hasattr(one.constraint, "start_time") for one in model.prices)


def _price(raw: ModelPrice) -> Price | None:
    """None where neither input nor output has a price by the token."""
    names = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")
    rates: dict[str, Decimal | TieredPrices | None] = {name: getattr(raw, name) for name in names}
    if rates["input_mtok"] is None and rates["output_mtok"] is None:
        return None
    starts = {tier.start for rate in rates.values() if isinstance(rate, TieredPrices) for tier in rate.tiers}
    # The library's tiers hold above their start, ours from their first token on.
    tiers = tuple(PriceTier(from_tokens=start + 1, **_rates(rates, start)) for start in sorted(starts))
    return Price(tiers=tiers, **_rates(rates, -1))


def _rates(rates: dict[str, Decimal | TieredPrices | None], start: int) -> dict[str, Decimal]:
    """Each rate as it is once the input passes `start`; unknown ones are left out."""
    found: dict[str, Decimal] = {}
    for name, rate in rates.items():
        if isinstance(rate, TieredPrices):
            passed = [tier.price for tier in rate.tiers if tier.start <= start]
            found[name] = passed[-1] if passed else rate.base
        elif rate is not None:
            found[name] = rate
    return found
