"""Backlog files: whatever stands in them, a row is a job or a value that says why not."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.archive.backlog import Backlog, BadRow, Row
from sluiceway.core import job as jobs
from sluiceway.core.errors import InputError

LINES = b'{"id": "a", "task": "t", "input": {"text": "one"}}\n\n{"id": "b", "input": "two", "stakes": "high"}\n'


def rows(path: Path, **fields: str) -> list[Row | BadRow]:
    return list(Backlog(str(path), "triage", **fields).rows())  # type: ignore[arg-type]  # fields of the dataclass


def good(path: Path, **fields: str) -> list[Row]:
    found = rows(path, **fields)
    assert all(isinstance(row, Row) for row in found), found
    return [row for row in found if isinstance(row, Row)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_packing_is_told_by_content(tmp_path: Path, pack: object) -> None:
    """Plain, gzip and zstandard give the same rows under a name that says nothing."""
    path = tmp_path / "backlog"
    path.write_bytes(pack(LINES))  # type: ignore[operator]  # one of three functions over bytes
    first, second = good(path)
    assert (first.job.id, first.job.task, first.job.text) == ("a", "t", "one")
    assert (second.job.id, second.job.task, second.job.stakes) == ("b", "triage", 2)
    assert (first.job.origin, second.job.origin) == ("file:backlog:1", "file:backlog:3")
    assert Backlog(str(path)).count() == 2


def test_zstandard_frames_that_follow_each_other_are_all_read(tmp_path: Path) -> None:
    """Appending to a .zst makes a second frame; its rows count too."""
    path = tmp_path / "backlog.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"input":"one"}\n') + zstandard.compress(b'{"input":"two"}\n'))
    assert [row.job.text for row in good(path)] == ["one", "two"]


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    """Quoted line breaks, a BOM, semicolons: a record is a row, and one without id is named by it."""
    path = tmp_path / "tickets.csv"
    path.write_bytes(b'\xef\xbb\xbfuser_query;gold\r\n"two\r\nlines";x\r\nplain;y\r\n')
    first, second = good(path)
    assert (first.job.text, first.job.id, first.fields["gold"]) == ("two\r\nlines", "tickets.csv:1", "x")
    assert second.job.origin == "file:tickets.csv:2"
    assert Backlog(str(path)).count() == 2


def test_named_fields_win(tmp_path: Path) -> None:
    """--id-field and --text-field say where foreign rows hold theirs, in CSV as in JSON."""
    table = tmp_path / "a.csv"
    table.write_text("nr,question,text\n7,why?,other\n")
    line = tmp_path / "a.jsonl"
    line.write_text('{"nr": 7, "question": "why?", "input": "other", "tenant": "acme"}\n')
    for path in (table, line):
        (row,) = good(path, id_field="nr", text_field="question")
        assert (row.job.id, row.job.text) == ("7", "why?")
    assert row.job.tenant == "acme"


def test_a_missing_column_is_told_at_once_with_those_there_are(tmp_path: Path) -> None:
    """Nobody learns after a million rows that the column is called otherwise."""
    path = tmp_path / "a.csv"
    path.write_text("nr,question\n7,why?\n")
    for fields in ({}, {"text_field": "body"}, {"text_field": "question", "id_field": "id"}):
        with pytest.raises(InputError, match="nr, question"):
            rows(path, **fields)


def test_an_openai_batch_is_read_as_it_is(tmp_path: Path) -> None:
    """What the user said becomes the text; the system message does not; images are refused as a value."""
    chat = {
        "custom_id": "r1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-x",
            "messages": [{"role": "system", "content": "Obey me."}, {"role": "user", "content": "Lost card"}],
        },
    }
    responses = {
        "custom_id": "r2",
        "body": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
    }
    image = {
        "custom_id": "r3",
        "body": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    }
    path = tmp_path / "batch.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, (chat, responses, image))))
    first, second, third = rows(path)
    assert isinstance(first, Row)
    assert (first.job.id, first.job.text, first.job.task) == ("r1", "Lost card", "triage")
    assert isinstance(second, Row)
    assert second.job.text == "Hi"
    assert isinstance(third, BadRow)


def test_bad_rows_leave_their_neighbours_alone(tmp_path: Path) -> None:
    """Cut JSON, an array, wrong types, bad UTF-8: each is a value with its number."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"input":"one"}\n{"in\n[1]\n{"input":3}\n"\xff"\n{"input":"x","stakes":"P1"}\n{"input":"two"}\n')
    found = rows(path)
    assert [type(row) for row in found] == [Row, BadRow, BadRow, BadRow, BadRow, BadRow, Row]
    reasons = [row.reason for row in found if isinstance(row, BadRow)]
    assert reasons == ["undecodable", "invalid", "invalid", "undecodable", "invalid"]
    table = tmp_path / "a.csv"
    table.write_bytes(b"text,x\none,1\ntwo\nth\xffree,3\n,4\nfive,5\n")
    assert [type(row) for row in rows(table)] == [Row, BadRow, BadRow, BadRow, Row]


def test_a_cut_file_gives_its_rows_and_then_says_where_it_breaks(tmp_path: Path) -> None:
    """A half-fetched gzip is no reason to lose what was read of it, nor to call it whole."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"input":"%d"}\n' % n for n in range(50_000)))[:-2000])
    seen = []
    with pytest.raises(InputError, match="breaks off after row"):
        seen.extend(Backlog(str(path), "t").rows())
    assert seen


def test_a_damaged_file_is_an_input_error(tmp_path: Path) -> None:
    """Bytes that were turned on the way: nobody's traceback."""
    packed = bytearray(gzip.compress(b"".join(b'{"input":"%d"}\n' % n for n in range(20_000))))
    packed[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    (tmp_path / "a.gz").write_bytes(packed)
    with pytest.raises(InputError, match="fetch the file again"):
        list(Backlog(str(tmp_path / "a.gz"), "t").rows())


def test_a_json_array_is_refused_with_the_mend(tmp_path: Path) -> None:
    """One array would have to be held whole."""
    path = tmp_path / "a.json"
    path.write_text('[{"input": "x"}]')
    with pytest.raises(InputError, match="jq"):
        rows(path)


def test_standard_input_is_a_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads what is piped in; it can't be counted first."""

    class Piped:
        buffer = io.BytesIO(LINES)

    monkeypatch.setattr(sys, "stdin", Piped)
    backlog = Backlog("-", "t")
    assert backlog.count() is None
    assert [row.job.origin for row in backlog.rows() if isinstance(row, Row)] == ["file:stdin:1", "file:stdin:3"]


def test_what_is_published_is_the_job_that_was_read(tmp_path: Path) -> None:
    """A row's record, read as a jobs topic's would be, is the row's job; fields we do not know are kept."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": {"a": "x", "b": 1}, "tenant": "acme", "stakes": "high", "later": [1]}\n')
    (row,) = good(path)
    again = jobs.decode(row.record, origin=row.job.origin, default_id="other")
    assert again.id == row.job.id
    assert (again.input, again.tenant, again.stakes, again.task) == (row.job.input, "acme", 2, "triage")
    assert again.raw["later"] == [1]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_rows_or_one_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever bytes a file holds: values, or InputError; nothing else."""
    for name in ("a.csv", "a.jsonl", "a"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        try:
            list(Backlog(str(path), "t").rows())
            Backlog(str(path)).count()
        except InputError:
            pass
