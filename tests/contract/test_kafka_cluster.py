"""Topics are made as declared, and clusters are reached as told: on both brokers, then over each kind of security."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from base64 import urlsafe_b64encode

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from tests.support.apache_kafka import ApacheKafka
from tests.support.roles import Works, World, ids, until
from tests.support.topics import Address

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.kafka.topics import SIZE, Topic, apply, check, declared, sizes


def ours(prefix: str, **overrides: dict[str, object]) -> list[Topic]:
    """The declared topics under a name of this test's own."""
    from dataclasses import replace

    topics = declared(replicas=1, partitions=2, overrides=overrides)
    return [replace(topic, name=topic.name.replace("sluiceway.", prefix)) for topic in topics]


async def test_topics_are_made_as_declared_and_a_second_time_nothing_is_left_to_do(
    any_kafka: Address, prefix: str
) -> None:
    connection = read_connection(str(any_kafka))
    topics = ours(prefix)
    planned = await apply(connection, topics, dry_run=True)
    assert {difference.topic for difference in planned} == {topic.name for topic in topics}
    assert set((await sizes(connection, [topic.name for topic in topics], patience=0.0)).values()) == {None}
    assert await apply(connection, topics) == planned
    assert await check(connection, topics) == []
    assert await sizes(connection, [topic.name for topic in topics]) == {topic.name: topic.size for topic in topics}
    assert await apply(connection, topics) == []


async def test_larger_jobs_raise_every_size_and_what_others_have_set_stays(
    apache_kafka: ApacheKafka, prefix: str
) -> None:
    connection = read_connection(apache_kafka.bootstrap)
    await apply(connection, ours(prefix))
    admin = AIOKafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
    await admin.start()
    try:
        config = {**ours(prefix)[0].config, "segment.ms": "3600000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}jobs", config)])

        async def segment() -> str:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}jobs")])
            return str({entry[0]: entry[1] for entry in answer.resources[0][4]}["segment.ms"])

        async def set_by_hand() -> bool:
            return await segment() == "3600000"

        await until(set_by_hand, what="the broker has learnt of it")
        larger = ours(prefix, jobs={"partitions": 2, "config": {SIZE: 2_000_000}})
        changed = {(difference.topic, difference.field) for difference in await apply(connection, larger)}
        assert (f"{prefix}jobs", SIZE) in changed
        assert (f"{prefix}escalations", SIZE) in changed
        assert await check(connection, larger) == []
        assert await segment() == "3600000"
    finally:
        await admin.close()


async def test_missing_partitions_are_added_and_more_than_declared_is_fine(
    apache_kafka: ApacheKafka, prefix: str
) -> None:
    from dataclasses import replace

    connection = read_connection(apache_kafka.bootstrap)
    topics = ours(prefix)
    await apply(connection, topics)
    wider = [replace(topic, partitions=topic.partitions + 1) for topic in topics]
    assert {difference.field for difference in await apply(connection, wider)} == {"partitions"}
    assert await check(connection, wider) == []
    assert await check(connection, topics) == []


async def test_a_cluster_without_enough_brokers_is_told(apache_kafka: ApacheKafka, prefix: str) -> None:
    from dataclasses import replace

    topics = [replace(topic, replicas=3) for topic in ours(prefix)]
    with pytest.raises(InputError, match=r"the cluster refused: InvalidReplicationFactor"):
        await apply(read_connection(apache_kafka.bootstrap), topics)


def bearer_token() -> str:
    """An unsigned JSON Web Token for the user alice, as the test broker's listener takes it."""
    import json
    import time

    def part(content: dict[str, object]) -> str:
        return urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    # Whole seconds of the past: the broker refuses a token from its future, be it by half a millisecond.
    issued = int(time.time()) - 60
    return f"{part({'alg': 'none'})}.{part({'sub': 'alice', 'iat': issued, 'exp': issued + 3600})}."


def secured(kafka: ApacheKafka, kind: str) -> Connection:
    login = [f"sasl.username={kafka.user}", f"sasl.password={kafka.password}"]
    ca = f"ssl.ca.location={kafka.certificates.authority}"
    listener, pairs = {
        "PLAIN": ("SASL", ["security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", *login]),
        "SCRAM-SHA-256": ("SASL_SSL", ["security.protocol=SASL_SSL", "sasl.mechanism=SCRAM-SHA-256", *login, ca]),
        "SCRAM-SHA-512": ("SASL", ["security.protocol=SASL_PLAINTEXT", "sasl.mechanism=SCRAM-SHA-512", *login]),
        "OAUTHBEARER": (
            "SASL",
            [
                "security.protocol=SASL_PLAINTEXT",
                "sasl.mechanism=OAUTHBEARER",
                f"sasl.oauthbearer.token.provider={__name__}:bearer_token",
            ],
        ),
        "TLS": ("SSL", ["security.protocol=SSL", ca]),
        "mTLS": (
            "MTLS",
            [
                "security.protocol=SSL",
                ca,
                f"ssl.certificate.location={kafka.certificates.client}",
                f"ssl.key.location={kafka.certificates.client_key}",
            ],
        ),
    }[kind]
    return read_connection(kafka.addresses[listener], ["session.timeout.ms=6000", *pairs])


@pytest.mark.parametrize("kind", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "TLS", "mTLS"])
async def test_jobs_pass_over_a_secured_listener(secured_kafka: ApacheKafka, kind: str) -> None:
    world = World(secured_kafka.bootstrap)
    await world.make()
    await world.publish(ids(50))
    world.connection = secured(secured_kafka, kind)
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: role.stats().settled == 50)
        assert await role.stop(8.0)
    assert sorted(await world.read()) == ids(50)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_jobs_are_read_and_results_are_compressed_as_told(
    apache_kafka: ApacheKafka, compression: str
) -> None:
    world = World(apache_kafka.bootstrap)
    await world.make()
    await world.publish(ids(50), compression=compression)
    world.connection = world.connection.replaced(compression_type=compression)
    async with world.publisher() as publisher, world.role(Works(world.results), publisher) as role:
        await until(lambda: role.stats().settled == 50)
    assert sorted(await world.read()) == ids(50)


async def test_a_wrong_password_is_told_without_it(secured_kafka: ApacheKafka) -> None:
    pairs = ["security.protocol=SASL_PLAINTEXT", "sasl.username=alice", "sasl.password=hunter2"]
    with pytest.raises(InputError, match="Mend") as caught:
        await sizes(read_connection(secured_kafka.addresses["SASL"], pairs), ["t"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_the_embedded_broker_dies_with_the_process_that_started_it() -> None:
    """Even when that is killed: nothing is left running."""
    script = (
        "import asyncio\nfrom sluiceway.kafka.embedded import EmbeddedBroker\n"
        "async def main():\n    async with EmbeddedBroker() as broker:\n"
        "        print(broker.pid, flush=True)\n        await asyncio.Event().wait()\nasyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        broker = int(parent.stdout.readline())
        watch = os.pidfd_open(broker)
        parent.send_signal(signal.SIGKILL)
        import select

        assert select.select([watch], [], [], 10.0)[0], "the broker outlives its parent"
        os.close(watch)


async def test_two_embedded_brokers_never_meet() -> None:
    from sluiceway.kafka.embedded import EmbeddedBroker

    async with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.bootstrap != other.bootstrap
        name = f"t{uuid.uuid4().hex}."
        await apply(read_connection(one.bootstrap), ours(name))
        found = await sizes(read_connection(other.bootstrap), [f"{name}jobs"], patience=0.0)
        assert found == {f"{name}jobs": None}
    assert one.pid is None
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(*one.bootstrap.split(":"))
