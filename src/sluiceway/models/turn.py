"""Whose reply is taken up in a turn of the event loop: a few, in the order in which they came.

Between two looks at its sockets a loop runs all that is ready. Where hundreds of replies are, each with a gate, an
outcome and the next request behind it, what comes meanwhile waits for the whole of the next turn: half of the calls
took two turns, the others one, and the slowest twice as long as most. A few at a time keep to their order.
"""

from __future__ import annotations

import asyncio
from collections import deque

A_TURN = 16  # replies: some milliseconds of work


class Turn:
    """The replies of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = A_TURN
        self._ends_soon = False

    def full(self) -> bool:
        """Whether the reply that has come is to `wait`; else it is one of this turn's."""
        if self._left == 0 or self._waiting:
            return True
        self._left -= 1
        if not self._ends_soon:
            self._ends_soon = True
            self._loop.call_soon(self._next)
        return False

    def wait(self) -> asyncio.Future[None]:
        """Done in the turn that the reply is one of. It may be cancelled."""
        place: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(place)
        return place

    def _next(self) -> None:
        waiting, left = self._waiting, A_TURN
        while waiting and left:
            place = waiting.popleft()
            if not place.done():
                place.set_result(None)
                left -= 1
        self._left, self._ends_soon = left, left < A_TURN
        if self._ends_soon:
            self._loop.call_soon(self._next)

    def __repr__(self) -> str:
        return f"Turn({len(self._waiting)} waiting)"
