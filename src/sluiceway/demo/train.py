"""Makes the demo's two data files from the published data sets: `python -m sluiceway.demo.train --help`.

`tickets.csv.gz` holds the 500 recorded tickets; `student.skops` a classifier trained on labelled tickets that are not
among them, which scores the answers of others. The same input gives the same tickets and weights. The threshold that
it prints, and that policy.yaml holds, is chosen on the held-out file, which neither trained it nor holds a recorded
ticket: the probability below which it would doubt one right answer in twenty.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

DOUBTED = 0.05  # share of right answers that the threshold may doubt
SEED = 7
STRENGTHS = (10.0, 30.0, 100.0)  # the classifier's C, chosen by log loss in cross-validation

_COLUMNS = {
    "user_query": "text",
    "gold_label": "gold",
    "gpt_5_mini": "gpt_5_mini",
    "claude_4_5_sonnet": "claude_4_5_sonnet",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts with the label of each."""

    texts: list[str]
    labels: list[str]

    def without(self, texts: set[str]) -> Labelled:
        """Those whose text, normalised, is not in `texts`."""
        kept = [pair for pair in zip(self.texts, self.labels, strict=True) if normal(pair[0]) not in texts]
        return Labelled([text for text, _ in kept], [label for _, label in kept])


def normal(text: str) -> str:
    """Lower case, and one space for whatever is neither letter nor digit."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def read_labelled(path: Path) -> Labelled:
    """A file of banking77: columns `text` and `category`."""
    rows = _rows(path)
    return Labelled([row["text"] for row in rows], [row["category"] for row in rows])


def read_recorded(path: Path) -> list[dict[str, str]]:
    """The rows of a recording as the demo keeps them: id, text, gold and one column a model."""
    return [
        {"id": f"ticket-{number:03}"} | {ours: row[theirs] for theirs, ours in _COLUMNS.items()}
        for number, row in enumerate(_rows(path), 1)
    ]


def train(labelled: Labelled) -> Pipeline:
    """TF-IDF of single words under a multinomial logistic regression, weights in 32 bits."""
    strength = min(STRENGTHS, key=lambda c: _cross_validated(labelled, c))
    pipeline = _pipeline(strength).fit(labelled.texts, labelled.labels)
    regression = pipeline[-1]
    regression.coef_ = regression.coef_.astype(np.float32)
    regression.intercept_ = regression.intercept_.astype(np.float32)
    return pipeline


def threshold(student: Pipeline, held_out: Labelled, doubted: float = DOUBTED) -> float:
    """The probability that the student gives the true label of all but the share `doubted` of the held-out tickets."""
    places = {label: place for place, label in enumerate(student.classes_)}
    rows = student.predict_proba(held_out.texts)
    right = [float(row[places[label]]) for row, label in zip(rows, held_out.labels, strict=True)]
    return float(np.quantile(right, doubted))


def accuracy(student: Pipeline, held_out: Labelled) -> float:
    return float(np.mean(student.predict(held_out.texts) == np.array(held_out.labels)))


def write_tickets(rows: Sequence[dict[str, str]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", *_COLUMNS.values()], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))


def _pipeline(strength: float) -> Pipeline:
    words = TfidfVectorizer(min_df=2, sublinear_tf=True, dtype=np.float32)
    return make_pipeline(words, LogisticRegression(C=strength, max_iter=500, random_state=SEED))


def _cross_validated(labelled: Labelled, strength: float) -> float:
    folds = StratifiedKFold(4, shuffle=True, random_state=SEED)
    rows = cross_val_predict(
        _pipeline(strength), labelled.texts, labelled.labels, cv=folds, method="predict_proba"
    )  # fmt: skip
    return float(log_loss(labelled.labels, rows))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sluiceway.demo.train", description=__doc__.partition("\n")[0])
    parser.add_argument("train", type=Path, help="banking77's train.csv")
    parser.add_argument("held_out", type=Path, help="banking77's test.csv: chooses the threshold, trains nothing")
    parser.add_argument("recorded", type=Path, help="banking77-models' merged_regular.csv: the 500 recorded tickets")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write; default: the package")
    options = parser.parse_args(arguments)
    tickets = read_recorded(options.recorded)
    recorded = {normal(row["text"]) for row in tickets}
    labelled = read_labelled(options.train).without(recorded)
    held_out = read_labelled(options.held_out).without(recorded)
    student = train(labelled)
    write_tickets(tickets, options.out / "tickets.csv.gz")
    skops.io.dump(student, options.out / "student.skops", compression=zipfile.ZIP_DEFLATED, compresslevel=9)
    sys.stdout.write(
        f"{len(tickets)} tickets; trained on {len(labelled.texts)} others, C = {student[-1].C:g}\n"
        f"on {len(held_out.texts)} held-out tickets: accuracy {accuracy(student, held_out):.3f}, "
        f"threshold {threshold(student, held_out):.3f} doubts {DOUBTED:.0%} of right answers\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
