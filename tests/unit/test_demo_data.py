"""What the demo ships: its tickets, its policy, its classifier, and what its notes claim about them."""

from __future__ import annotations

import warnings
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from sluiceway.core.catalog import Api, Model
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task
from sluiceway.demo import notes
from sluiceway.demo.tickets import policy_file, tickets
from sluiceway.kafka.embedded import SETTINGS
from sluiceway.kafka.security import read_connection
from sluiceway.models import local
from sluiceway.policyfile import read_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy(policy_file())


@pytest.fixture(scope="module")
def task(policy: Policy) -> Task:
    return policy.tasks["bank-triage"]


def test_the_tickets_are_the_record_that_left_sixteen_labels_out() -> None:
    """Against gold, gpt-5-mini is right on 306 of 500 and claude-4.5-sonnet on 311: the record's own .612 and .622."""
    every = tickets()
    right = {
        column: sum(ticket.recorded[column] == ticket.gold for ticket in every)
        for column in ("gpt_5_mini", "claude_4_5_sonnet")
    }
    assert (len(every), right) == (500, {"gpt_5_mini": 306, "claude_4_5_sonnet": 311})


def test_every_gold_label_is_a_label_of_the_task(task: Task) -> None:
    """All 77, and every recorded answer but the two that are no label at all."""
    labels = set(task.labels or ())
    every = tickets()
    assert {ticket.gold for ticket in every} <= labels
    assert len({ticket.gold for ticket in every}) == 77
    strange = Counter(
        column for ticket in every for column, answer in ticket.recorded.items() if answer not in labels
    )  # fmt: skip
    assert strange == {"claude_4_5_sonnet": 2}


def test_tickets_repeat_under_new_ids() -> None:
    """However many are asked for, ids differ; texts begin again after the 500th."""
    many = tickets(1203)
    assert len({ticket.id for ticket in many}) == len(many) == 1203
    assert many[500].text == many[0].text
    assert [ticket.id for ticket in tickets(3)] == ["ticket-001", "ticket-002", "ticket-003"]
    assert tickets(1, "run-")[0].id == "run-ticket-001"


def test_the_policy_prices_its_models_by_the_library(policy: Policy) -> None:
    """No price is written by hand, nothing is warned of, and the declared bar is there to be called unproved."""
    assert policy.prices["mini"].startswith("genai-prices")
    assert policy.prices["sonnet"].startswith("genai-prices")
    assert policy.warnings == ()
    assert notes.honest(policy, policy.tasks["bank-triage"], own_policy=False)[-1].endswith("declared, not yet proved.")


def test_the_student_loads_without_a_warning_and_knows_the_labels(policy: Policy, task: Task) -> None:
    """The file fits the pinned scikit-learn and skops, holds only trusted types, and answers in the task's labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = local.load(policy.models["student"])
        (row,) = student.predict_proba(["I lost my card"]).tolist()
    assert set(student.classes_) <= set(task.labels or ())
    assert sum(row) == pytest.approx(1.0, abs=1e-4)


def test_the_student_is_as_good_as_the_notes_say() -> None:
    """Its own first choice on the 500, which it was not trained on; a much better one would have seen them."""
    student = local.load(Model(name="student", api=Api.LOCAL, file=str(policy_file().parent / "student.skops")))
    every = tickets()
    chosen = student.predict_proba([ticket.text for ticket in every]).argmax(axis=1)
    right = sum(student.classes_[place] == ticket.gold for place, ticket in zip(chosen, every, strict=True))
    assert right / len(every) == pytest.approx(notes.STUDENT_ACCURACY, abs=0.0005)


def test_licences_travel_with_the_data() -> None:
    """MIT asks for its text beside the answers, CC BY 4.0 for its author's name."""
    folder = resources.files("sluiceway.demo")
    assert "MIT License" in folder.joinpath("LICENSE-banking77-models").read_text("utf-8")
    notice = folder.joinpath("NOTICE").read_text("utf-8")
    assert "PolyAI" in notice
    assert "creativecommons.org/licenses/by/4.0" in notice


def test_the_data_stays_small() -> None:
    """Two files that everybody who installs Sluiceway downloads: under a megabyte together."""
    folder = Path(policy_file()).parent
    assert sum((folder / name).stat().st_size for name in ("student.skops", "tickets.csv.gz")) < 1_000_000


def test_the_embedded_broker_is_fetched_from_at_short_waits() -> None:
    """It answers a fetch only when the wait ends: at Kafka's default of 500 ms every hop would cost a job 100 ms."""
    connection = read_connection("127.0.0.1:1", [f"{name}={value}" for name, value in SETTINGS.items()])
    assert connection.number("fetch.wait.max.ms") <= 50
