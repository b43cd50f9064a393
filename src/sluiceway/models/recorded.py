"""Answers from a file instead of a model: for the demo, for tests and for replay.

A recording is CSV or JSONL (plain, .gz or .zst) with the job's text in one column and each model's answer in one of its
own. It holds answers only: usage is counted by tiktoken and a call takes no time, which says nothing of the real model.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import orjson
import zstandard

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Usage
from sluiceway.core.catalog import Model
from sluiceway.core.errors import InputError
from sluiceway.models import schema
from sluiceway.models.tokens import Encoding

_TEXT_COLUMNS = ("text", "input", "user_query")
_LONGEST_CELL = 16_000_000


class Recording:
    """The rows of one file by the job's text: exact first, then with its white space evened out."""

    def __init__(self, path: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.path = path
        self.columns: list[str] = []
        self._exact: dict[str, Mapping[str, Any]] = {}
        self._even: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if not self.columns:
                self.columns = list(row)
            text = row.get(self.text_column)
            if isinstance(text, str):
                self._exact.setdefault(text, row)
                self._even.setdefault(_even(text), row)

    @property
    def text_column(self) -> str:
        """`text`, `input` or `user_query` where there is one, else the first."""
        known = [name for name in _TEXT_COLUMNS if name in self.columns] or self.columns or ["text"]
        return known[0]

    def find(self, text: str) -> Mapping[str, Any] | None:
        row = self._exact.get(text)
        return row if row is not None else self._even.get(_even(text))

    def __len__(self) -> int:
        return len(self._exact)

    def __repr__(self) -> str:
        return f"Recording({self.path!r}, {len(self)} texts)"


def read(path: str) -> Recording:
    """The recording in `path`. Raises InputError where the file can't be read or its rows are not rows."""
    names = [suffix for suffix in Path(path).suffixes if suffix not in (".gz", ".zst")]
    kind = names[-1].lower() if names else ""
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise InputError("recording", f"{path}: not a recording. Mend: name a .csv or .jsonl file, plain, .gz or .zst")
    try:
        with _open(path) as lines:
            return Recording(path, _csv(lines) if kind == ".csv" else _jsonl(path, lines))
    except (OSError, EOFError, zstandard.ZstdError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError("recording", f"{path}: can't be read ({problem}). Mend: name an existing file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("recording", f"{path}: not UTF-8 text in rows ({error}). Mend: save it as UTF-8") from None


def _open(path: str) -> TextIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if path.endswith(".zst"):
        packed = Path(path).open("rb")  # noqa: SIM115 - closed with the reader that is returned
        raw = zstandard.ZstdDecompressor().stream_reader(packed, closefd=True)
        return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    return Path(path).open(encoding="utf-8-sig", newline="")


def _csv(lines: TextIO) -> Iterable[Mapping[str, Any]]:
    csv.field_size_limit(_LONGEST_CELL)  # the process-wide default of 128 kB is less than a job may hold
    return csv.DictReader(lines)


def _jsonl(path: str, lines: TextIO) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError("recording", f"{path}:{number}: not JSON ({error}). Mend: one object a line") from None
        if not isinstance(row, dict):
            raise InputError("recording", f"{path}:{number}: not an object. Mend: one object a line")
        yield row


class RecordedEndpoint:
    """Answers calls to one model out of a recording."""

    def __init__(self, model: Model, recording: Recording, encoding: Encoding) -> None:
        columns = [model.column] if model.column else [model.name, model.model]
        column = next((name for name in columns if name in recording.columns), None)
        if column is None:
            known = ", ".join(recording.columns)
            detail = f"model {model.name!r}: {recording.path} has no column {model.column or model.name!r}"
            raise InputError("recording", f"{detail}. Mend: name one of its columns with `column:` ({known})")
        self._column = column
        self._recording = recording
        self._encoding = encoding
        self._served = model.model or model.name
        self.origin = f"recorded:{Path(recording.path).name}"

    async def call(self, call: Call) -> Reply | Failure:
        row = self._recording.find(call.request.text)
        cell = row.get(self._column) if row is not None else None
        if cell is None or cell == "":
            return Failure(FailureKind.INVALID, "not_recorded")
        text = _answer(cell, call.request.schema)
        usage = Usage(input_uncached=call.request.input_tokens, output_text=self._encoding.count(text))
        return Reply(text=text, usage=usage, model_served=self._served)

    async def close(self) -> None:
        """Nothing is open."""


def _answer(cell: Any, wanted: Mapping[str, Any] | None) -> str:
    """The cell as a reply's text: an object as it is, a bare value under the one property that the answer has."""
    if isinstance(cell, dict):
        return orjson.dumps(cell).decode()
    if isinstance(cell, str) and _is_object(cell):
        return cell
    only = schema.only_property(wanted)
    if only is None:
        return cell if isinstance(cell, str) else orjson.dumps(cell).decode()
    name, part = only
    if part.get("type") == "array" and isinstance(cell, str):
        cell = _listed(cell)
    return orjson.dumps({name: cell}).decode()


def _listed(cell: str) -> Any:
    """A set of tags in one cell: a JSON array, or names between semicolons or commas."""
    try:
        parsed = orjson.loads(cell)
    except orjson.JSONDecodeError:
        mark = ";" if ";" in cell else ","
        return [tag.strip() for tag in cell.split(mark) if tag.strip()]
    return parsed if isinstance(parsed, list) else [cell]


def _is_object(cell: str) -> bool:
    if not cell.lstrip().startswith("{"):
        return False
    try:
        return isinstance(orjson.loads(cell), dict)
    except orjson.JSONDecodeError:
        return False


def _even(text: str) -> str:
    return " ".join(text.split())
