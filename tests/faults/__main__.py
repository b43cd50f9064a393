"""`python -m tests.faults [--full] [--seed N] [--only ROW ...] [--json] [--keep FOLDER]`: see the package's docstring.

Prints one table; exits 0 where every row holds, 1 where one does not, 130 after Ctrl-C. A row's own failure (a worker
that would not start, say) is a row that does not hold, never the end of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.finding import Finding, table
from tests.faults.rows import ROWS, Row, storm
from tests.faults.stage import Stage


async def run(
    folder: Path, rows: dict[str, Row], seed: int, *, full: bool, say: bool = True
) -> tuple[list[Finding], dict[str, str]]:
    """The findings, and what each row that came to none has died of."""
    findings: list[Finding] = []
    failed: dict[str, str] = {}
    async with Stage(folder, seed, full=full) as stage:
        for name, row in rows.items():
            began = time.monotonic()
            try:
                found = await row(stage)
            except Exception as fault:  # noqa: BLE001  top of a row: the others go on
                failed[name] = f"{type(fault).__name__}: {fault}"
                found = []
            findings += found
            if say:  # at once: what is stopped halfway has still said what it found
                said = failed[name] if name in failed else table(found)
                print(f"[{time.monotonic() - began:.0f} s] row {name}\n{said}\n", file=sys.stderr, flush=True)
    return findings, failed


async def _cancellable(
    folder: Path, rows: dict[str, Row], given: argparse.Namespace
) -> tuple[list[Finding], dict[str, str]]:
    """Ends as Ctrl-C does on SIGTERM too: with everything put away."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await run(folder, rows, given.seed, full=given.full)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault matrix on real processes.")
    parser.add_argument("--full", action="store_true", help="full size (an hour); else the fast form (minutes)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "storm"], metavar="ROW", help=", ".join([*ROWS, "storm"]))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--keep", type=Path, help="logs, journals and the broker's data stay in this folder")
    size = parser.add_argument_group("the storm's size (row `storm`, which runs with --full or where named)")
    size.add_argument("--jobs", type=int, default=100_000)
    size.add_argument("--partitions", type=int, default=32)
    size.add_argument("--workers", type=int, default=8)
    size.add_argument("--restarts", type=int, default=16, help="of each worker")
    size.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    every = {**ROWS, "storm": storm(given.jobs, given.partitions, given.workers, given.restarts, given.minutes)}
    rows = {
        name: row for name, row in every.items() if (name in given.only if given.only else name in ROWS or given.full)
    }
    # What the test's own clients say while their broker is away is no news here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluiceway-faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"seed {given.seed}, {'full' if given.full else 'fast'} form, rows {' '.join(rows)}", file=sys.stderr)
        try:
            findings, failed = asyncio.run(_cancellable(folder, rows, given))
        except (KeyboardInterrupt, asyncio.CancelledError):
            print("stopped; nothing is left running", file=sys.stderr)
            return 130
    holds = not failed and all(finding.holds for finding in findings)
    if given.json:
        facts = {"seed": given.seed, "full": given.full, "cores": os.cpu_count(), "load": round(os.getloadavg()[1], 2)}
        print(json.dumps({**facts, "rows": [f.tree() for f in findings], "failed": failed, "holds": holds}, indent=1))
    else:
        print(table(findings))
        for name, why in failed.items():
            print(f"{name}: FAILED {why}")
        print("every law holds" if holds else "NOT every law holds")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
