"""How to reach a Kafka cluster: from `-b`, `-X key=value`, `-F FILE` and the environment to one frozen Connection.

Names are librdkafka's (`security.protocol`, `sasl.mechanism`, `ssl.ca.location`); where librdkafka has two names for
one setting both are read. Later sources win: environment, file, `-X`, `-b`. Secrets never appear in a repr or an error.

Source of the names and defaults: librdkafka's CONFIGURATION.md and Apache Kafka's client configuration reference.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from sluiceway.core.errors import InputError

_SECRETS = frozenset({"sasl.password", "ssl.key.password"})
_ALIASES = {
    "sasl.mechanisms": "sasl.mechanism",
    "metadata.broker.list": "bootstrap.servers",
    "linger.ms": "queue.buffering.max.ms",
    "compression.codec": "compression.type",
}
_TEXT = frozenset(
    {
        "bootstrap.servers",
        "client.id",
        "security.protocol",
        "sasl.mechanism",
        "sasl.username",
        "sasl.password",
        "sasl.oauthbearer.token.provider",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
        "compression.type",
        "client.rack",
    }
)
_FLAGS = frozenset({"enable.ssl.certificate.verification", "enable.idempotence"})
_NUMBERS = {  # default, lowest, highest
    "session.timeout.ms": (30_000, 1, 3_600_000),
    "heartbeat.interval.ms": (3_000, 1, 3_600_000),
    "rebalance.timeout.ms": (60_000, 1, 3_600_000),
    "request.timeout.ms": (30_000, 1, 900_000),
    "fetch.wait.max.ms": (500, 0, 300_000),
    "fetch.min.bytes": (1, 1, 100_000_000),
    # With aiokafka's 50 MB each fetch of a backlog brings as much as its partitions may: a worker grew by tens of MB.
    "fetch.max.bytes": (4_194_304, 1, 2_147_483_135),
    "max.partition.fetch.bytes": (1_048_576, 1, 1_000_000_000),
    "metadata.max.age.ms": (300_000, 1, 86_400_000),
    "connections.max.idle.ms": (540_000, 0, 2_147_483_647),
    "retry.backoff.ms": (100, 1, 300_000),
    "queue.buffering.max.ms": (0, 0, 900_000),
    "batch.size": (1_000_000, 1, 2_147_483_647),
}
_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
NAMES = tuple(sorted(_TEXT | _FLAGS | set(_NUMBERS) | set(_ALIASES)))
ENVIRONMENT = {"SLUICEWAY_" + name.replace(".", "_").upper(): name for name in NAMES}


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Calls the user's provider for each new SASL handshake."""

    def __init__(self, provide: Callable[[], str | Awaitable[str]]) -> None:
        self._provide = provide

    async def token(self) -> str:
        token = self._provide()
        return token if isinstance(token, str) else await token


