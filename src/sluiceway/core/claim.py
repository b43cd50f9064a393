"""Budgets of a day that several workers spend: each claims a part of what is left, and spends no more than was granted.

Each worker writes what it has committed (spent, or reserved for calls in flight) and what it claims; all read all
records in one order (core/control.py). A claim is granted to a worker that has read its own record back, as soon as it
and the others' newest claims fit into the budget; a claim is lowered before the record that lowers it is written.

Law: what all may spend never adds up to more than the budget. Why: take the grant that came last in the order. It
fitted beside everybody's newest claim by then, and nobody may spend more than that claim of theirs or any later one.

What may come on top, and is stated so: of a worker that has died, only what it had written down counts, so at most what
was granted to it beyond that; likewise of one that is cut off from the cluster and goes on spending what it was
granted; and calls that are in flight at midnight count for the new day. Until its first claim of a day is granted a
worker may spend the n-th part of a quarter, which all others keep free until then.

Every claim is an equal part of what is left: near the end of a budget the last calls of some may find no room. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf

from sluiceway.core.control import Claim, Spend
from sluiceway.core.ledger import DayBudget

_OPENING = 4  # the part of a day's budget that is kept for those who have not claimed yet
_EVERY = 2.0  # seconds after which a change is written down
_PACE = 0.1  # seconds between two records at least

Sharers = Callable[[str], Collection[str]]
"""The other workers that live and spend that task's budget."""


def name_of(task: str) -> str:
    """What a lease says that it uses where its worker spends that task's budget."""
    return f"day/{task}"


class Claims:
    """One worker's: `budgets` by task. From now on they are shared: nothing may be spent before it is granted."""

    def __init__(self, worker: str, budgets: Mapping[str, DayBudget], sharers: Sharers, now: float) -> None:
        self._worker = worker
        self._budgets = dict(budgets)
        self._sharers = sharers
        self._born = now
        self._number = 0
        self._others: dict[str, Mapping[str, Claim]] = {}
        self._sent: dict[int, Mapping[str, Claim]] = {}  # records that have not been read back
        self._stands: Mapping[str, Claim] = {}  # the newest that was read back
        self._told: Mapping[str, Claim] = {}  # the newest that was written
        self._told_at = -inf
        for budget in self._budgets.values():
            budget.left(now)
            budget.granted = 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def see(self, worker: str, spend: Spend | None, now: float) -> None:
        """A worker's record was read, None where it was deleted."""
        if worker != self._worker:
            if spend is None:
                self._others.pop(worker, None)
            else:
                self._others[worker] = spend.tasks
        elif spend is not None and spend.born == self._born and spend.number in self._sent:
            self._stands = self._sent[spend.number]
            self._sent = {number: sent for number, sent in self._sent.items() if number > spend.number}
        for task, claim in self._stands.items():
            self._grant(task, claim, now)

    def _grant(self, task: str, claim: Claim, now: float) -> None:
        budget = self._budgets[task]
        if claim.day != budget.day(now) or budget.granted is None:
            return
        if claim.claimed + self._taken(task, claim.day) > budget.limit:
            return  # others were first: what was granted before still is
        later = [sent[task].claimed for sent in self._sent.values() if sent[task].day == claim.day]
        budget.granted = max(budget.granted, min([claim.claimed, *later]))

    # -- telling -----------------------------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Whether a record is to be written now."""
        if not self._budgets or now < self._told_at + _PACE:
            return False
        for task in self._budgets:
            told, would = self._told.get(task), self._claim(task, now)
            if told is None or told.day != would.day:
                return True
            had, have = told.claimed - told.committed, would.claimed - would.committed
            used = would.committed - told.committed
            if 2 * used > had or have > 2 * (had - used) or told.claimed - would.committed > 2 * have:
                return True
            if told != would and now >= self._told_at + _EVERY:
                return True
        return False

    def record(self, now: float, *, last: bool = False) -> Spend:
        """The record to write now, in the order in which they were asked for. `last`: nothing more is begun."""
        claims = {}
        for task, budget in self._budgets.items():
            claim = self._claim(task, now)
            if last:
                claim = Claim(claim.day, claim.committed, claim.committed)
            claims[task] = claim
            budget.granted = min(budget.granted or 0, claim.claimed)
            budget.opening = budget.limit // (_OPENING * (1 + len(self._sharers(task))))
        self._number += 1
        self._sent[self._number] = self._told = claims
        self._told_at = now
        return Spend(self._born, self._number, claims)

    def _claim(self, task: str, now: float) -> Claim:
        """What we would claim now: an equal part of what is left, as far as others' claims leave room for it.

        What was granted is kept up to that part, whatever others claim beside it.
        """
        budget = self._budgets[task]
        day = budget.day(now)
        committed = budget.spent + budget.reserved
        known = [claims[task] for claims in self._others.values() if task in claims and claims[task].day == day]
        left = budget.limit - committed - sum([claim.committed for claim in known])
        room = budget.limit - committed - self._taken(task, day)
        free = max(room, (budget.granted or 0) - committed)
        return Claim(day, committed, committed + max(0, min(free, left // (1 + len(self._sharers(task))))))

    def _taken(self, task: str, day: str) -> int:
        """What others may spend of that day's budget."""
        living = set(self._sharers(task))
        taken, silent = 0, bool(living - self._others.keys())
        for worker, claims in self._others.items():
            claim = claims.get(task)
            if claim is not None and claim.day == day:
                taken += claim.claimed if worker in living else claim.committed
            elif worker in living:
                silent = True
        return taken + (self._budgets[task].limit // _OPENING if silent else 0)

    # -- looking -----------------------------------------------------------------------------------------------------

    def settled(self, now: float) -> bool:
        """Whether each budget has a part for us, or nothing left for anybody."""
        for task, budget in self._budgets.items():
            day = budget.day(now)
            known = [claims[task] for claims in self._others.values() if task in claims and claims[task].day == day]
            spent = budget.spent + budget.reserved + sum([claim.committed for claim in known])
            if budget.left(now) <= 0 and spent < budget.limit:
                return False
        return True

    def __repr__(self) -> str:
        return f"Claims({self._worker}, {len(self._budgets)} budgets, {len(self._others)} others)"
