"""A worker's part of the limits that it shares with other workers, from nothing but what each says of itself.

Each worker writes a lease of its own every few seconds, and all read all leases in one order (core/control.py). A
worker that lives, among n that draw on a limit as far as it knows, has 1/n of it, and nothing while another one does
not yet know it. So a part shrinks as soon as a new lease is read; the new worker begins once all others have said that
they count it; and a part grows only when another's lease has ended, or when that worker has said that it leaves.

Law: at no instant do the parts of a limit add up to more than 1. Why: of two workers that have a part, each counts the
other. Neither can have dropped the other while its lease runs, because

- a worker lives by its own clock for as long as the lease says, counted from when it *sent* its newest heartbeat that
  it has read back; when that time is over it is born anew, and must be known again by all;
- others count the same time from when they *read* that heartbeat, which is later, add a tenth, and then drop it only
  on reading a heartbeat of their own that they sent after that: in one common order there can be none between.

Assumed: clocks that run at rates within a tenth of each other (not: that agree); that what is decided here is acted on
within a tenth of a lease; and, for leases that stood in the topic at a worker's start and not after, clocks that agree
to a minute, so that it need not wait for those who died long ago. Pure: time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, nextafter

from sluiceway.core.control import Lease

LEASE = 10.0  # seconds
_BEATS = 5  # heartbeats a lease
_MARGIN = 0.1  # of a lease, that others wait beyond it
_SKEW = 60.0  # seconds; see above


@dataclass(frozen=True, slots=True)
class _Other:
    lease: Lease
    at: float  # when it was read


class Share:
    """One worker's: `worker` is its name, which no other process has or ever had; `uses` are the limits it draws on."""

    def __init__(self, worker: str, uses: Iterable[str], now: float, *, seconds: float = LEASE) -> None:
        self.worker = worker
        self._uses = tuple(sorted(set(uses)))
        self._seconds = seconds
        self._others: dict[str, _Other] = {}
        self._born = now
        self._number = 0
        self._sent: dict[int, float] = {}  # heartbeats that have not been read back
        self._lives_until: float | None = None  # None: no heartbeat of this life has been read back
        self._told: Mapping[str, float] = {}
        self._beat_at = -inf
        self._left = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def see(self, worker: str, lease: Lease | None, now: float, *, stood: bool = False) -> None:
        """A worker's lease was read. `stood`: it stood there at our start.

        None, where it was deleted, says nothing. A worker that leaves says so in a last lease.
        """
        if lease is None:
            return
        if worker == self.worker:
            self._see_own(lease, now)
        elif lease.seconds <= 0:
            self._others.pop(worker, None)
        elif not stood or now - lease.at <= lease.seconds + _SKEW:
            self._others[worker] = _Other(lease, now)

    def _see_own(self, lease: Lease, now: float) -> None:
        sent = self._sent.get(lease.number) if lease.born == self._born else None
        if sent is None:
            return  # an earlier life's, or one that later ones have overtaken
        self._sent = {number: at for number, at in self._sent.items() if number > lease.number}
        if self._lives_until is not None and now >= self._lives_until:
            self._bear(now)
            return
        self._lives_until = sent + self._seconds
        ended = [name for name, other in self._others.items() if sent > other.at + other.lease.seconds * (1 + _MARGIN)]
        for name in ended:
            del self._others[name]

    def _bear(self, now: float) -> None:
        """Another life: whoever dropped us has to count us again first."""
        self._born = max(now, nextafter(self._born, inf))
        self._lives_until = None
        self._sent.clear()
        self._beat_at = -inf

    # -- telling -----------------------------------------------------------------------------------------------------

    def due(self, now: float) -> float:
        """Seconds until the next heartbeat is to be written; 0.0: now, as somebody waits to be known."""
        if self._left:
            return inf
        if self._told != self._known():
            return 0.0
        return max(0.0, self._beat_at + self._seconds / _BEATS - now)

    def beat(self, now: float) -> Lease:
        """The heartbeat to write now. Heartbeats are to be written in the order in which they were asked for."""
        if self._lives_until is not None and now >= self._lives_until:
            self._bear(now)
        self._number += 1
        self._sent[self._number] = self._beat_at = now
        self._told = self._known()
        return Lease(self._born, self._number, now, self._seconds, self._uses, self._told)

    def _known(self) -> dict[str, float]:
        return {name: other.lease.born for name, other in self._others.items()}

    def leave(self, now: float) -> Lease:
        """The last lease to write: from now on we have no part, and once it is read others may grow."""
        self._left = True
        self._number += 1
        return Lease(self._born, self._number, now, 0.0, (), {})

    # -- looking -----------------------------------------------------------------------------------------------------

    def lives(self, now: float) -> bool:
        """Whether a heartbeat has come back lately."""
        return not (self._left or self._lives_until is None or now >= self._lives_until)

    @property
    def ends(self) -> float:
        """When this life ends unless another heartbeat comes back: our parts are nothing from then on."""
        return inf if self._lives_until is None else self._lives_until

    @property
    def workers(self) -> tuple[str, ...]:
        """All whose leases run, this one included."""
        return tuple(sorted({self.worker, *self._others}))

    def sharers(self, limit: str) -> tuple[str, ...]:
        """The other workers that draw on that limit and whose leases run."""
        return tuple(sorted(name for name, other in self._others.items() if limit in other.lease.uses))

    def part(self, limit: str, now: float) -> float:
        """Our part of that limit, 0.0 to 1.0; nothing of one that we do not use."""
        if limit not in self._uses or not self.lives(now):
            return 0.0
        sharers = [other.lease for other in self._others.values() if limit in other.lease.uses]
        if any(lease.knows.get(self.worker) != self._born for lease in sharers):
            return 0.0
        return 1 / (1 + len(sharers))

    def parts(self, now: float) -> dict[str, float]:
        """Our part of each limit that we use."""
        return {limit: self.part(limit, now) for limit in self._uses}

    def __repr__(self) -> str:
        return f"Share({self.worker}, {len(self._others)} others, born {self._born:.3f})"
