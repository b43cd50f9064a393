"""A role in a process of its own that dies of some jobs, with a store that remembers it.

    python -m tests.support.mortal_process BOOTSTRAP WORLD JOURNAL STATE

A job whose value begins with `exit` ends the process at once, `raise` makes its work raise; any other takes 50 ms. Each
start of a job is a line in JOURNAL before it runs: how many jobs run, and its value. What a process is not to run again
goes to the results as `dead-` and its value. SIGTERM stops it in its budget; the exit code is 0 when that was clean.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from sluiceway.archive.flight import StoreFlight
from sluiceway.archive.store import Bounds, open_store
from sluiceway.core.stream import Limits
from sluiceway.kafka.consumer import RoleConsumer
from sluiceway.ports import Outgoing, Record
from tests.support.roles import Works, World


async def main(bootstrap: str, name: str, journal: str, state: str) -> int:
    world = World(bootstrap)
    world.adopt(name)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    works = Works(world.results, seconds=0.05)

    async def work(record: Record) -> Outgoing | None:
        value = record.value or b""
        os.write(out, b"%d %s\n" % (works.running + 1, value))
        if value.startswith(b"exit"):
            os._exit(9)
        if value.startswith(b"raise"):
            raise ZeroDivisionError
        return await works(record)

    def crashed(record: Record) -> Outgoing:
        return Outgoing(world.results, record.key, b"dead-" + (record.value or b""), ())

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    limits = Limits(jobs=8, commit_interval=0.2)
    with open_store(Path(state), bounds=Bounds(), now=time.time) as store:
        async with world.publisher() as publisher:
            role = RoleConsumer(
                world.connection,
                replace(world.settings(), limits=limits),
                work,
                publisher,
                world.notes,
                crashed=crashed,
                flight=StoreFlight(store, world.group),
            )
            await role.start()
            waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(role.failed())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            failed = waits[1].done()
            for wait in waits:
                wait.cancel()
            clean = await role.stop(6.0)
    return 1 if failed else 0 if clean else 3


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:5])))
