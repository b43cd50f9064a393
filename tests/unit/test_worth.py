"""A rung that costs more for each success than the next one: skipped or waited before, probed, and taken back."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from tests.support.core import CALM, HandClock, Scripted, climb, down, job, plan, policy, reply, runner

from sluiceway.core import outcome as outcomes
from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.cascade import Conditions, Role
from sluiceway.core.coin import Purpose, coin
from sluiceway.core.errors import PolicyError
from sluiceway.core.health import Health
from sluiceway.core.leave import Leaving
from sluiceway.core.ledger import usd
from sluiceway.core.outcome import Ending, Escalation, Result, Retry, Review, ReviewReason
from sluiceway.core.trail import EscalationReason, Routed, Waited
from sluiceway.core.worth import TooDear, WorthBoard
from sluiceway.runner import Runner
from sluiceway.telemetry.metrics import Metrics

SECRET = b"a secret of sixteen"  # the support runner's
WINDOW = 20
# A call to cheap costs 290 micro-dollars, one to frontier 725: asking cheap first pays where it succeeds 2 times in 5.
CHEAP: dict[str, Any] = {
    "cheap": {
        "provider": "openai",
        "model": "gpt-cheap",
        "tier": "small",
        "params": {"max_tokens": 50},
        "price": {"input_mtok": 2, "output_mtok": 10},
    }
}
SKIP = {"worth": {"window": WINDOW, "probe": "20%"}}
PAUSE = {"worth": {"window": WINDOW, "probe": "20%", "action": "pause"}, "deadline": "100s"}
DEAR = Conditions({}, too_dear={"cheap": TooDear("frontier", "worth: 3 USD a success, 1 USD at frontier")})


def is_probe(origin: str) -> bool:
    return coin(SECRET, Purpose.PROBE, origin) < 0.2


async def served(made: Runner, number: int) -> Ending:
    """Both roles, one after the other."""
    record = await made.run(job(id=f"j{number}", origin=f"o/{number}"))
    while isinstance(record, Escalation):
        record = await made.resume(outcomes.decode(Escalation, outcomes.encode(record)))
    return record


class Rig:
    """A runner whose cheap model is as sure as `p` says, and what each job called."""

    def __init__(self, task: dict[str, Any], leaving: Leaving | None = None) -> None:
        self.p = 0.2
        self.models = Scripted(self._answer, HandClock())
        self.runner, self.meter = runner(policy(task, CHEAP), self.models, leaving=leaving or Leaving((), 0))
        self.next = 0

    def _answer(self, call: Call) -> Reply | Failure:
        return reply(p=self.p) if call.model.name == "cheap" else reply(p=None)

    async def serve(self, count: int) -> dict[int, tuple[Ending, list[str]]]:
        """The next `count` jobs, one after another: each one's record and the models it called."""
        found = {}
        for number in range(self.next, self.next + count):
            before = len(self.models.calls)
            record = await served(self.runner, number)
            found[number] = record, [call.model.name for call in self.models.calls[before:]]
        self.next += count
        return found

    @property
    def board(self) -> WorthBoard:
        return self.runner.worth["triage"]


async def test_a_rung_that_never_succeeds_is_skipped_probed_and_comes_back() -> None:
    """After one window it costs less to go past it; the probes go on; when it is good again it is asked again."""
    rig = Rig(SKIP)
    first = await rig.serve(WINDOW)
    assert all(called == ["cheap", "frontier"] for _, called in first.values())

    skipped = await rig.serve(100)
    for number, (record, called) in skipped.items():
        assert called == (["cheap", "frontier"] if is_probe(f"o/{number}") else ["frontier"]), number
        assert isinstance(record, Result)
        assert record.model == "frontier"
        if not is_probe(f"o/{number}"):
            route = record.trail.steps[0]
            assert isinstance(route, Routed)
            assert route.left_out["cheap"].startswith("worth: 0.0058 USD and no success in 20 jobs, 0.000725 USD")
            assert record.escalated is EscalationReason.ROUTED
    probes = sum(is_probe(f"o/{number}") for number in skipped)
    assert 5 < probes < 35, "some of a hundred"

    naive = Rig({"worth": {"action": "keep", "window": WINDOW}})
    await naive.serve(WINDOW + 100)
    assert naive.runner.spent - rig.runner.spent == (100 - probes) * 290 * 10**6

    rig.p = 0.99
    back = await rig.serve(200)
    asked = [number for number, (_, called) in back.items() if "cheap" in called and not is_probe(f"o/{number}")]
    assert asked, "it came back"
    before = sum(is_probe(f"o/{number}") for number in back if number < asked[0])
    assert before == 8, "8 successes in 20 jobs cost 725 each, no more than at the frontier"
    later = {number: called for number, (_, called) in back.items() if number >= asked[0]}
    assert all(called == ["cheap"] for called in later.values()), "and stays"


