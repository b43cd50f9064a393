"""What a user may say about a cluster, by which name, and what they are told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import ENVIRONMENT, NAMES, read_connection


def test_later_sources_win_environment_then_file_then_pairs_then_the_address(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("# a comment\n\nsession.timeout.ms = 7000\nclient.id=file\nfetch.min.bytes=2\n")
    environment = {
        "SLUICEWAY_BOOTSTRAP_SERVERS": "env:1",
        "SLUICEWAY_CLIENT_ID": "env",
        "SLUICEWAY_SESSION_TIMEOUT_MS": "5000",
        "SLUICEWAY_RETRY_BACKOFF_MS": "77",
        "UNRELATED": "x",
    }
    found = read_connection("given:2", ["client.id=pair"], file, environment)
    assert found.bootstrap == "given:2"
    assert found.settings["client.id"] == "pair"
    assert found.number("session.timeout.ms") == 7000
    assert found.number("retry.backoff.ms") == 77
    assert found.consumer()["fetch_min_bytes"] == 2
    assert read_connection(environment=environment).bootstrap == "env:1"


def test_every_name_has_its_variable_and_no_two_share_one() -> None:
    assert len(ENVIRONMENT) == len(NAMES)
    assert ENVIRONMENT["SLUICEWAY_SSL_CA_LOCATION"] == "ssl.ca.location"


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["sasl.mecanism=PLAIN"], "did you mean sasl.mechanism"),
        (["frobnicate=1"], "one of"),
        (["client.id"], "key=value"),
        (["session.timeout.ms=soon"], "whole number"),
        (["session.timeout.ms=0"], "from 1"),
        (["enable.ssl.certificate.verification=maybe"], "true or false"),
        (["security.protocol=TLS"], "SASL_SSL"),
        (["compression.type=zip"], "lz4"),
        (["security.protocol=SASL_SSL", "sasl.mechanism=GSSAPI"], "SCRAM-SHA-256"),
        (["security.protocol=SASL_PLAINTEXT", "sasl.username=me"], "sasl.password"),
        (["sasl.username=me", "sasl.password=pw"], "would not be used"),
        (["ssl.ca.location=/ca.pem"], "would not be used"),
        (["security.protocol=SSL", "ssl.ca.location=/no/such/file"], "ssl.ca.location"),
        (["security.protocol=SSL", "ssl.certificate.location=/no/such/file"], "ssl.certificate.location"),
        (["security.protocol=SASL_SSL", "sasl.mechanism=OAUTHBEARER"], "token.provider"),
        (
            ["security.protocol=SASL_SSL", "sasl.mechanism=OAUTHBEARER", "sasl.oauthbearer.token.provider=no.such:x"],
            "module:callable",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_mend(pairs: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_connection("k:1", pairs)


def test_without_an_address_the_three_ways_to_give_one_are_told() -> None:
    with pytest.raises(InputError, match=r"-b.*SLUICEWAY_BOOTSTRAP_SERVERS.*embedded"):
        read_connection()


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.properties"):
        read_connection("k:1", file=tmp_path / "nowhere.properties")


def test_secrets_are_in_no_repr_and_in_no_error() -> None:
    pairs = ["security.protocol=SASL_PLAINTEXT", "sasl.username=me", "sasl.password=hunter2"]
    connection = read_connection("k:1", pairs)
    assert "hunter2" not in repr(connection)
    assert "***" in repr(connection)
    with pytest.raises(InputError) as caught:
        read_connection("k:1", [*pairs, "sasl.mechanism=SCRAM"])
    assert "hunter2" not in str(caught.value)


def test_librdkafkas_second_names_are_read() -> None:
    pairs = ["security.protocol=sasl_plaintext", "sasl.mechanisms=SCRAM-SHA-512", "sasl.username=u", "sasl.password=p"]
    found = read_connection("k:1", pairs).client()
    assert found["sasl_mechanism"] == "SCRAM-SHA-512"
    assert found["security_protocol"] == "SASL_PLAINTEXT"


async def give_token() -> str:
    return "token-1"


async def test_a_token_provider_is_found_by_its_import_path_and_asked_each_time() -> None:
    pairs = [
        "security.protocol=SASL_PLAINTEXT",
        "sasl.mechanism=OAUTHBEARER",
        f"sasl.oauthbearer.token.provider={__name__}:give_token",
    ]
    provider = read_connection("k:1", pairs).client()["sasl_oauth_token_provider"]
    assert await provider.token() == "token-1"


def test_the_heartbeat_follows_a_short_session() -> None:
    assert read_connection("k:1", ["session.timeout.ms=6000"]).consumer()["heartbeat_interval_ms"] == 2000
    assert read_connection("k:1").consumer()["heartbeat_interval_ms"] == 3000


def test_a_replaced_setting_is_checked_like_any() -> None:
    connection = read_connection("k:1")
    assert connection.replaced(session_timeout_ms="9000").number("session.timeout.ms") == 9000
    with pytest.raises(InputError):
        connection.replaced(session_timeout_ms="never")
