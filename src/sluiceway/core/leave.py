"""When a job that waits leaves its worker: through a topic that holds it back, so that its offset is free.

A short wait is slept where the job is, as long as few do so: a hand-over costs a record. A long one leaves at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leaving:
    """`delays` on offer, in seconds; `crowd`: how many jobs of a role may sleep in their worker at a time."""

    delays: tuple[float, ...]
    crowd: int

    def through(self, wait: float, remaining: float, waiting: int) -> float | None:
        """The delay to leave through, None to sleep. All in seconds; `waiting`: how many jobs of the role sleep now.

        A wait of at least the longest delay leaves through that one. A shorter one leaves where the crowd is full,
        through the largest delay that it fills, else the smallest. None leaves where its deadline would end before the
        delay does: `remaining` is what is left of it.
        """
        if not self.delays:
            return None
        longest = max(self.delays)
        if wait >= longest:
            delay = longest
        elif waiting >= self.crowd:
            delay = max((delay for delay in self.delays if delay <= wait), default=min(self.delays))
        else:
            return None
        return delay if delay <= remaining else None


NEVER = Leaving((), 0)
"""Where there are no such topics: every wait is slept."""
