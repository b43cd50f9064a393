"""A real Apache Kafka (KRaft, one node, data on disk), for tests. Needs Java 17 and Maven; the pom lies in kafka/.

The jars are copied once into a cache outside the repository. The broker keeps its ports and its data over restarts,
so that a kill and a restart are what they are in life. `secured=True` adds four listeners to the plain one:

    SASL      SASL_PLAINTEXT   PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER (unsigned tokens)
    SASL_SSL  the same over TLS
    SSL       TLS, the client shows no certificate
    MTLS      TLS, the client must show `certificates.client`

and an authorizer that lets everybody do everything until an ACL names a topic
(`tool("org.apache.kafka.tools.AclCommand", ...)`).
All calls block; a test with a loop wraps them in `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.support.certificates import Certificates
from tests.support.processes import Child, ChildError
from tests.support.topics import group_offsets

POM = Path(__file__).parent / "kafka" / "pom.xml"
USER, PASSWORD = "alice", "alice-secret"
_CREDENTIALS = f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}"'
_SECURITY = "org.apache.kafka.common.security"
_PROTOCOLS = {
    "PLAINTEXT": "PLAINTEXT",
    "SASL": "SASL_PLAINTEXT",
    "SASL_SSL": "SASL_SSL",
    "SSL": "SSL",
    "MTLS": "SSL",
}


class MissingPartError(RuntimeError):
    """A real part cannot run on this machine; the message says what is missing, and the mend."""


def jars() -> Path:
    """The folder with Apache Kafka's jars, filled by Maven on the first call on this machine.

    MissingPartError where java or mvn is missing or Maven fails. Safe when several processes call it at once.
    """
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        raise MissingPartError(
            f"{' and '.join(missing)} not found on PATH; on Debian: apt-get install openjdk-17-jre-headless maven"
        )
    pom = POM.read_bytes()
    version = re.findall(rb"<artifactId>kafka_2.13</artifactId>\s*<version>([^<]+)<", pom)[0].decode()
    name = f"kafka-{version}-{hashlib.sha256(pom).hexdigest()[:8]}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluiceway-tests"
    folder = home / name
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        fresh = home / f"{name}.{os.getpid()}"
        done = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fresh}"],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise MissingPartError(f"Maven could not fetch Apache Kafka:\n{(done.stdout + done.stderr)[-2000:]}")
        fresh.rename(folder)
    return folder


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range that outgoing connections take theirs from.

    A broker that is down must find its port free again, so an ephemeral one would not do.
    """
    dice = random.SystemRandom()
    found: list[int] = []
    held: list[socket.socket] = []
    while len(found) < count:
        probe = socket.socket()
        held.append(probe)
        try:
            probe.bind(("127.0.0.1", port := dice.randrange(15_000, 32_000)))
        except OSError:
            continue
        found.append(port)
    for probe in held:
        probe.close()
    return found


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


