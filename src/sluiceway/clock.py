"""The real clock: wall time that never runs backwards while the process lives, whatever is done to the system's."""

from __future__ import annotations

import asyncio
import time


class WallClock:
    """Implements `ports.Clock`: the wall time of its making, carried on by the monotonic clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()

    async def sleep_until(self, time: float) -> None:
        """Returns at `time` or soon after; at once for a time that has passed."""
        await asyncio.sleep(max(0.0, time - self.now()))