async def test_the_reason_and_the_price_are_metrics() -> None:
    """Routes past it are counted; what a success costs, and that it is too dear, stand beside them."""
    rig = Rig(SKIP)
    metrics = Metrics()
    await rig.serve(WINDOW + 50)
    for record, known in rig.meter.records:
        metrics.finished(record, known=known)
    metrics.worth(rig.runner.worth)
    skips = sum(not is_probe(f"o/{number}") for number in range(WINDOW, WINDOW + 50))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"task": "triage", **labels})

    assert value("sluiceway_worth_skips_total", model="cheap") == skips > 0
    assert value("sluiceway_cost_per_success_usd", model="cheap") == float("inf")
    assert value("sluiceway_cost_per_success_usd", model="frontier") == pytest.approx(0.000725)
    assert value("sluiceway_too_dear", model="cheap") == 1
    assert value("sluiceway_too_dear", model="frontier") == 0
    spent = value("sluiceway_answered_cost_usd_total")
    assert spent == pytest.approx(usd(rig.runner.spent))
    assert value("sluiceway_context_use_ratio_count", model="frontier") == WINDOW + 50
    assert value("sluiceway_context_use_ratio_sum", model="frontier") == pytest.approx(70 * 125 / 128_000, rel=0.01)


async def test_a_paused_task_waits_and_a_person_gets_what_could_not() -> None:
    """No call is paid meanwhile but for probes; the review says why."""
    rig = Rig(PAUSE)
    await rig.serve(WINDOW)
    for number, (record, called) in (await rig.serve(30)).items():
        if is_probe(f"o/{number}"):
            assert called == ["cheap", "frontier"]
            continue
        assert called == []
        assert isinstance(record, Review)
        assert record.reason is ReviewReason.DEADLINE
        assert record.detail is not None
        assert record.detail.startswith("worth: ")
        assert record.cost_picousd == 0


async def test_a_paused_job_leaves_to_wait_and_is_served_when_the_rung_is_good_again() -> None:
    """By the retry topics, like every wait; where it left is where it goes on."""
    rig = Rig({**PAUSE, "deadline": "1h"}, Leaving((10.0, 60.0), 0))
    await rig.serve(WINDOW)
    number = next(number for number in range(1000) if not is_probe(f"w/{number}"))
    waits = await rig.runner.run(job(id="w", origin=f"w/{number}"))
    assert isinstance(waits, Retry)
    assert waits.rung == "cheap"
    wait = waits.trail.steps[-1]
    assert isinstance(wait, Waited)
    assert wait.reason.startswith("worth: ")
    metrics = Metrics()
    metrics.finished(waits, known=0)
    labels = {"task": "triage", "model": "cheap"}
    assert metrics.registry.get_sample_value("sluiceway_worth_pauses_total", labels) == 1
    rig.p = 0.99
    probes = [number for number in range(1000, 1200) if is_probe(f"o/{number}")]
    for number in probes[:12]:
        await served(rig.runner, number)
    assert not rig.board.too_dear
    back = await rig.runner.resume(outcomes.decode(Retry, outcomes.encode(waits)))
    assert isinstance(back, Result)
    assert back.model == "cheap"


async def test_a_round_that_a_person_opens_overturns_what_was_delivered_before() -> None:
    """The rung's answers stand no more: each success is taken back, its cost is not."""
    rig = Rig(SKIP)
    rig.p = 0.99
    await rig.serve(WINDOW)
    assert rig.board.prices() == {"cheap": pytest.approx(0.00029)}
    rig.p = 0.2  # the second look finds it unsure
    for number in range(13):
        await rig.runner.run(job(id=f"j{number}", origin=f"o/again/{number}", round=1))
    # The first rounds of 13 jobs have left the window, and their second ones were no successes; 7 stand.
    assert rig.board.prices()["cheap"] == pytest.approx(0.00029 * 20 / 7)
    rig.runner.worth["triage"].overturned("j19", before=1)
    assert rig.board.prices()["cheap"] == pytest.approx(0.00029 * 20 / 6)


