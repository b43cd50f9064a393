"""How long this machine kept a thread of ours from running: what a bound in time allows beyond what the law says.

A worker that gets no processor for a second can end nothing in that second; whoever measures it gets none either.
"""

from __future__ import annotations

import threading
import time
from typing import Self

_PAUSE = 0.02  # seconds


class Starved:
    """`async with Starved() as starved:`; `worst`: the seconds that a short sleep took beyond its length, at most."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            if self._over.wait(_PAUSE):
                return
            self.worst = max(self.worst, time.monotonic() - began - _PAUSE)
