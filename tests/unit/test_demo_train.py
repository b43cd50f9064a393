"""How the demo's data is made: from published files, without the recorded tickets, the same each time."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from sluiceway.demo import train
from sluiceway.demo.tickets import tickets
from sluiceway.demo.train import Labelled

WORDS = {"card": "my card is {}", "cash": "the machine gave {} notes", "transfer": "send {} abroad"}
FILLS = ["lost", "new", "late", "five", "ten", "old", "big", "small", "blue", "red"]


def labelled() -> Labelled:
    pairs = [(form.format(fill), label) for label, form in WORDS.items() for fill in FILLS]
    return Labelled([text for text, _ in pairs], [label for _, label in pairs])


def test_training_gives_the_same_weights_each_time() -> None:
    """Same tickets, same classifier: the file that is shipped can be made again."""
    first, second = train.train(labelled()), train.train(labelled())
    assert np.array_equal(first[-1].coef_, second[-1].coef_)
    assert first[-1].coef_.dtype == np.float32
    assert train.accuracy(first, labelled()) == 1.0


def test_recorded_tickets_are_left_out_however_they_are_written() -> None:
    """Case, punctuation and spaces do not hide one: a student that had seen it would be no honest score."""
    seen = {train.normal("My card is LOST!")}
    left = labelled().without(seen)
    assert len(left.texts) == len(labelled().texts) - 1
    assert "my card is lost" not in left.texts


@pytest.mark.parametrize("doubted", [0.05, 0.2, 0.5])
def test_the_threshold_doubts_its_share_of_right_answers(doubted: float) -> None:
    """On the held-out tickets that share of the true labels, and no more, gets less than the threshold (ties apart)."""
    student = train.train(labelled())
    held_out = labelled()
    line = train.threshold(student, held_out, doubted)
    rows = student.predict_proba(held_out.texts)
    places = list(student.classes_)
    right = [row[places.index(label)] for row, label in zip(rows, held_out.labels, strict=True)]
    assert sum(value < line - 1e-6 for value in right) <= doubted * len(right) + 1
    assert sum(value <= line + 1e-6 for value in right) >= doubted * len(right)


def test_tickets_survive_the_way_into_the_package(tmp_path: Path) -> None:
    """What the recording holds is what the demo reads, byte for byte, and the file is always the same."""
    source = tmp_path / "merged.csv"
    rows = [
        {"user_query": 'a "quoted", text\nover lines', "gold_label": "x", "gpt_5_mini": "y", "gpt_5_2": "z",
         "claude_4_5_sonnet": "x\n\nWait"},
    ]  # fmt: skip
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (kept,) = train.read_recorded(source)
    assert kept == {
        "id": "ticket-001",
        "text": 'a "quoted", text\nover lines',
        "gold": "x",
        "gpt_5_mini": "y",
        "claude_4_5_sonnet": "x\n\nWait",
    }
    train.write_tickets([kept], tmp_path / "one.csv.gz")
    train.write_tickets([kept], tmp_path / "two.csv.gz")
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_a_recorded_ticket_that_holds_line_breaks_is_in_the_package() -> None:
    """The two answers in which a model thought aloud keep their line breaks."""
    assert sum("\n" in ticket.recorded["claude_4_5_sonnet"] for ticket in tickets()) == 2
