"""The catalog: models, the endpoints that serve them, their prices and limits, and what each may see."""

from __future__ import annotations

import math
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from sluiceway.core.quantity import Seconds


class Clearance(IntEnum):
    """How sensitive data is; a model sees only data at or below its own clearance."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3


class Level(IntEnum):
    """Stakes, priority and risk share one scale."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


CLEARANCE_NAMES = tuple(member.name.lower() for member in Clearance)
LEVEL_NAMES = tuple(member.name.lower() for member in Level)


def _named(kind: type[Clearance] | type[Level]) -> Any:
    names = ", ".join(member.name.lower() for member in kind)

    def parse(value: object) -> object:
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value.upper() in kind.__members__ and value.islower():
            return kind[value.upper()]
        raise ValueError(f"must be one of {names}")

    return parse


def _name(value: IntEnum) -> str:
    return value.name.lower()


ClearanceName = Annotated[Clearance, BeforeValidator(_named(Clearance)), PlainSerializer(_name, return_type=str)]
LevelName = Annotated[Level, BeforeValidator(_named(Level)), PlainSerializer(_name, return_type=str)]


class Frozen(BaseModel):
    """A part of the policy: immutable, and a key it does not know is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Api(StrEnum):
    """The wire format a model speaks; `recorded` and `local` answer in-process."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    RECORDED = "recorded"
    LOCAL = "local"


class Endpoint(Frozen):
    """One URL that serves a model. The key itself is never here: only where to find it."""

    base_url: Annotated[str, Field(description="https://host/v1")]
    api_key_env: str | None = None
    api_key_file: str | None = None
    region: str | None = None
    weight: Annotated[int, Field(ge=1)] = 1


Money = Annotated[Decimal, Field(ge=0, lt=10**9, decimal_places=24, description="USD a million tokens such as 0.15")]

_PICO_PER_MTOK_USD = 10**6  # 1 USD a million tokens = 10^6 pico-dollars a token

# A cache entry that lives an hour costs 2 x input where one of five minutes costs 1.25 x (Anthropic's price list).
_HOUR_OVER_FIVE_MINUTES = Fraction(8, 5)


class Rates(NamedTuple):
    """Pico-dollars that `scale` tokens cost: whole numbers, so that sums are exact. `scale` is 1 for usual prices."""

    uncached: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    output: int
    scale: int


class _Rated(Frozen):
    input_mtok: Money = Decimal(0)
    cache_read_mtok: Money | None = None
    cache_write_mtok: Money | None = None
    output_mtok: Money = Decimal(0)

    @cached_property
    def rates(self) -> Rates:
        plain, output = Fraction(self.input_mtok), Fraction(self.output_mtok)
        read = plain if self.cache_read_mtok is None else Fraction(self.cache_read_mtok)
        write = plain if self.cache_write_mtok is None else Fraction(self.cache_write_mtok)
        hour = plain if self.cache_write_mtok is None else write * _HOUR_OVER_FIVE_MINUTES
        exact = [rate * _PICO_PER_MTOK_USD for rate in (plain, read, write, hour, output)]
        scale = math.lcm(*(rate.denominator for rate in exact))
        return Rates._make([*(int(rate * scale) for rate in exact), scale])


class PriceTier(_Rated):
    """Prices that hold for the whole call once its input reaches `from_tokens`."""

    from_tokens: Annotated[int, Field(ge=0, description="a number of tokens")]


class Price(_Rated):
    """USD a million tokens, by genai-prices' own names. Without a cache price, cached input costs plain input."""

    tiers: tuple[PriceTier, ...] = ()

    def rates_at(self, tokens: int) -> Rates:
        """The rates of a call whose whole input is `tokens`."""
        reached = [tier for tier in self.tiers if tier.from_tokens <= tokens]
        return max(reached, key=lambda tier: tier.from_tokens).rates if reached else self.rates


class Limits(Frozen):
    """What may be asked of each endpoint of a model. How many calls are open adapts from `start_parallel_requests`
    between `min_` and `max_parallel_requests`; without them it has wide bounds of its own (core/limit.py).
    """

    rpm: Annotated[int, Field(ge=1)] | None = None
    tpm: Annotated[int, Field(ge=1)] | None = None
    input_tpm: Annotated[int, Field(ge=1)] | None = None
    output_tpm: Annotated[int, Field(ge=1)] | None = None
    max_parallel_requests: Annotated[int, Field(ge=1)] | None = None
    min_parallel_requests: Annotated[int, Field(ge=1)] | None = None
    start_parallel_requests: Annotated[int, Field(ge=1)] | None = None
    longest_retry_after: Annotated[Seconds, Field(le=60, description="a duration such as 20s, 60s at most")] = 60.0


class Params(Frozen):
    """What is sent with each call. `max_tokens` bounds the answer, and with it the worst cost of a call."""

    max_tokens: Annotated[int, Field(ge=1, le=10**9, description="a number: the longest answer you pay for")]
    temperature: Annotated[float, Field(ge=0, le=2, description="a number from 0 to 2")] | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    service_tier: str | None = None


class JsonMode(StrEnum):
    """How a model is held to JSON: `strict` sends the schema, `on` asks for any JSON object, `tool` for a tool call."""

    STRICT = "strict"
    ON = "on"
    TOOL = "tool"
    OFF = "off"


class Model(Frozen):
    """Something that answers. `name` is its key in the policy, `model` its name on the wire."""

    name: str = ""
    provider: Annotated[str, Field(description="who serves it, such as openai, anthropic, deepseek")] = ""
    model: Annotated[str, Field(description="its name at the provider")] = ""
    api: Annotated[Api, Field(description="openai, anthropic, recorded or local")] = Api.OPENAI
    tier: Annotated[str, Field(description="local, small, mid, frontier, or a name of your own")] = ""
    base_url: Annotated[str | None, Field(description="https://host/v1")] = None
    api_key_env: Annotated[str | None, Field(description="the name of the variable that holds the key")] = None
    api_key_file: Annotated[str | None, Field(description="the path of the file that holds the key")] = None
    endpoints: Annotated[tuple[Endpoint, ...], Field(description="[{base_url: https://host/v1, weight: 1}]")] = ()
    clearance: Annotated[ClearanceName, Field(description="public, internal, confidential or restricted")] = (
        Clearance.INTERNAL
    )
    context_window: Annotated[int, Field(ge=256, le=10**9, description="tokens it can hold, 256 or more")] = 128_000
    params: Params = Params(max_tokens=1024)
    json_mode: Annotated[JsonMode, Field(description="strict, on, tool or off")] = JsonMode.STRICT
    logprobs: Annotated[bool | None, Field(description="false where it gives none")] = None
    price: Annotated[
        Price | Literal["free"] | None, Field(description="{input_mtok: 0.15, output_mtok: 0.6}, or free")
    ] = None
    limits: Limits = Limits()
    timeout: Annotated[Seconds, Field(description="a duration such as 30s")] = 30.0
    extra_body: dict[str, Any] = Field(default_factory=dict)
    extra_headers: dict[str, str] = Field(default_factory=dict, repr=False)  # some hold keys
    file: str | None = None  # recorded, local
    column: str | None = None  # recorded: the column (CSV) or field (JSONL) that holds this model's answer
    sha256: str | None = None  # of `file`; demanded where loading it could run code
    content: str = ""  # the sha256 that was found, once resolved
