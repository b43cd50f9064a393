"""The real Apache Kafka and the topic readers that other tests stand on."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from tests.support.apache_kafka import ApacheKafka, free_ports
from tests.support.certificates import Certificates
from tests.support.topics import Address, Reader, committed, create_topics, publish, read_topic


async def test_what_is_published_is_read_back_whole(any_kafka: Address, prefix: str) -> None:
    topic = f"{prefix}jobs"
    await create_topics(any_kafka, {topic: 3})
    sent = [(f"k{number}".encode(), b"v" * number) for number in range(300)]
    acked = await publish(any_kafka, topic, sent, headers=[("h", b"1"), ("h", b"2")])
    seen = await read_topic(any_kafka, topic)
    assert len(set(acked)) == 300
    assert {(record.partition, record.offset) for record in seen} == set(acked)
    assert {(record.key, record.value) for record in seen} == set(sent)
    assert seen[0].header("h") == "2"


async def test_a_reader_goes_on_where_it_ended_and_waits_for_more(any_kafka: Address, prefix: str) -> None:
    topic = f"{prefix}jobs"
    await create_topics(any_kafka, {topic: 2})
    async with Reader(any_kafka, topic) as reader:
        assert await reader.read() == []
        waiting = asyncio.create_task(reader.count(5))
        await publish(any_kafka, topic, [b"x"] * 5)
        assert len(await waiting) == 5
        await publish(any_kafka, topic, [b"y"] * 2)
        assert [record.value for record in await reader.read()] == [b"y"] * 2
        assert len(reader.seen) == 7


async def test_committed_offsets_and_metadata_are_seen_from_the_outside(apache_kafka: ApacheKafka, prefix: str) -> None:
    topic = f"{prefix}jobs"
    await create_topics(apache_kafka.bootstrap, {topic: 2})
    consumer = AIOKafkaConsumer(
        bootstrap_servers=apache_kafka.bootstrap, group_id=f"{prefix}g", enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([TopicPartition(topic, 1)])
    await consumer.commit({TopicPartition(topic, 1): OffsetAndMetadata(7, "note")})
    await consumer.stop()
    assert await committed(apache_kafka.bootstrap, f"{prefix}g", topic) == {1: OffsetAndMetadata(7, "note")}


@pytest.mark.apache
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "killed"])
async def test_a_restarted_broker_has_its_data_and_address(mortal_kafka: ApacheKafka, prefix: str, clean: bool) -> None:
    topic, before = f"{prefix}jobs", mortal_kafka.bootstrap
    await create_topics(before, {topic: 1})
    await publish(before, topic, [b"1", b"2"])
    await asyncio.to_thread(mortal_kafka.restart, clean=clean)
    assert mortal_kafka.bootstrap == before
    assert [record.value for record in await read_topic(before, topic)] == [b"1", b"2"]


async def test_a_frozen_broker_answers_nothing_until_it_is_thawed(apache_kafka: ApacheKafka, prefix: str) -> None:
    topic = f"{prefix}jobs"
    await create_topics(apache_kafka.bootstrap, {topic: 1})
    await publish(apache_kafka.bootstrap, topic, [b"1"])
    apache_kafka.freeze()
    try:
        reading = asyncio.create_task(read_topic(apache_kafka.bootstrap, topic))
        done, _ = await asyncio.wait([reading], timeout=1)
        assert not done
    finally:
        apache_kafka.thaw()
    assert len(await reading) == 1


async def _answers(bootstrap: str, **options: Any) -> bool:
    """Whether a client with these options is let in."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000, **options)
    try:
        await admin.start()
        await admin.list_topics()
    except KafkaError:
        return False
    finally:
        await admin.close()
    return True


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL", "SASL_SSL"])
async def test_sasl_listeners_take_the_user_and_no_other(
    secured_kafka: ApacheKafka, mechanism: str, listener: str
) -> None:
    options: dict[str, Any] = {"sasl_mechanism": mechanism, "sasl_plain_username": secured_kafka.user}
    if listener == "SASL_SSL":
        context = ssl.create_default_context(cafile=str(secured_kafka.certificates.authority))
        options |= {"security_protocol": "SASL_SSL", "ssl_context": context}
    else:
        options |= {"security_protocol": "SASL_PLAINTEXT"}
    address = secured_kafka.addresses[listener]
    assert await _answers(address, **options, sasl_plain_password=secured_kafka.password)
    assert not await _answers(address, **options, sasl_plain_password="wrong")  # noqa: S106  a password that must fail


def _tls(certificates: Certificates, *, client: bool = False, other: bool = False) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=str(certificates.other_authority if other else certificates.authority))
    if client:
        context.load_cert_chain(certificates.client, certificates.client_key)
    return {"security_protocol": "SSL", "ssl_context": context}


async def test_tls_listeners_show_our_certificate_and_mtls_wants_the_clients(secured_kafka: ApacheKafka) -> None:
    tls, mtls = secured_kafka.addresses["SSL"], secured_kafka.addresses["MTLS"]
    certificates = secured_kafka.certificates
    assert await _answers(tls, **_tls(certificates))
    assert not await _answers(tls, **_tls(certificates, other=True))
    assert await _answers(mtls, **_tls(certificates, client=True))
    assert not await _answers(mtls, **_tls(certificates))


async def test_an_acl_shuts_a_topic_to_the_user(secured_kafka: ApacheKafka, prefix: str) -> None:
    topic, name = f"{prefix}results", f"User:{secured_kafka.user}"
    await create_topics(secured_kafka.bootstrap, {topic: 1})
    await asyncio.to_thread(
        secured_kafka.tool, "org.apache.kafka.tools.AclCommand", "--bootstrap-server", secured_kafka.bootstrap,
        "--add", "--deny-principal", name, "--operation", "Write", "--topic", topic,
    )  # fmt: skip
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": secured_kafka.user,
        "sasl_plain_password": secured_kafka.password,
        "request_timeout_ms": 5000,
    }
    await publish(secured_kafka.bootstrap, topic, [b"by a super user"])
    with pytest.raises(KafkaError):
        await publish(secured_kafka.addresses["SASL"], topic, [b"by alice"], options=options)


def test_free_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32_768


@pytest.mark.slow
def test_a_broker_stands_ten_starts_and_kills(apache_kafka: ApacheKafka, tmp_path: Path) -> None:
    """Start and stop again and again on one data folder; each start ends with an answer of the coordinator."""
    del apache_kafka  # only to skip where Apache Kafka is missing
    kafka = ApacheKafka(tmp_path, lapse=3.0)
    try:
        for _ in range(10):
            kafka.start()
            assert asyncio.run(_answers(kafka.bootstrap))
            kafka.kill()
    finally:
        kafka.stop()