async def test_an_outage_is_no_price() -> None:
    """Calls that fail and bill nothing make no rung dear."""
    models = Scripted(lambda call: down() if call.model.name == "cheap" else reply(p=None), HandClock())
    made, _ = runner(policy({**SKIP, "failed_share": 1.0, "retries": {"tries": 1}}, CHEAP), models)
    for number in range(2 * WINDOW):
        await served(made, number)
        assert isinstance(models.clock, HandClock)
        models.clock.time += 60.0
    assert not made.worth["triage"].too_dear


def test_a_rung_is_kept_where_the_one_instead_may_not_serve_the_job_or_is_down() -> None:
    """A price is no reason to leave a job without a model, or to send it into an outage."""
    confidential = {"cheap": {**CHEAP["cheap"], "clearance": "confidential"}}
    made = plan(SKIP, confidential)
    secret = climb(made, job(clearance="confidential"), lambda _call: reply(), conditions=DEAR)
    assert secret.models == ["cheap"]
    out = Conditions({"frontier": Health(out_until=2000.0)}, too_dear=DEAR.too_dear)
    assert climb(made, job(), lambda _call: reply(), conditions=out).models == ["cheap"]
    assert climb(made, job(), lambda _call: reply(), conditions=DEAR).models == []
    assert climb(made, job(), lambda _call: reply(), conditions=CALM).models == ["cheap"]


def test_a_rung_dearer_than_the_next_is_skipped_for_it_alone() -> None:
    """The rungs above stay on the route."""
    models = {**CHEAP, "mid": {"provider": "openai", "model": "gpt-mid", "params": {"max_tokens": 50}}}
    made = plan({**SKIP, "ladder": ["cheap", "mid", "frontier"]}, models)
    dear = Conditions({}, too_dear={"cheap": TooDear("mid", "worth: 3 USD a success, 1 USD at mid")})
    done = climb(made, job(), lambda _call: reply(p=0.1), conditions=dear)
    assert done.models == ["mid"]
    assert isinstance(done.record, Escalation)
    route = done.record.trail.steps[0]
    assert isinstance(route, Routed)
    assert route.left_out == {"cheap": "worth: 3 USD a success, 1 USD at mid"}
    assert route.facts["too_dear"] == {"cheap": "mid"}


def test_the_reference_is_never_skipped_nor_waited_before() -> None:
    """There is nothing after it."""
    first = climb(plan(PAUSE, CHEAP), job(), lambda _call: reply(p=0.1))
    assert isinstance(first.record, Escalation)
    done = climb(
        plan(PAUSE, CHEAP), job(), lambda _call: reply(p=None), Role.ESCALATIONS, resumed=first.record, conditions=DEAR
    )
    assert done.models == ["frontier"]
    assert not done.waits


def test_a_result_tells_its_saving_and_how_much_of_the_window_it_took() -> None:
    """Exactly: the reference's cost less all attempts'; tokens over the context window."""
    done = climb(plan(None, CHEAP), job(), lambda _call: reply())
    assert isinstance(done.record, Result)
    assert done.record.reference_cost_picousd is not None
    assert done.record.saving_picousd == done.record.reference_cost_picousd - done.record.cost_picousd
    assert done.record.context_use == round(125 / 128_000, 6)
    assert done.record.trail.attempts[0].context_use == done.record.context_use


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [("action", "stop", "skip, pause or keep"), ("window", 5, "20 or more"), ("probe", 0, "a share such as 5%")],
)
def test_a_wrong_rule_is_told_with_its_mend(key: str, value: object, mend: str) -> None:
    """A probe of nothing would never let a rung come back."""
    with pytest.raises(PolicyError) as caught:
        policy({"worth": {key: value}})
    assert mend in str(caught.value)


def test_what_a_success_costs_at_an_unmeasured_rung_is_the_worst_that_it_can() -> None:
    """All input at the dearest rate and the longest answer, for each draw of a vote."""
    made = plan({"gate": {"score": "votes", "threshold": 0.6, "votes": 3}})
    assert made.worst_at("frontier", 1000) == int(1000 * Decimal("6.25") + 200 * 25) * 10**6
    assert made.worst_at("cheap", 1000) == 3 * int(1000 * Decimal("0.15") + 50 * Decimal("0.60")) * 10**6
