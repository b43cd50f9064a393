"""The line before a model: where calls wait for their permits, woken by whoever makes room, and by one timer.

It performs what `core/permit.py` decides, and remembers which jobs have failed here: their next call is a second try,
and goes to another endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from math import inf

from sluiceway.core.permit import Barred, Ended, Ending, Need, Permit, Permits, Served, Waiting
from sluiceway.ports import Clock

_REMEMBERED = 10_000  # jobs that failed here, for
_FOR = 120.0  # seconds
_NONE: frozenset[int] = frozenset()


class Line:
    """One model's line, in one event loop."""

    def __init__(self, permits: Permits, clock: Clock) -> None:
        self.permits = permits
        self._clock = clock
        self._places: dict[Waiting, asyncio.Future[Permit | Barred]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf
        self._failed: dict[str, tuple[float, frozenset[int]]] = {}  # by job, oldest first

    async def permit(self, need: Need) -> Permit | Barred | None:
        """Leave to call, or that every endpoint is shut; None where neither came before `need.deadline`."""
        now = self._clock.now()
        got = self.permits.ask(need, now)
        if not isinstance(got, Waiting):
            return got
        place: asyncio.Future[Permit | Barred] = asyncio.get_running_loop().create_future()
        self._places[got] = place
        self._set_timer(now)
        try:
            async with asyncio.timeout(need.deadline - now):
                return await place
        except TimeoutError:
            return place.result() if place.done() and not place.cancelled() else None
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and isinstance(permit := place.result(), Permit):
                self.end(permit, Ended(Ending.IGNORED))
            raise
        finally:
            if self._places.pop(got, None) is not None:
                now = self._clock.now()
                self._serve(self.permits.give_up(got, now), now)

    def end(self, permit: Permit, ended: Ended) -> None:
        """The permit comes back; whoever it makes room for is woken."""
        now = self._clock.now()
        served = self.permits.end(permit, ended, now)
        if served or self.permits.wake_at != self._rings_at:
            self._serve(served, now)

    def share(self, part: float) -> None:
        """From now on this process may use `part` (0 to 1) of each endpoint's limits a minute."""
        now = self._clock.now()
        for endpoint in self.permits.endpoints:
            endpoint.share(part, now)
        self._serve(self.permits.turn(now), now)

    def _serve(self, served: Sequence[Served], now: float) -> None:
        due = list(served)
        for waiting, got in due:  # which grows under way: by recursion a thousand cancelled at once overflow the stack
            place = self._places.pop(waiting)
            if not place.done():
                place.set_result(got)
            elif isinstance(got, Permit):  # its caller has been cancelled, and has not run since
                due += self.permits.end(got, Ended(Ending.IGNORED), now)
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        wake_at = self.permits.wake_at
        if wake_at == self._rings_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, wake_at
        if wake_at < inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, wake_at - now), self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, inf
        now = self._clock.now()
        self._serve(self.permits.turn(now), now)

    # -- jobs that failed here -----------------------------------------------------------------------------------------

    def failed_at(self, job: str) -> frozenset[int] | None:
        """The endpoints that `job` has seen fail, None where this is its first try."""
        if not self._failed:
            return None
        known = self._failed.get(job)
        return None if known is None else known[1]

    def note(self, job: str, endpoint: int, *, failed: bool) -> None:
        """A call of `job` there has ended."""
        if not failed:
            if self._failed:
                self._failed.pop(job, None)
                self.permits.retries_due = len(self._failed)
            return
        now = self._clock.now()
        _, before = self._failed.pop(job, (0.0, _NONE))
        self._failed[job] = (now, before | {endpoint})
        while len(self._failed) > _REMEMBERED or next(iter(self._failed.values()))[0] < now - _FOR:
            del self._failed[next(iter(self._failed))]
        self.permits.retries_due = len(self._failed)

    def alike(self, job: str, others: Iterable[str]) -> None:
        """What is known of `job`, whose name stood for `others` in one call, is from now on known of each of them."""
        known = self._failed.pop(job, None)
        for other in others:
            self._failed.pop(other, None)
            if known is not None:
                self._failed[other] = known
        while len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]
        self.permits.retries_due = len(self._failed)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __repr__(self) -> str:
        return f"Line({self.permits!r})"
