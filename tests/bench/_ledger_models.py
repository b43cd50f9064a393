"""The ledger bench's model servers, each a process of its own: `python -m tests.bench._ledger_models ...`.

Both wire formats, and on each job's first call any weather: answers that were billed and never arrive (cut, hung,
stalled), refusals that cost nothing, connections that break before an answer. What they metered is in the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.support.fake_journal import Journal, JournalEntry
from tests.support.fake_models import FakeModels
from tests.support.fake_packed import packed
from tests.support.fake_process import ROOT
from tests.support.fake_scripts import FakeAnswer, FakeFault, FakeRequest, Script, faulty, labels, malformed, refusing
from tests.support.processes import Child

WEATHER = (
    (FakeFault("half"), 0.02),  # billed, and cut in the middle
    (FakeFault("hang"), 0.004),  # billed, and never sent: the caller's time-out
    (FakeFault("stall"), 0.004),  # the same after the headers
    (FakeFault("reset"), 0.01),  # broken off before any token
    (FakeFault("status", 503), 0.02),
    # Few of these, or the pace that is learned from them would be all that is seen.
    (FakeFault("status", 429, headers={"retry-after-ms": "5"}), 0.003),
    (FakeFault("status", 529), 0.002),
)
"""What befalls which share of the jobs at their first call, each by a hash of its own."""


def thinking(otherwise: Script, *, share: float, longest: int = 60) -> Script:
    """A share of the answers is metered with tokens that nobody sees."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        said = otherwise(request)
        if isinstance(said, FakeFault) or request.share("thinks") >= share:
            return said
        return replace(said, reasoning_tokens=1 + int(request.share("thought") * longest))

    return script


def weather(seed: int) -> Script:
    """Everything at once; answers are schema-valid, doubtful, declined or malformed by hash."""
    script = refusing(malformed(labels(seed=seed, doubt=0.12), share=0.02, seed=seed), share=0.01, seed=seed)
    script = thinking(packed(script, missing=0.02, malformed=0.02, seed=seed), share=0.3)
    for fault, share in WEATHER:
        script = faulty(script, fault, share=share, times=1, seed=seed)
    return script


class _Texts(Journal):
    """Keeps each request's job text, and not its body: the run is long."""

    def append(self, entry: JournalEntry) -> None:
        super().append(replace(entry, body=None, header_names=()))
        self.entries.clear()  # they are read from the file


class LedgerModels:
    """One server while the block lasts; `url` is where it answers, `journal` what it wrote down."""

    def __init__(self, journal: Path, name: str, seed: int) -> None:
        self.journal = journal
        self.url = ""
        module = "tests.bench._ledger_models"
        command = [sys.executable, "-m", module, "--journal", str(journal), "--name", name, "--seed", str(seed)]
        self._child = Child(command, log=journal.with_suffix(".log"), cwd=ROOT, name=f"the ledger bench's {name}")

    def __enter__(self) -> Self:
        self._child.start()
        self.url = self._child.wait_for(_url, within=30, what="its URL")
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()


def _url(log: str) -> str | None:
    return next((line for line in log.splitlines() if line.startswith("http")), None)


async def _serve(journal: Path, name: str, seed: int) -> None:
    fake = FakeModels(weather(seed), name=name, keep_bodies=True)
    fake.journal = _Texts(journal)
    await fake.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(fake.url, flush=True)
    await stopped.wait()
    await fake.stop()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    uvloop.run(_serve(given.journal, given.name, given.seed))


if __name__ == "__main__":
    main()
