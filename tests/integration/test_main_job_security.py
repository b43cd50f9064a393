"""Publish and work through secured listeners, each setting given once by -X, by -F and by the environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import ESCALATIONS, RESULTS
from tests.support.processes import run_sluiceway
from tests.support.rig import SETTINGS, Rig, models, triage
from tests.support.tickets import bank_tickets
from tests.support.topics import Address

Fakes = tuple[FakeProcess, FakeProcess]

COUNT = 40


@dataclass(frozen=True)
class Way:
    """One listener and how a user tells about it. `settings` has names of paths and secrets in braces."""

    listener: str
    by: str
    settings: tuple[tuple[str, str], ...]


_USER = (("sasl.username", "{user}"), ("sasl.password", "{password}"))
_CA = (("ssl.ca.location", "{authority}"),)
WAYS = {
    "PLAIN": Way("SASL", "-X", (("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanism", "PLAIN"), *_USER)),
    "SCRAM-256": Way(
        "SASL", "-F", (("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanism", "SCRAM-SHA-256"), *_USER)
    ),
    "SCRAM-512": Way(
        "SASL_SSL",
        "environment",
        (("security.protocol", "SASL_SSL"), ("sasl.mechanism", "SCRAM-SHA-512"), *_USER, *_CA),
    ),
    "TLS": Way("SSL", "-X", (("security.protocol", "SSL"), *_CA)),
    "mTLS": Way(
        "MTLS",
        "-F",
        (
            ("security.protocol", "SSL"),
            ("ssl.certificate.location", "{client}"),
            ("ssl.key.location", "{client_key}"),
            *_CA,
        ),
    ),
}


@pytest.fixture
async def secured_rig(secured_kafka: ApacheKafka, tmp_path: Path) -> AsyncIterator[Rig]:
    """Its own clients use the plain listener; workers are told another."""
    rig = Rig(Address(secured_kafka.bootstrap, "apache"), tmp_path)
    yield rig
    await rig.close()


def told(way: Way, kafka: ApacheKafka, folder: Path, **changes: str) -> tuple[list[str], dict[str, str]]:
    """The command's options and environment for this way in."""
    certificates = kafka.certificates
    values = {
        "user": kafka.user,
        "password": kafka.password,
        "authority": str(certificates.authority),
        "client": str(certificates.client),
        "client_key": str(certificates.client_key),
    } | changes
    session = tuple(pair.split("=", 1) for pair in SETTINGS["apache"])
    pairs = [(name, value.format(**values)) for name, value in (*way.settings, *session)]
    address = kafka.addresses[way.listener]
    if way.by == "-X":
        return ["-b", address, *(part for name, value in pairs for part in ("-X", f"{name}={value}"))], {}
    if way.by == "-F":
        file = folder / "client.properties"
        file.write_text("# written by a test\n" + "".join(f"{name}={value}\n" for name, value in pairs))
        return ["-b", address, "-F", str(file)], {}
    named = {f"SLUICEWAY_{name.replace('.', '_').upper()}": value for name, value in pairs}
    return [], {"SLUICEWAY_BOOTSTRAP_SERVERS": address, **named}


@pytest.mark.parametrize("name", WAYS)
async def test_jobs_are_published_and_answered_through_a_secured_listener(
    secured_rig: Rig, secured_kafka: ApacheKafka, fakes: Fakes, tmp_path: Path, name: str
) -> None:
    """`publish` and `work` reach the cluster by the settings given, and no secret is in what they say."""
    rig, (cheap, frontier) = secured_rig, fakes
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage()})
    tickets = tmp_path / "tickets.jsonl"
    tickets.write_bytes(
        b"".join(orjson.dumps({"id": f"t-{n}", "text": text}) + b"\n" for n, text in enumerate(bank_tickets(COUNT)))
    )
    options, environment = told(WAYS[name], secured_kafka, tmp_path)
    done = run_sluiceway("publish", str(tickets), "--task", "ticket-triage", *options, environment=environment)
    assert done.returncode == 0, done.stderr
    worker = rig.worker(connected=options, environment=environment)
    everybody = {f"t-{n}" for n in range(COUNT)}
    await rig.until(lambda seen: seen.ids(RESULTS) >= everybody, within=40)
    assert await rig.stopped(worker) == [0]
    seen = await rig.settled()
    assert 0 < len(seen.ids(ESCALATIONS)) < COUNT
    said = worker.text() + done.stdout + done.stderr
    assert secured_kafka.password not in said


@pytest.mark.parametrize(
    ("name", "changes"),
    [("PLAIN", {"password": "wrong-canary"}), ("SCRAM-512", {"password": "wrong-canary"}), ("TLS", {"authority": ""})],
    ids=["plain", "scram", "tls"],
)
async def test_a_worker_that_is_not_let_in_says_so_and_ends(
    secured_rig: Rig, secured_kafka: ApacheKafka, tmp_path: Path, name: str, changes: dict[str, str]
) -> None:
    """Wrong credentials or an unknown authority: one message with a mend, no traceback, no secret, exit code not 0."""
    rig = secured_rig
    rig.write(models("http://127.0.0.1:9", "http://127.0.0.1:9"), {"ticket-triage": triage()})
    if "authority" in changes:
        changes = {"authority": str(secured_kafka.certificates.other_authority)}
    options, environment = told(WAYS[name], secured_kafka, tmp_path, **changes)
    worker = rig.worker(connected=options, environment=environment)
    code = worker.wait(40)
    said = worker.text()
    assert code in (1, 2)
    assert "Mend:" in said
    assert "Traceback" not in said
    assert "wrong-canary" not in said
