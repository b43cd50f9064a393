"""The fault matrix in its fast form: a few thousand jobs a row, real workers, real Apache Kafka. See the package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.finding import table
from tests.faults.proxy import ProxiedKafka
from tests.faults.rows import ROWS, Row, storm
from tests.faults.stage import Stage
from tests.support.apache_kafka import MissingPartError

pytestmark = [pytest.mark.slow, pytest.mark.apache]

SEED = 11
# Minutes of waiting, and each has a smaller test elsewhere; how much the stock agent loses is not ours to promise.
FULL_ONLY = {"1-stock", "1-random", "17-missing", "17-forbidden"}
FAST: dict[str, Row] = {name: row for name, row in ROWS.items() if name not in FULL_ONLY}
# The storm's small form: every part of it, at a size that two cores carry in half a minute.
FAST["storm"] = storm(jobs=3_000, partitions=8, workers=3, restarts=2, minutes=0.35)


@pytest.fixture(scope="module")
def kafka() -> Iterator[ProxiedKafka]:
    """One broker for all rows; those that take it down leave it up."""
    with tempfile.TemporaryDirectory(prefix="sluiceway-faults-") as folder:
        made = ProxiedKafka(Path(folder), lapse=6.0)
        try:
            made.start()
        except MissingPartError as cause:
            if os.environ.get("SLUICEWAY_REQUIRE_REAL") == "1":
                pytest.fail(str(cause), pytrace=False)
            pytest.skip(f"no Apache Kafka: {cause}")
        try:
            yield made
        finally:
            made.thaw()
            made.stop()


@pytest.mark.parametrize("name", FAST)
async def test_the_laws_hold_under(name: str, kafka: ProxiedKafka, tmp_path: Path) -> None:
    """Every law that the evidence suffices for, and what the row asks beyond them."""
    async with Stage(tmp_path, SEED, full=False, kafka=kafka) as stage:
        findings = await FAST[name](stage)
    print(f"seed {SEED}", table(findings), sep="\n")
    assert findings
    assert all(finding.holds for finding in findings), table(findings)
