"""Texts for jobs: real tickets and news where the shared data lie beside the checkout, made ones where they don't.

Each text is distinct, so that a fake model's decision about it (a hash of the text) is a decision about one job.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def bank_tickets(count: int) -> list[str]:
    """`count` distinct texts: questions of bank customers, then the same with a case number."""
    texts: list[str] = []
    for name in ("train.csv", "test.csv"):
        file = SHARED / "banking77" / name
        if file.exists():
            texts += [row["text"].strip() for row in csv.DictReader(file.read_text("utf-8").splitlines())]
    return _numbered(texts or _made(500), count)


def it_tickets(count: int) -> list[str] | None:
    """`count` distinct texts of the IT backlog, None where it is not here."""
    file = SHARED / "it-tickets" / "all_tickets.csv.gz"
    if not file.exists():
        return None
    rows = csv.DictReader(io.StringIO(gzip.decompress(file.read_bytes()).decode(), newline=""))
    return _numbered([row["Document"] for row in rows], count)


def stories(count: int, longest: int = 6_000) -> list[str]:
    """`count` distinct documents of at most `longest` characters: news where the data are here, else made ones."""
    file = SHARED / "reuters90" / "test_data.json"
    if file.exists():
        texts = [story["text"] for story in json.loads(file.read_text("utf-8"))]
    else:
        texts = [" ".join(_made(40, seed=number)) for number in range(40)]
    return _numbered([text[:longest] for text in texts], count)


def _numbered(texts: list[str], count: int) -> list[str]:
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    made = distinct[:count]
    lap = 1
    while len(made) < count:
        lap += 1
        made += [f"{text} (case {lap})" for text in distinct[: count - len(made)]]
    return made


_WHO = ("My card", "The transfer", "A refund", "The direct debit", "My account", "The top-up", "The exchange rate")
_WHAT = ("is still pending", "was declined", "is not there", "was charged twice", "looks wrong", "was blocked abroad")
_WHEN = ("since Monday", "for two weeks", "this morning", "after the update", "on my last trip", "again")
_ASK = ("What can I do?", "Please help.", "Can you check it?", "How long will it take?", "I want my money back.")


def _made(count: int, seed: int = 77) -> list[str]:
    dice = random.Random(seed)
    return [
        f"{dice.choice(_WHO)} {dice.choice(_WHAT)} {dice.choice(_WHEN)}. {dice.choice(_ASK)} Reference {number}."
        for number in range(count)
    ]