@dataclass(frozen=True, slots=True)
class Connection:
    """Validated settings. `settings` holds what was given, by its first librdkafka name."""

    settings: Mapping[str, str] = field(repr=False)

    def __repr__(self) -> str:
        shown = {name: "***" if name in _SECRETS else value for name, value in sorted(self.settings.items())}
        return f"Connection({shown})"

    @property
    def bootstrap(self) -> str:
        return self.settings["bootstrap.servers"]

    @property
    def protocol(self) -> str:
        return self.settings.get("security.protocol", "PLAINTEXT").upper()

    @property
    def mechanism(self) -> str:
        return self.settings.get("sasl.mechanism", "PLAIN").upper()

    def number(self, name: str) -> int:
        """A numeric setting, given or default, in the unit that its name says."""
        return int(self.settings.get(name, _NUMBERS[name][0]))

    def flag(self, name: str, default: bool = True) -> bool:
        return self.settings.get(name, str(default)).lower() == "true"

    def replaced(self, **settings: str) -> Connection:
        """The same with other settings; `_` in a keyword stands for `.`."""
        return _checked({**self.settings, **{name.replace("_", "."): value for name, value in settings.items()}})

    def client(self) -> dict[str, Any]:
        """Keyword arguments of every aiokafka client: consumer, producer and admin."""
        return {
            "bootstrap_servers": self.bootstrap,
            "client_id": self.settings.get("client.id", "sluiceway"),
            "request_timeout_ms": self.number("request.timeout.ms"),
            "metadata_max_age_ms": self.number("metadata.max.age.ms"),
            "connections_max_idle_ms": self.number("connections.max.idle.ms"),
            "retry_backoff_ms": self.number("retry.backoff.ms"),
            **self.security(),
        }

    def security(self) -> dict[str, Any]:
        """The part of `client()` that is about TLS and SASL."""
        found: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol.endswith("SSL"):
            found["ssl_context"] = self.ssl_context()
        if self.protocol.startswith("SASL"):
            found["sasl_mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                found["sasl_oauth_token_provider"] = _Token(_provider(self.settings["sasl.oauthbearer.token.provider"]))
            else:
                found["sasl_plain_username"] = self.settings["sasl.username"]
                found["sasl_plain_password"] = self.settings["sasl.password"]
        return found

    def consumer(self) -> dict[str, Any]:
        """Keyword arguments of a group consumer, group and topics apart."""
        session = self.number("session.timeout.ms")
        return {
            **self.client(),
            "session_timeout_ms": session,
            # A third of the session, as Apache Kafka advises, unless it is set.
            "heartbeat_interval_ms": int(self.settings.get("heartbeat.interval.ms", min(3_000, max(1, session // 3)))),
            "rebalance_timeout_ms": self.number("rebalance.timeout.ms"),
            "fetch_max_wait_ms": self.number("fetch.wait.max.ms"),
            "fetch_min_bytes": self.number("fetch.min.bytes"),
            "fetch_max_bytes": self.number("fetch.max.bytes"),
            "max_partition_fetch_bytes": self.number("max.partition.fetch.bytes"),
            "client_rack": self.settings.get("client.rack"),
        }

    def producer(self) -> dict[str, Any]:
        """Keyword arguments of the producer, without idempotence and sizes: the publisher decides those."""
        compression = self.settings.get("compression.type", "none")
        return {
            **self.client(),
            "linger_ms": self.number("queue.buffering.max.ms"),
            "max_batch_size": self.number("batch.size"),
            "compression_type": None if compression == "none" else compression,
        }

    def ssl_context(self) -> ssl.SSLContext:
        """Raises InputError where a file is missing or does not fit."""
        settings = self.settings
        try:
            context = ssl.create_default_context(cafile=settings.get("ssl.ca.location"))
        except OSError as error:
            raise InputError("connection", f"ssl.ca.location: {_os_reason(error)}. Mend: name a PEM file") from None
        if not self.flag("enable.ssl.certificate.verification"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif settings.get("ssl.endpoint.identification.algorithm", "https").lower() in ("none", ""):
            context.check_hostname = False
        certificate = settings.get("ssl.certificate.location")
        if certificate:
            try:
                context.load_cert_chain(
                    certificate, settings.get("ssl.key.location"), settings.get("ssl.key.password", "")
                )
            except OSError as error:  # ssl.SSLError is one
                raise InputError(
                    "connection",
                    f"ssl.certificate.location or ssl.key.location: {_os_reason(error)}."
                    " Mend: PEM files that belong together, and ssl.key.password if the key has one",
                ) from None
        return context


def read_connection(
    bootstrap: str | None = None,
    pairs: Iterable[str] = (),
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """The one Connection that all sources make: `environment`, then `file` (-F), `pairs` (-X), `bootstrap` (-b).

    Raises InputError (`connection`) for an unknown name, a value that does not fit, or a missing bootstrap server.
    """
    settings: dict[str, str] = {}
    variables = environment or {}
    for variable, name in ENVIRONMENT.items():
        if variable in variables:
            settings[_ALIASES.get(name, name)] = variables[variable]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except OSError as error:
            raise InputError("connection", f"{file}: {_os_reason(error)}. Mend: -F names a properties file") from None
        for number, line in enumerate(lines, 1):
            if line.strip() and line.strip()[0] not in "#!":
                _add(settings, line.strip(), f"{file}:{number}")
    for pair in pairs:
        _add(settings, pair, "-X")
    if bootstrap:
        settings["bootstrap.servers"] = bootstrap
    return _checked(settings)


def _add(settings: dict[str, str], pair: str, place: str) -> None:
    name, equals, value = pair.partition("=")
    name = name.strip()
    if not equals:
        raise InputError("connection", f"{place}: no '=' in it. Mend: key=value")
    if name not in NAMES:
        raise InputError("connection", f"{place}: unknown setting {name!r}. Mend: {_nearest(name)}")
    settings[_ALIASES.get(name, name)] = value.strip()


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, NAMES, 3)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(NAMES)}"


def _checked(settings: Mapping[str, str]) -> Connection:
    def fail(detail: str) -> InputError:
        return InputError("connection", detail)

    if not settings.get("bootstrap.servers"):
        raise fail("no Kafka cluster given. Mend: -b HOST:PORT, or SLUICEWAY_BOOTSTRAP_SERVERS, or -b embedded")
    for name, value in settings.items():
        if name in _NUMBERS:
            _, low, high = _NUMBERS[name]
            if not value.isdigit() or not low <= int(value) <= high:
                raise fail(f"{name}={value}: not a whole number from {low} to {high}. Mend: give one")
        elif name in _FLAGS and value.lower() not in ("true", "false"):
            raise fail(f"{name}={value}: Mend: true or false")
    compression = settings.get("compression.type", "none")
    if compression not in _COMPRESSIONS:
        raise fail(f"compression.type={compression}: Mend: one of {', '.join(_COMPRESSIONS)}")
    connection = Connection(dict(settings))
    if connection.protocol not in _PROTOCOLS:
        raise fail(f"security.protocol={connection.protocol}: Mend: one of {', '.join(_PROTOCOLS)}")
    if connection.protocol.startswith("SASL"):
        if connection.mechanism not in _MECHANISMS:
            raise fail(f"sasl.mechanism={connection.mechanism}: Mend: one of {', '.join(_MECHANISMS)}")
        if connection.mechanism == "OAUTHBEARER":
            needed = ["sasl.oauthbearer.token.provider"]
        else:
            needed = ["sasl.username", "sasl.password"]
        missing = [name for name in needed if not settings.get(name)]
        if missing:
            raise fail(f"sasl.mechanism={connection.mechanism} needs {' and '.join(missing)}. Mend: set it by -X, -F "
                       "or its SLUICEWAY_ variable")  # fmt: skip
        if connection.mechanism == "OAUTHBEARER":
            _provider(settings["sasl.oauthbearer.token.provider"])
    elif any(name.startswith("sasl.") for name in settings):
        raise fail(f"sasl settings with security.protocol={connection.protocol}: they would not be used."
                   " Mend: security.protocol=SASL_SSL (or SASL_PLAINTEXT)")  # fmt: skip
    if connection.protocol.endswith("SSL"):
        connection.ssl_context()
    elif any(name.startswith("ssl.") for name in settings):
        raise fail(f"ssl settings with security.protocol={connection.protocol}: they would not be used."
                   " Mend: security.protocol=SSL (or SASL_SSL)")  # fmt: skip
    return connection


def _provider(path: str) -> Callable[[], str | Awaitable[str]]:
    """`module:callable`, which returns a token, or an awaitable of one."""
    module, colon, name = path.partition(":")
    try:
        provide = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise InputError(
            "connection", f"sasl.oauthbearer.token.provider={path}: {error}. Mend: module:callable, importable here"
        ) from None
    if not callable(provide):
        raise InputError("connection", f"sasl.oauthbearer.token.provider={path}: Mend: module:callable")
    found: Callable[[], str | Awaitable[str]] = provide
    return found


def _os_reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
