"""The rig of the end-to-end tests, and the two fake models beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.rig import Rig
from tests.support.topics import Address


@pytest.fixture
async def rig(apache_kafka: ApacheKafka, tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig on Apache Kafka."""
    rig = Rig(Address(apache_kafka.bootstrap, "apache"), tmp_path)
    yield rig
    await rig.close()


@pytest.fixture
async def any_rig(any_kafka: Address, tmp_path: Path) -> AsyncIterator[Rig]:
    """The same on the embedded broker and on Apache Kafka."""
    rig = Rig(any_kafka, tmp_path)
    yield rig
    await rig.close()


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[tuple[FakeProcess, FakeProcess]]:
    """The cheap and the frontier model, each a process with a journal of its own. A tenth of the texts is doubted."""
    with (
        FakeProcess(tmp_path / "cheap.jsonl", "labels seed=3 doubt=10%", name="cheap") as cheap,
        FakeProcess(tmp_path / "frontier.jsonl", "labels seed=4", name="frontier") as frontier,
    ):
        yield cheap, frontier
