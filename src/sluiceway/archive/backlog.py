"""A backlog: a file of jobs to be published or replayed, read row by row.

JSON lines, CSV and OpenAI batch files, plain, gzip or zstandard. A row that is no job is a value with its reason, so
that its neighbours are not touched. A row's number counts from 1 (lines of JSONL, records of CSV below the header).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sluiceway.archive import openai_batch
from sluiceway.archive.packed import BROKEN, STDIN, open_packed
from sluiceway.core import job as jobs
from sluiceway.core.errors import InputError
from sluiceway.core.job import Job

TEXT_FIELDS = ("text", "input", "body", "user_query")
"""Where the text is looked for, in this order, when no field is named."""

_ID = "id"
_DECLARED = ("tenant", "stakes", "priority", "clearance")  # what a line of JSON may declare beside its text
_LONGEST_CELL = 64 << 20
_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Row:
    """One job of the backlog, and the row as it stood (for a gold column)."""

    number: int
    job: Job
    fields: Mapping[str, Any]

    @property
    def record(self) -> bytes:
        """The job as a record of the jobs topic."""
        return orjson.dumps({**self.job.raw, "id": self.job.id, "task": self.job.task})


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no job: why, and the sha256 of its bytes."""

    number: int
    origin: str
    reason: str
    detail: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """`task` is that of rows which name none; `id_field` and `text_field` say where foreign rows hold theirs."""

    path: str
    task: str = ""
    id_field: str | None = None
    text_field: str | None = None

    @property
    def name(self) -> str:
        return "stdin" if self.path == STDIN else Path(self.path).name

    def rows(self) -> Iterator[Row | BadRow]:
        """Every row, in order. Raises InputError where the file can't be read or has no such column."""
        last = 0
        with open_packed(self.path) as stream:
            try:
                for row in self._csv(stream) if _is_csv(self.path, stream) else self._lines(stream):
                    last = row.number
                    yield row
            except BROKEN as error:
                problem = f"it breaks off after row {last} ({error})"
                raise InputError("backlog", f"{self.path}: {problem}. Mend: fetch the file again") from None

    def count(self) -> int | None:
        """How many rows there are; None for standard input, which can be read only once."""
        if self.path == STDIN:
            return None
        with open_packed(self.path) as stream:
            try:
                if _is_csv(self.path, stream):
                    with _text(stream) as lines:
                        return max(0, sum(1 for _ in csv.reader(lines)) - 1)
                return sum(1 for line in stream if line.strip())
            except (*BROKEN, csv.Error):
                return None  # reading the rows will say what is wrong, and where

    def _lines(self, stream: io.BufferedReader) -> Iterator[Row | BadRow]:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                tree = jobs.load_json(line.removeprefix(b"\xef\xbb\xbf").strip())
                if not isinstance(tree, dict):
                    raise InputError("invalid", "a line is one JSON object")
                yield Row(number, self._admit(self._job_of(tree), number), tree)
            except InputError as error:
                yield self._bad(number, error, line)

    def _job_of(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The job record of one JSON object: a job as it is, a request of an OpenAI batch, or a foreign row."""
        if openai_batch.is_request(tree):
            return {"id": tree["custom_id"], "input": openai_batch.text(tree["body"])}
        if self.text_field is None and "input" in tree:
            return tree if self.id_field is None else {**tree, "id": _plain(_field(tree, self.id_field))}
        declared = {name: tree[name] for name in ("task", *_DECLARED) if tree.get(name) is not None}
        return {**declared, **self._foreign(tree)}

    def _foreign(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        name = self.text_field or _text_field(tree)
        job: dict[str, Any] = {"input": _field(tree, name)}
        if self.id_field is not None or tree.get(_ID) not in (None, ""):
            job["id"] = _plain(_field(tree, self.id_field or _ID))
        return job

    def _csv(self, stream: io.BufferedReader) -> Iterator[Row | BadRow]:
        csv.field_size_limit(_LONGEST_CELL)  # the process-wide default of 128 kB is less than a job may hold
        with _text(stream) as lines:
            first = lines.readline()
            delimiter = max(_DELIMITERS, key=first.count)
            header = next(csv.reader([first], delimiter=delimiter), [])
            for name in filter(None, (self.id_field, self.text_field)):
                self._in_header(name, header)
            if self.text_field is None:
                self._in_header(next((name for name in TEXT_FIELDS if name in header), None), header)
            yield from self._records(csv.reader(lines, delimiter=delimiter), header)

    def _records(self, reader: Iterator[list[str]], header: Sequence[str]) -> Iterator[Row | BadRow]:
        number = 0
        while True:
            cells: Sequence[str] = ()
            try:
                cells = next(reader)
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    raise InputError("invalid", f"{len(cells)} cells, the header has {len(header)}")
                if not "".join(cells).isascii():
                    _checked(cells)
                fields = dict(zip(header, cells, strict=True))
                yield Row(number, self._admit(self._foreign(fields), number), fields)
            except StopIteration:
                return
            except InputError as error:
                yield self._bad(number, error, "\0".join(cells).encode("utf-8", "surrogateescape"))
            except csv.Error as error:
                number += 1
                yield self._bad(number, InputError("undecodable", f"not CSV: {error}"), str(number).encode())

    def _in_header(self, name: str | None, header: Sequence[str]) -> None:
        if name is None or name not in header:
            wanted = f"no column {name!r}" if name else "no column that holds the text"
            mend = f"name one with --text-field or --id-field: {', '.join(header)}"
            raise InputError("backlog", f"{self.path}: {wanted}. Mend: {mend}")

    def _admit(self, tree: dict[str, Any], number: int) -> Job:
        record = tree if "task" in tree or not self.task else {**tree, "task": self.task}
        return jobs.admit(record, origin=self._origin(number), default_id=f"{self.name}:{number}")

    def _origin(self, number: int) -> str:
        return f"file:{self.name}:{number}"

    def _bad(self, number: int, error: InputError, content: bytes) -> BadRow:
        return BadRow(number, self._origin(number), error.reason, error.detail, hashlib.sha256(content).hexdigest())


def _is_csv(path: str, stream: io.BufferedReader) -> bool:
    """By the file's name where it says so, else by its first character."""
    names = [suffix.lower() for suffix in Path(path).suffixes if suffix not in (".gz", ".zst")]
    if names and names[-1] in (".csv", ".tsv"):
        return True
    try:
        start = stream.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except BROKEN as error:
        raise InputError("backlog", f"{path}: can't be unpacked ({error}). Mend: fetch the file again") from None
    if start == b"[":
        raise InputError("backlog", f"{path}: one JSON array. Mend: one object a line, as by: jq -c '.[]' FILE")
    return not (start in (b"{", b"") or (names and names[-1] in (".jsonl", ".ndjson", ".json")))


def _text(stream: io.BufferedReader) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 become surrogates: the row that holds them is told apart, the rest stays readable."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _checked(cells: Sequence[str]) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raise InputError("undecodable", "not UTF-8; save the file as UTF-8") from None


def _text_field(tree: Mapping[str, Any]) -> str:
    found = next((name for name in TEXT_FIELDS if tree.get(name) not in (None, "")), None)
    if found is None:
        raise InputError(
            "invalid", f"no field holds the text (there are {', '.join(map(str, tree))}); name it with --text-field"
        )
    return found


def _field(tree: Mapping[str, Any], name: str) -> Any:
    value = tree.get(name)
    if value in (None, ""):
        raise InputError("invalid", f"field {name!r} is empty or missing")
    return value


def _plain(value: Any) -> Any:
    """Ids are text; a number is taken as written."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
