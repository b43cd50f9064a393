"""A fair queue: tasks take turns, in a task its tenants do, and a tenant's calls go by deadline.

Turns are start-time fair: who has had less goes first, and who was away gains no claim by it. So a queue of a million
calls delays another task's one call by one turn, and nobody starves. Pure.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar


class Waits:
    """What may wait here. `gone` is set for what no longer does."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


T = TypeVar("T", bound=Waits)


class _Turns:
    """Who is next among those that have something waiting: a heap of (what it has had, arrival, name)."""

    __slots__ = ("clock", "had", "order")

    def __init__(self) -> None:
        self.order: list[tuple[float, int, str]] = []
        self.had: dict[str, float] = {}  # of the names in `order`
        self.clock = 0.0

    def enter(self, name: str, arrival: int) -> None:
        if name not in self.had:
            self.had[name] = self.clock
            heapq.heappush(self.order, (self.clock, arrival, name))

    def served(self, arrival: int, *, empty: bool) -> None:
        """The first in order had its turn."""
        had, _, name = self.order[0]
        self.clock = had
        if empty:
            heapq.heappop(self.order)
            del self.had[name]
        else:
            self.had[name] = had + 1.0
            heapq.heapreplace(self.order, (had + 1.0, arrival, name))

    def left(self) -> None:
        """The first in order has nothing waiting any more; it had no turn."""
        _, _, name = heapq.heappop(self.order)
        del self.had[name]


class FairQueue(Generic[T]):
    """`len` counts what still waits."""

    def __init__(self) -> None:
        self._tasks: _Turns = _Turns()
        self._tenants: dict[str, _Turns] = {}
        self._calls: dict[tuple[str, str], list[tuple[float, int, T]]] = {}  # heaps by (deadline, arrival)
        self._arrivals = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, task: str, tenant: str, deadline: float, item: T) -> None:
        self._arrivals += 1
        self._size += 1
        waiting = self._calls.get((task, tenant))
        if waiting is None:
            waiting = self._calls[task, tenant] = []
        heapq.heappush(waiting, (deadline, self._arrivals, item))
        self._tenants.setdefault(task, _Turns()).enter(tenant, self._arrivals)
        self._tasks.enter(task, self._arrivals)

    def peek(self) -> T | None:
        """The next one, None where nobody waits."""
        while self._tasks.order:
            task = self._tasks.order[0][2]
            tenants = self._tenants[task]
            while tenants.order:
                tenant = tenants.order[0][2]
                calls = self._calls[task, tenant]
                while calls and calls[0][2].gone:
                    heapq.heappop(calls)
                if calls:
                    return calls[0][2]
                tenants.left()
                del self._calls[task, tenant]
            self._tasks.left()
            del self._tenants[task]
        return None

    def pop(self) -> T | None:
        """Takes the next one out: its task and its tenant have had their turn."""
        item = self.peek()
        if item is None:
            return None
        task = self._tasks.order[0][2]
        tenants = self._tenants[task]
        tenant = tenants.order[0][2]
        calls = self._calls[task, tenant]
        heapq.heappop(calls)
        self._size -= 1
        self._arrivals += 1
        if not calls:
            del self._calls[task, tenant]
        tenants.served(self._arrivals, empty=not calls)
        if not tenants.order:
            del self._tenants[task]
        self._tasks.served(self._arrivals, empty=not tenants.order)
        return item

    def leave(self, item: T) -> None:
        """`item` no longer waits. It must be in the queue."""
        if not item.gone:
            item.gone = True
            self._size -= 1
