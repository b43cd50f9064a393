"""Permits: leave to call a model, over all endpoints that serve it.

`ask` gives a permit, a place in the queue, or says that every endpoint is shut. A place in the queue is served by a
later `end` or `turn`; nobody asks twice. Waiting is fair between tasks and tenants and by deadline; second tries wait
apart and go within their budget. Pure: time is passed in, and the same events give the same decisions.

Laws: no more permits are out than any limit allows; each permit ends once; each place in the queue is granted, barred
or given up once; nobody who waits is passed over for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sluiceway.core.allowance import Allowance as Allowance
from sluiceway.core.allowance import Ended as Ended
from sluiceway.core.allowance import Ending as Ending
from sluiceway.core.allowance import Need as Need
from sluiceway.core.allowance import Permit as Permit
from sluiceway.core.errors import Bug
from sluiceway.core.fairqueue import FairQueue, Waits
from sluiceway.core.retrybudget import RetryBudget

_SLOWEST = 10.0  # an endpoint counts as at most this many times slower than the fastest
_ALIKE = 0.05  # seconds; endpoints that differ by less are as fast as each other
_LAG = 1.0  # calls by weight that an endpoint may be behind


class Waiting(Waits):
    """A place in the queue."""

    __slots__ = ("need",)

    def __init__(self, need: Need) -> None:
        super().__init__()
        self.need = need


class Barred:
    """Every endpoint is shut: they keep failing, or take no call of ours. `until` is when the first is tried again."""

    __slots__ = ("reason", "until")

    def __init__(self, until: float, reason: str) -> None:
        self.until = until
        self.reason = reason

    def __repr__(self) -> str:
        return f"Barred(until {self.until:.3f}, {self.reason})"


Served = tuple[Waiting, Permit | Barred]


class Permits:
    """The permits of one model. `wake_at` is when `turn` may next serve somebody though nothing ended; inf: never."""

    def __init__(self, endpoints: Sequence[Allowance], now: float, weights: Sequence[int] | None = None) -> None:
        self.endpoints = tuple(endpoints)
        self._weights = tuple(weights or [1] * len(self.endpoints))
        self._had = [0.0] * len(self.endpoints)  # calls by weight that each has had: the least goes first
        self._first: FairQueue[Waiting] = FairQueue()
        self._again: FairQueue[Waiting] = FairQueue()
        self._budget = RetryBudget(now)
        self.retries_due = 0  # jobs that failed here and will be tried again, as far as is known
        self.wake_at = inf

    @property
    def in_flight(self) -> int:
        return sum([endpoint.in_flight for endpoint in self.endpoints])

    @property
    def waiting(self) -> int:
        return len(self._first) + len(self._again)

    def ask(self, need: Need, now: float) -> Permit | Waiting | Barred:
        """A permit where one is free and nobody waits before; else a place in the queue, or Barred."""
        queue = self._again if need.retry else self._first
        waits = inf
        if not len(queue):
            got = self._serve(need, now)
            if not isinstance(got, float):
                return got
            waits = got
        elif (barred := self._barred(now)) is not None:
            return barred
        waiting = Waiting(need)
        queue.push(need.task, need.tenant, need.deadline, waiting)
        self.wake_at = min(self.wake_at, now + waits)
        return waiting

    def end(self, permit: Permit, ended: Ended, now: float) -> Sequence[Served]:
        """The permit comes back; who is served by it. Raises Bug for a permit that has ended before."""
        if permit.ended:
            raise Bug(f"{permit!r} ended twice")
        permit.ended = True
        self.endpoints[permit.endpoint].end(permit, ended, now)
        return self.turn(now) if len(self._first) or len(self._again) else ()

    def give_up(self, waiting: Waiting, now: float) -> Sequence[Served]:
        """That place is left; who is served instead."""
        queue = self._again if waiting.need.retry else self._first
        queue.leave(waiting)
        return self.turn(now)

    def turn(self, now: float) -> Sequence[Served]:
        """Serves all who can be served now, second tries first: they are older, and their budget bounds them."""
        served: list[Served] = []
        self.wake_at = inf
        for queue in (self._again, self._first):
            while (waiting := queue.peek()) is not None:
                got = self._serve(waiting.need, now)
                if isinstance(got, float):
                    self.wake_at = min(self.wake_at, now + got)
                    break
                queue.pop()
                served.append((waiting, got))
        return served

    def _serve(self, need: Need, now: float) -> Permit | Barred | float:
        """A permit, or Barred, or the seconds until there may be one."""
        if need.retry:
            waits = self._budget.wait(self.in_flight + self.retries_due, now)
            if waits > 0.0:
                return self._barred(now) or waits
        endpoint = 0
        if len(self.endpoints) > 1:
            found = self._choose(need, now)
            if isinstance(found, float):
                return self._barred(now) or found
            endpoint = found
        else:
            waits = self.endpoints[0].wait(need, now)
            if waits > 0.0:
                return self._barred(now) or waits
        if need.retry:
            self._budget.spend()
        else:
            self._budget.first_call()
        return self.endpoints[endpoint].take(endpoint, need, now)

    def _choose(self, need: Need, now: float) -> int | float:
        """The endpoint that has had least for its weight and speed and has a permit, or seconds until one may.

        An endpoint that this job has seen fail is taken only where all others are shut.
        """
        others = [number for number, endpoint in enumerate(self.endpoints) if not endpoint.shut(now)]
        allowed = [number for number in others if number not in need.avoid] or others
        fastest = min([e.latency for e in self.endpoints if e.latency], default=0.0) + _ALIKE
        best, least, soonest = -1, inf, inf
        for number in allowed:
            endpoint = self.endpoints[number]
            waits = endpoint.wait(need, now)
            if waits > 0.0:
                soonest = min(soonest, waits)
                continue
            slower = min(_SLOWEST, ((endpoint.latency or 0.0) + _ALIKE) / fastest)
            load = self._had[number] + endpoint.in_flight * slower / self._weights[number]
            if load < least:
                best, least = number, load
        if best < 0:
            return soonest
        slower = min(_SLOWEST, ((self.endpoints[best].latency or 0.0) + _ALIKE) / fastest)
        # What an endpoint was not given while it was full or shut is not made up for in one rush.
        floor = self._had[best] - _LAG
        self._had = [max(had, floor) for had in self._had]
        self._had[best] += slower / self._weights[best]
        return best

    def _barred(self, now: float) -> Barred | None:
        for endpoint in self.endpoints:
            if not endpoint.breaker.shut(now):
                return None
        until = min([endpoint.breaker.open_until or now for endpoint in self.endpoints])
        return Barred(max(until, now), self.endpoints[0].breaker.reason)

    def __repr__(self) -> str:
        return f"Permits({self.in_flight} in flight, {self.waiting} waiting, {len(self.endpoints)} endpoints)"
