"""A role in a process of its own, to be killed.

    python -m tests.support.role_process BOOTSTRAP WORLD JOURNAL HOLD SECONDS

A job takes SECONDS. Each start of a job is a line in JOURNAL before it runs. Jobs whose number is divisible by HOLD
never end (0: none). SIGTERM stops it in its budget; the exit code is 0 when that was clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from sluiceway.ports import Outgoing, Record
from tests.support.roles import Works, World


async def main(bootstrap: str, name: str, journal: str, hold: int, seconds: float) -> int:
    world = World(bootstrap)
    world.adopt(name)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    works = Works(world.results, seconds=seconds)

    async def work(record: Record) -> Outgoing | None:
        value = record.value or b""
        os.write(out, value + b"\n")
        if hold and int(value.split(b"-")[1]) % hold == 0:
            await asyncio.Event().wait()
        return await works(record)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with world.publisher() as publisher:
        from sluiceway.kafka.consumer import RoleConsumer

        role = RoleConsumer(world.connection, world.settings(), work, publisher, world.notes)
        await role.start()
        with contextlib.suppress(asyncio.CancelledError):
            waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(role.failed())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        clean = await role.stop(6.0)
    return 0 if clean else 3


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))))
