"""API keys: read once at the start, from an environment variable or a file; never shown, never logged."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sluiceway.core.catalog import Endpoint, Model
from sluiceway.core.errors import InputError
from sluiceway.models import providers


class Key:
    """A secret; only `reveal` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Key(***)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a key is never pickled")


def read(model: Model, endpoint: Endpoint, environ: Mapping[str, str]) -> Key | None:
    """The key for `endpoint`, or None where none is needed.

    Its own `api_key_env` or `api_key_file` comes first, then the model's, then the provider's usual variable. A missing
    key is an InputError that names the variable; only an endpoint on this machine may do without the usual one.
    """
    where = f"model {model.name!r}"
    for source in (endpoint, model):
        if source.api_key_env is not None:
            return _checked(_from_env(source.api_key_env, environ, where), f"the variable {source.api_key_env}", where)
        if source.api_key_file is not None:
            return _checked(_from_file(source.api_key_file, where), f"the file {source.api_key_file}", where)
    known = providers.find(model.provider)
    if known is None or known.key_env is None:
        return None
    if not environ.get(known.key_env) and _on_this_machine(endpoint.base_url):
        return None
    return _checked(_from_env(known.key_env, environ, where), f"the variable {known.key_env}", where)


def _from_env(name: str, environ: Mapping[str, str], where: str) -> str:
    value = environ.get(name, "")
    if not value.strip():
        mend = f"export {name}=... before the start, or name another source with api_key_env or api_key_file"
        raise InputError("api_key", f"{where}: the variable {name} is not set. Mend: {mend}")
    return value


def _from_file(path: str, where: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not text"
        mend = "name a readable file that holds the key alone"
        raise InputError("api_key", f"{where}: api_key_file {path} can't be read ({problem}). Mend: {mend}") from None


def _checked(value: str, source: str, where: str) -> Key:
    value = value.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        mend = "it must be one line of printable ASCII without spaces"
        raise InputError("api_key", f"{where}: {source} does not hold a key. Mend: {mend}")
    return Key(value)


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
