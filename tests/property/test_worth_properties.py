"""The board of what a success costs, against the same sums done the long way."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.core.outcome import Ending, Escalation, Result, Review, ReviewReason, Status
from sluiceway.core.trail import Attempt, EscalationReason, PromptFacts, Role, Trail, VerdictKind
from sluiceway.core.worth import Action, Worth, WorthBoard

LADDER = ("cheap", "mid", "frontier")
RULES = Worth(window=20)
WORST = {"mid": 40, "frontier": 100}  # pico-dollars a token


@dataclass(frozen=True)
class Job:
    """What a job did: its attempts as (model, cost), the model whose answer was accepted, and what it ended in."""

    id: str
    round: int
    attempts: tuple[tuple[str, int], ...]
    accepted: bool
    held: bool
    tokens: int

    def record(self, role: Role) -> Ending:
        last = len(self.attempts) - 1
        steps = tuple(
            Attempt(
                model=model,
                tier=model,
                at=0.0,
                seconds=0.0,
                verdict=VerdictKind.ACCEPT if self.accepted and number == last else VerdictKind.ESCALATE,
                reason=None,
                policy="",
                cost_picousd=cost,
                prompt=PromptFacts("", self.tokens),
            )
            for number, (model, cost) in enumerate(self.attempts)
        )
        trail = Trail("o", 0.0, 1.0, steps)
        who = (self.id, self.round, "t")
        if self.accepted and self.held:
            return Review("", *who, ReviewReason.ALWAYS, "", 0.0, trail, trail.cost_picousd, 0.0, {})
        if self.accepted:
            return Result("", *who, Status.ANSWERED, "", 0.0, trail, trail.cost_picousd, 0.0)
        if role is Role.JOBS:
            return Escalation(*who, EscalationReason.UNCERTAIN, "", trail, {})
        return Review("", *who, ReviewReason.UNSETTLED, "", 0.0, trail, trail.cost_picousd, 0.0, {})

    @property
    def served(self) -> str | None:
        return self.attempts[-1][0] if self.accepted and self.attempts else None


JOBS = st.builds(
    Job,
    st.sampled_from([f"j{number}" for number in range(60)]),
    st.integers(0, 2),
    st.lists(st.tuples(st.sampled_from(LADDER[:2]), st.integers(0, 5000)), min_size=1, max_size=4).map(
        lambda found: tuple(sorted(found, key=lambda one: LADDER.index(one[0])))
    ),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
    st.integers(1, 50),
)
REFERENCE = st.builds(
    Job,
    st.just("r"),
    st.just(0),
    st.tuples(st.tuples(st.just("frontier"), st.integers(0, 9000))),
    st.booleans(),
    st.just(False),
    st.integers(1, 50),
)
Event = tuple[Role, Job]
EVENTS = st.lists(st.one_of(JOBS.map(lambda one: (Role.JOBS, one)), REFERENCE.map(lambda r: (Role.ESCALATIONS, r))))


def worst(model: str, tokens: int) -> int:
    return WORST[model] * tokens


def long_way(events: list[Event], overturned: tuple[str, int]) -> dict[str, str]:
    """Model -> the one to be used instead, by the rule as the policy's page words it."""
    tried: dict[str, list[tuple[int, int, bool]]] = {model: [] for model in LADDER}
    for _, one in events:
        for model in dict.fromkeys(name for name, _ in one.attempts):
            if model == one.served and one.held:
                continue
            stands = not (one.id == overturned[0] and one.round < overturned[1])
            cost = sum(cost for name, cost in one.attempts if name == model)
            tried[model] = [*tried[model], (cost, one.tokens, model == one.served and stands)][-20:]
    found: dict[str, str] = {}
    instead = "frontier"
    for model in ("mid", "cheap"):
        jobs, others = tried[model], tried[instead]
        if len(jobs) == 20:
            cost, successes = sum(one[0] for one in jobs), sum(one[2] for one in jobs)
            if len(others) >= 20:
                theirs, theirs_for = sum(one[0] for one in others), sum(one[2] for one in others)
            else:
                mean = -(-sum(one[1] for one in jobs) // 20)
                theirs, theirs_for = worst(instead, mean), 1
            if cost * theirs_for > theirs * successes:
                found[model] = instead
                continue
        instead = model
    return found


@given(events=st.lists(EVENTS, min_size=3, max_size=6).map(lambda parts: [one for part in parts for one in part]))
@settings(max_examples=200, deadline=None)
def test_a_model_is_too_dear_exactly_by_the_rule(events: list[Event]) -> None:
    """Whatever jobs end in whatever order, and whatever is overturned since; never the reference."""
    board = WorthBoard(RULES, LADDER, worst)
    for role, one in events:
        board.ended(one.record(role), role)
    assert {model: known.instead for model, known in board.too_dear.items()} == long_way(events, ("", 0))
    board.overturned("j1", 2)
    assert {model: known.instead for model, known in board.too_dear.items()} == long_way(events, ("j1", 2))
    assert "frontier" not in board.too_dear
    assert all(price >= 0 for price in board.prices().values())


@given(jobs=st.lists(JOBS, min_size=20, max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_rule_that_keeps_finds_nothing_too_dear(jobs: list[Job]) -> None:
    """It measures, and no more."""
    board = WorthBoard(Worth(window=20, action=Action.KEEP), LADDER, worst)
    for one in jobs:
        board.ended(one.record(Role.JOBS), Role.JOBS)
    assert not board.too_dear
