"""Fixtures shared by all tests; the parts themselves live in tests/support.

A real part that is missing on this machine skips its tests with one line that says what is missing. Under
SLUICEWAY_REQUIRE_REAL=1 (`.ci/run` sets it) the same is a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from sluiceway.core.errors import InputError
from sluiceway.kafka.embedded import EmbeddedBroker
from tests.support.apache_kafka import ApacheKafka, MissingPartError
from tests.support.fake_models import FakeModels, labels
from tests.support.real_model import RealModel
from tests.support.topics import Address

# How long an example takes says something of the machine, not of the law; a failing one prints how to repeat it.
settings.register_profile("sluiceway", deadline=None, print_blob=True)
settings.load_profile("sluiceway")

_missing: dict[str, str] = {}


def _without(part: str, cause: Exception) -> NoReturn:
    reason = " ".join(str(cause).split())[:300]
    if os.environ.get("SLUICEWAY_REQUIRE_REAL") == "1":
        pytest.fail(f"{part} is required here (SLUICEWAY_REQUIRE_REAL=1): {reason}", pytrace=False)
    _missing[part] = reason
    pytest.skip(f"no {part}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for part, reason in _missing.items():
        terminalreporter.write_line(f"NOT TESTED WITH {part.upper()}: {reason}", red=True, bold=True)


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No worker under test remembers anything in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICEWAY_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the real part they ask for, so that `-m` can choose."""
    for item in items:
        used = getattr(item, "fixturenames", ())
        if {"apache_kafka", "secured_kafka", "mortal_kafka"} & set(used):
            item.add_marker("apache")
        if "real_model" in used:
            item.add_marker("real_model")
        # With Apache Kafka at hand its variant is the one that everybody runs.
        on = getattr(getattr(item, "callspec", None), "id", "")
        if item.get_closest_marker("slow_on_embedded") and "embedded" in on and shutil.which("mvn") is not None:
            item.add_marker("slow")


def _started(folder: Path, *, secured: bool = False, lapse: float = 60.0) -> ApacheKafka:
    kafka = ApacheKafka(folder, secured=secured, lapse=lapse)
    try:
        return kafka.start()
    except MissingPartError as cause:
        _without("Apache Kafka", cause)
    except BaseException:
        kafka.stop()
        raise


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One real broker for the whole run. A test that stops or freezes it leaves it up again; nobody kills it."""
    kafka = _started(tmp_path_factory.mktemp("apache"))
    yield kafka
    kafka.stop()


@pytest.fixture
def mortal_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A real broker of the test's own, which it may kill."""
    kafka = _started(tmp_path_factory.mktemp("mortal"), lapse=3.0)
    yield kafka
    kafka.stop()


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Another one, with SASL, TLS and mutual TLS listeners and an authorizer."""
    kafka = _started(tmp_path_factory.mktemp("secured"), secured=True)
    yield kafka
    kafka.stop()


@pytest.fixture(scope="session")
def embedded_kafka() -> Iterator[EmbeddedBroker]:
    """The embedded broker of the demo, one for the whole run."""
    broker = EmbeddedBroker()
    try:
        asyncio.run(broker.start())
    except InputError as cause:
        _without("the embedded broker", cause)
    yield broker
    asyncio.run(broker.stop())


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.apache)])
def any_kafka(request: pytest.FixtureRequest) -> Address:
    """A bootstrap address: the test runs once on the embedded broker and once on Apache Kafka."""
    return Address(request.getfixturevalue(f"{request.param}_kafka").bootstrap, request.param)


@pytest.fixture
def prefix() -> str:
    """A topic prefix of this test's own, as brokers are shared by the whole run."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
async def fake_models(tmp_path: Path) -> AsyncIterator[FakeModels]:
    """A fake model server in the test's own loop; its journal is `journal.jsonl`, its script is yours to set."""
    async with FakeModels(labels(), journal=tmp_path / "journal.jsonl", keep_bodies=True) as fake:
        yield fake


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealModel]:
    """SmolLM2-135M-Instruct over HTTP in the OpenAI format, one for the whole run."""
    model = RealModel(tmp_path_factory.mktemp("model"))
    try:
        model.start()
    except MissingPartError as cause:
        _without("the real model", cause)
    yield model
    model.stop()
