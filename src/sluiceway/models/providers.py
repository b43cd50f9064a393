"""Known providers: where each one is served, in which wire format, and which variable usually holds its key.

A table, nothing else. A provider that is not in it is free text: the policy then gives `api` and `base_url` itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sluiceway.core.catalog import Api, Endpoint, JsonMode, Model


@dataclass(frozen=True, slots=True)
class Provider:
    """`key_env` None: it asks for no key. `base_url` None: each account has its own, so the policy must name it."""

    name: str
    api: Api
    base_url: str | None
    key_env: str | None
    json_mode: JsonMode = JsonMode.STRICT


_OPENAI = Api.OPENAI

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("openai", _OPENAI, "https://api.openai.com/v1", "OPENAI_API_KEY"),
        Provider("azure.ai.openai", _OPENAI, None, "AZURE_OPENAI_API_KEY"),
        Provider("anthropic", Api.ANTHROPIC, "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        Provider("deepseek", _OPENAI, "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", JsonMode.ON),
        Provider("groq", _OPENAI, "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        Provider("fireworks", _OPENAI, "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
        Provider("together", _OPENAI, "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        Provider("mistral", _OPENAI, "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
        Provider("openrouter", _OPENAI, "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        Provider("xai", _OPENAI, "https://api.x.ai/v1", "XAI_API_KEY"),
        Provider("ollama", _OPENAI, "http://localhost:11434/v1", None),
        Provider("vllm", _OPENAI, "http://localhost:8000/v1", None),
        Provider("llama.cpp", _OPENAI, "http://localhost:8080/v1", None),
        Provider("recorded", Api.RECORDED, None, None),
        Provider("local", Api.LOCAL, None, None),
    )
}

# OpenTelemetry's names for providers that users, and our own table, call by the shorter one.
_SPELLINGS = {
    "mistral_ai": "mistral",
    "x_ai": "xai",
    "x-ai": "xai",
    "fireworks_ai": "fireworks",
    "together_ai": "together",
}


def find(provider: str) -> Provider | None:
    """The known provider of that name, or None for free text."""
    name = provider.lower()
    return PROVIDERS.get(_SPELLINGS.get(name, name))


def endpoints_of(model: Model) -> tuple[Endpoint, ...]:
    """The URLs that serve `model`, in order: its `endpoints`, else its `base_url`, else its provider's own.

    Empty for `recorded` and `local` models, and where nobody knows a URL.
    """
    if model.api in (Api.RECORDED, Api.LOCAL):
        return ()
    if model.endpoints:
        return model.endpoints
    known = find(model.provider)
    url = model.base_url or (known.base_url if known and known.api is model.api else None)
    if url is None:
        return ()
    return (Endpoint(base_url=url, api_key_env=model.api_key_env, api_key_file=model.api_key_file),)


def origin(url: str) -> str:
    """`scheme://host[:port]` of a URL: what may be shown of an endpoint."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"
