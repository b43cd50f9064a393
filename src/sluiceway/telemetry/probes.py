"""The HTTP probes: /metrics, /livez, /readyz (and /healthz for it). They answer from the worker's own loop, so that a
loop that no longer turns fails them.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from sluiceway.core.errors import InputError
from sluiceway.telemetry.metrics import Metrics

PORT = 9464  # OpenTelemetry's usual port for a Prometheus exporter
Ready = Callable[[], tuple[bool, list[str]]]
"""Whether the worker can take jobs, and if not the reasons."""


class Probes:
    """Serves the probes on `port` of all interfaces. None: on PORT, or on a free one where that is taken."""

    def __init__(self, metrics: Metrics, ready: Ready, refresh: Callable[[], None], port: int | None) -> None:
        self._metrics, self._ready, self._refresh, self._wanted = metrics, ready, refresh, port
        self._server: web.AppRunner | None = None
        self.port: int | None = None

    async def start(self) -> None:
        """Listens. Raises InputError when the port that was asked for is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/healthz", self._readiness)
        self._server = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._server.setup()
        taken: str | None = None
        # A second worker on a host must not fail for a port that nobody asked for.
        for port in (PORT, 0) if self._wanted is None else (self._wanted,):
            try:
                await web.TCPSite(self._server, None, port, shutdown_timeout=0.5).start()
            except OSError as error:
                taken = error.strerror
                continue
            self.port = self._server.addresses[0][1]
            return
        await self.stop()
        raise InputError("metrics_port", f"port {self._wanted}: {taken}. Mend: another --metrics-port")

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.cleanup()
            self._server = None

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        self._refresh()
        return web.Response(
            body=self._metrics.text(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _request: web.Request) -> web.Response:
        ready, reasons = self._ready()
        return web.Response(text="ok\n" if ready else "\n".join(reasons) + "\n", status=200 if ready else 503)
