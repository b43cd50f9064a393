"""Recorded answers: found by the job's text, written as the task's schema wants them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Request
from sluiceway.core.catalog import Api, Model
from sluiceway.core.errors import InputError
from sluiceway.models import recorded, tokens
from sluiceway.models.recorded import RecordedEndpoint

CSV = 'user_query,gold,small\n"My card,  is lost",card,card_lost\nHello,other,\n"a\nb",x,"{""label"":""other""}"\n'
LABEL = {"properties": {"label": {"type": "string", "enum": ["card_lost"]}}}
TAGS = {"properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}}}}


def endpoint(path: Path, column: str | None = None) -> RecordedEndpoint:
    model = Model(name="small", model="gpt-5-mini", api=Api.RECORDED, file=str(path), column=column)
    return RecordedEndpoint(model, recorded.read(str(path)), tokens.default())


async def ask(of: RecordedEndpoint, text: str, schema: Any = LABEL) -> Reply | Failure:
    request = Request("s", "u", schema, "n", 12, text)
    return await of.call(Call(Model(name="small"), request, 0, 9e9, "j"))


async def answer(of: RecordedEndpoint, text: str, schema: Any = LABEL) -> Any:
    found = await ask(of, text, schema)
    assert isinstance(found, Reply)
    return orjson.loads(found.text)


@pytest.mark.parametrize("pack", ["csv", "csv.gz", "csv.zst"])
async def test_an_answer_is_found_by_its_text_in_every_packing(tmp_path: Path, pack: str) -> None:
    """Exactly, or with the white space evened out; a cell that is an object is used as it is."""
    path = tmp_path / f"a.{pack}"
    raw = CSV.encode()
    packed = {"csv": raw, "csv.gz": gzip.compress(raw), "csv.zst": zstandard.compress(raw)}
    path.write_bytes(packed[pack])
    of = endpoint(path)
    assert await answer(of, "My card,  is lost") == {"label": "card_lost"}
    assert await answer(of, " My card, is\nlost") == {"label": "card_lost"}
    assert await answer(of, "a\nb") == {"label": "other"}


async def test_usage_is_counted_and_no_time_passes(tmp_path: Path) -> None:
    """Our own token counts, the model's name, no seconds."""
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    found = await ask(endpoint(path), "My card, is lost")
    assert isinstance(found, Reply)
    assert (found.usage.input, found.usage.output) == (12, tokens.default().count(found.text))
    assert (found.model_served, found.seconds) == ("gpt-5-mini", 0.0)


@pytest.mark.parametrize("text", ["Hello", "never asked", ""])
async def test_what_was_not_recorded_is_a_failure_that_says_so(tmp_path: Path, text: str) -> None:
    """An empty cell is no answer either."""
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    assert await ask(endpoint(path), text) == Failure(FailureKind.INVALID, "not_recorded")


async def test_jsonl_answers_may_be_objects_lists_and_text(tmp_path: Path) -> None:
    """Tags may be a JSON array, a list, or names between semicolons; free text stays text."""
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "1", "small": {"label": "x"}},
        {"text": "2", "small": ["a", "b"]},
        {"text": "3", "small": "a; b"},
        {"text": "4", "small": '["a"]'},
    ]
    path.write_bytes(b"\n\n".join(orjson.dumps(row) for row in rows))
    of = endpoint(path)
    assert await answer(of, "1") == {"label": "x"}
    assert await answer(of, "2", TAGS) == {"tags": ["a", "b"]}
    assert await answer(of, "3", TAGS) == {"tags": ["a", "b"]}
    assert await answer(of, "4", TAGS) == {"tags": ["a"]}
    plain = await ask(of, "3", None)
    assert isinstance(plain, Reply)
    assert plain.text == "a; b"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xlsx", b""),
        ("a.jsonl", b"{"),
        ("a.jsonl", b"[1]"),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.csv.gz", b"no gzip"),
        ("a.csv.zst", b"x"),
    ],
)
def test_a_file_that_is_no_recording_is_an_input_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    """Never a traceback."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        recorded.read(str(path))
    with pytest.raises(InputError, match="missing"):
        recorded.read(str(tmp_path / "missing.csv"))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    """The mend lists them."""
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    with pytest.raises(InputError, match=r"'large'.*user_query, gold, small"):
        endpoint(path, column="large")
