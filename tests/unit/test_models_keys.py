"""API keys and targets: where they come from, and that they never show."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from sluiceway.core.catalog import Api, Endpoint, Model
from sluiceway.core.errors import InputError
from sluiceway.models import providers
from sluiceway.models.keys import Key, read
from sluiceway.models.transport import target


def model(**given: Any) -> Model:
    return Model(**{"name": "cheap", "provider": "openai", "model": "m", **given})


PUBLIC = Endpoint(base_url="https://api.openai.com/v1")
LOCAL = Endpoint(base_url="http://127.0.0.1:8000/v1")


def revealed(key: Key | None) -> str | None:
    return key.reveal() if key else None


def test_the_closest_source_of_a_key_wins(tmp_path: Path) -> None:
    """Endpoint, then model, then the provider's usual variable."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environ = {"OPENAI_API_KEY": "usual", "MINE": "mine"}
    own = Endpoint(base_url="https://x/v1", api_key_file=str(file))
    assert revealed(read(model(api_key_env="MINE"), own, environ)) == "from-file"
    assert revealed(read(model(api_key_env="MINE"), PUBLIC, environ)) == "mine"
    assert revealed(read(model(), PUBLIC, environ)) == "usual"


def test_a_missing_key_is_an_input_error_that_names_the_variable() -> None:
    """And the mend; a file likewise."""
    with pytest.raises(InputError, match=r"OPENAI_API_KEY is not set.*Mend: export OPENAI_API_KEY"):
        read(model(), PUBLIC, {})
    with pytest.raises(InputError, match="MINE"):
        read(model(api_key_env="MINE"), LOCAL, {"OPENAI_API_KEY": "x"})
    with pytest.raises(InputError, match="api_key_file /nowhere"):
        read(model(api_key_file="/nowhere"), PUBLIC, {})


def test_servers_without_keys_and_servers_on_this_machine_need_none() -> None:
    """Ollama, vLLM, llama.cpp, free-text providers, and a fake on the loopback address."""
    assert read(model(provider="vllm"), PUBLIC, {}) is None
    assert read(model(provider="my-own"), PUBLIC, {}) is None
    assert read(model(), LOCAL, {}) is None
    assert revealed(read(model(), LOCAL, {"OPENAI_API_KEY": "k"})) == "k"


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a b", "\u00e9", "a\x00"])
def test_a_key_that_would_break_a_header_is_refused_without_showing_it(value: str) -> None:
    """One line of printable ASCII."""
    with pytest.raises(InputError) as error:
        read(model(api_key_env="K"), PUBLIC, {"K": value})
    assert value not in str(error.value)


def test_a_key_never_shows() -> None:
    """Neither in text nor in a pickle; nor does a target show its headers."""
    key = Key("sk-secret")
    assert "secret" not in f"{key} {key!r} {[key]}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert "secret" not in repr(target("https://h/v1", {"authorization": "Bearer sk-secret"}))


@pytest.mark.parametrize(
    "url", ["ftp://h/v1", "file:///etc/passwd", "h/v1", "https://", "https://u:p@h/v1", "http://[::1", ""]
)
def test_only_plain_http_urls_are_called(url: str) -> None:
    """The scheme, a host, and no password in it."""
    with pytest.raises(InputError):
        target(url, {})


@pytest.mark.parametrize(
    "headers", [{"x-a": "1\r\nx-b: 2"}, {"x-a": "\u2603"}, {"x a": "1"}, {"x-a\r\n": "1"}, {"": "1"}]
)
def test_a_header_that_would_split_the_request_is_refused(headers: dict[str, str]) -> None:
    """At the start, not at the first call."""
    with pytest.raises(InputError):
        target("https://h/v1", headers)


def test_each_known_provider_says_where_it_is_and_how_it_speaks() -> None:
    """A URL or an own endpoint, a key variable or none."""
    for name, provider in providers.PROVIDERS.items():
        assert providers.find(name.upper()) is provider
        if provider.base_url is not None:
            assert target(provider.base_url, {}).url.host
    assert providers.find("x_ai") is providers.PROVIDERS["xai"]
    assert providers.find("my-own") is None
    assert providers.endpoints_of(model())[0].base_url == "https://api.openai.com/v1"
    assert providers.endpoints_of(model(provider="my-own")) == ()
    assert providers.endpoints_of(model(base_url="http://h/v1"))[0].base_url == "http://h/v1"
    assert providers.endpoints_of(model(api=Api.LOCAL, file="x")) == ()
    assert providers.origin("https://user@Host.example:8443/v1?x=1") == "https://host.example:8443"