class ApacheKafka:
    """One broker. `with ApacheKafka(folder) as kafka:` answers group requests at `kafka.bootstrap` until the end.

    `peak` lets the JVM compile for throughput, which a benchmark wants; a start then costs 5.5 s of CPU, not 3.1 s.
    `lapse`, seconds: without a heartbeat to its own controller for so long a broker loses its partitions, and a killed
    one waits as long before it may come back. Short for one that is killed, long for any other: a machine that stalls
    for a few seconds would else take the coordinator away in the middle of a test.
    """

    def __init__(
        self,
        folder: Path,
        *,
        secured: bool = False,
        peak: bool = False,
        lapse: float = 60.0,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._compiler = [] if peak else ["-XX:TieredStopAtLevel=1"]
        self.secured = secured
        self._lapse = lapse
        self.user, self.password = USER, PASSWORD
        names = list(_PROTOCOLS) if secured else ["PLAINTEXT"]
        *ports, self._controller = free_ports(len(names) + 1)
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        self.certificates = Certificates(folder / "certificates")
        self._extra = dict(properties or {})
        self._child: Child | None = None

    @property
    def bootstrap(self) -> str:
        return self.addresses["PLAINTEXT"]

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    def start(self, within: float = 60.0) -> Self:
        """Formats the data folder the first time; returns when the group coordinator answers."""
        if self._child is None:
            self._child = self._prepared()
        self._child.start()
        self._await_coordinator(within)
        return self

    def stop(self, within: float = 30.0) -> None:
        """A clean shutdown; SIGKILL when that takes longer than `within` seconds."""
        if self._child is not None:
            self._child.stop(within)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def restart(self, *, clean: bool = True, within: float = 90.0) -> None:
        """Down and up again on the same data and ports: by a clean shutdown or by SIGKILL."""
        if clean:
            self.stop()
        else:
            self.kill()
        self.start(within)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        if self._child is not None:
            self._child.freeze()

    def thaw(self) -> None:
        if self._child is not None:
            self._child.thaw()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tool(self, main: str, *arguments: str, within: float = 60.0) -> str:
        """The output of one of Kafka's own command-line tools, by its main class. ChildError when it fails."""
        done = subprocess.run(
            [*self._java(heap=128), main, *arguments], capture_output=True, text=True, timeout=within, check=False
        )
        if done.returncode != 0:
            raise ChildError(f"{main} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    # -- how it is made ------------------------------------------------------------------------------------------------

    def _java(self, heap: int) -> list[str]:
        options = [f"-Xmx{heap}m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"]
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return ["java", *options, *self._compiler, logging, "-cp", f"{jars()}/*"]

    def _prepared(self) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.secured:
            self.certificates.make()
        configuration = self.folder / "server.properties"
        configuration.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        (self.folder / "log4j2.properties").write_text(
            "appender.out.type=Console\nappender.out.name=out\nappender.out.layout.type=PatternLayout\n"
            "appender.out.layout.pattern=%d %p %c{1} %m%n\nrootLogger.level=WARN\nrootLogger.appenderRef.out.ref=out\n"
        )
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        scram = [f"{name}=[name={USER},password={PASSWORD}]" for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
        users = [argument for user in scram for argument in ("--add-scram", user)] if self.secured else []
        arguments = ["format", "--standalone", f"--cluster-id={cluster}", "-c", str(configuration), *users]
        self.tool("kafka.tools.StorageTool", *arguments)
        return Child([*self._java(heap=512), "kafka.Kafka", str(configuration)], log=self.log, name="Apache Kafka")

    def _properties(self) -> dict[str, str]:
        addresses = ",".join(f"{name}://{address}" for name, address in self.addresses.items())
        protocols = ",".join(f"{name}:{_PROTOCOLS[name]}" for name in self.addresses)
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{addresses},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": addresses,
            "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": "2097152",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "broker.session.timeout.ms": str(round(self._lapse * 1000)),
            "broker.heartbeat.interval.ms": "500",
        }
        if self.secured:
            properties |= self._security()
        return properties | self._extra

    def _security(self) -> dict[str, str]:
        properties = {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificates.server),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.authority),
            "listener.name.mtls.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:ANONYMOUS",
        }
        bearer = f'required unsecuredLoginStringClaim_sub="{USER}";'
        login = {
            "plain": f"{_SECURITY}.plain.PlainLoginModule required {_CREDENTIALS};",
            "scram-sha-256": f"{_SECURITY}.scram.ScramLoginModule required;",
            "scram-sha-512": f"{_SECURITY}.scram.ScramLoginModule required;",
            "oauthbearer": f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule {bearer}",
        }
        for listener in ("sasl", "sasl_ssl"):
            for mechanism, module in login.items():
                properties[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = module
        return properties

    def _await_coordinator(self, within: float) -> None:
        assert self._child is not None
        # A thread of its own, as the caller's may be running a loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self._ask_coordinator(self._child, time.monotonic() + within)).result()

    async def _ask_coordinator(self, child: Child, deadline: float) -> None:
        """Returns once a group request is answered: the port opens earlier than the coordinator."""
        last: BaseException | None = None
        while time.monotonic() < deadline:
            if not child.running:
                raise ChildError(f"Apache Kafka ended with {child.returncode}:\n{child.tail()}")
            if not _listens(self.bootstrap):
                await asyncio.sleep(0.05)
                continue
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=3_000)
            try:
                await admin.start()
                await group_offsets(admin, "sluiceway-tests-readiness")
            except (KafkaError, OSError) as cause:
                last = cause
                # The pace of a poll with a deadline; nothing signals that a broker is up.
                await asyncio.sleep(0.1)
            else:
                return
            finally:
                await admin.close()
        raise TimeoutError(f"Apache Kafka answers no group request ({last!r}); its log ends:\n{child.tail()}")
