"""The outcome log: progress is what stands in it, whatever cut it short."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from sluiceway.archive.atomic import write_whole
from sluiceway.archive.outcomes import OUTCOMES, RUN, OutcomeLog, Whose
from sluiceway.core.errors import InputError
from sluiceway.core.outcome import outcome_id

IDS = [Whose(outcome_id(f"job-{number}", 0), "t") for number in range(5)]


def opened(folder: Path, policy: str = "p" * 32, source: str = "a.csv") -> OutcomeLog:
    return OutcomeLog.open(folder, policy=policy, source=source)


def line(identity: Whose) -> bytes:
    return orjson.dumps({**identity._asdict(), "detail": "x" * 100})


def test_what_was_appended_is_finished_when_it_is_opened_again(tmp_path: Path) -> None:
    """In order, under the same policy and for the same file."""
    with opened(tmp_path / "run") as log:
        for identity in IDS:
            log.append(identity, line(identity))
            assert log.has(identity)
    with opened(tmp_path / "run") as log:
        assert [Whose.of(tree) for tree in log.lines()] == IDS
        assert all(log.has(identity) for identity in IDS)


def test_a_dead_letter_of_an_older_version_is_finished_whosever_it_was(tmp_path: Path) -> None:
    """It named no tenant: nobody's job of that id and task is asked again; another task's is."""
    opened(tmp_path).close()
    known = IDS[0]
    (tmp_path / OUTCOMES).write_bytes(orjson.dumps({"outcome_id": known.outcome_id, "task": known.task}) + b"\n")
    with opened(tmp_path) as log:
        assert log.has(known)
        assert log.has(known._replace(tenant="acme"))
        assert not log.has(known._replace(task="other"))


def test_wherever_a_kill_cuts_only_whole_lines_count(tmp_path: Path) -> None:
    """Cut at every byte: the whole lines before it are kept, the rest is gone, and appending goes on cleanly."""
    with opened(tmp_path) as log:
        for identity in IDS[:3]:
            log.append(identity, line(identity))
    whole = (tmp_path / OUTCOMES).read_bytes()
    for cut in range(0, len(whole) + 1, 7):
        (tmp_path / OUTCOMES).write_bytes(whole[:cut])
        with opened(tmp_path) as log:
            kept = whole[:cut].count(b"\n")
            assert [log.has(identity) for identity in IDS[:3]] == [number < kept for number in range(3)]
            log.append(IDS[4], line(IDS[4]))
            assert [Whose.of(tree) for tree in log.lines()] == [*IDS[:kept], IDS[4]]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Two writers would ask every job twice."""
    with opened(tmp_path), pytest.raises(InputError, match="another replay"):
        opened(tmp_path)
    opened(tmp_path).close()


@pytest.mark.parametrize("other", [{"policy": "q" * 32}, {"source": "b.csv"}])
def test_a_folder_belongs_to_one_policy_and_one_file(tmp_path: Path, other: dict[str, str]) -> None:
    """Outcomes of two policies in one file would be nobody's; the message names the way out."""
    opened(tmp_path).close()
    with pytest.raises(InputError, match="another --out"):
        opened(tmp_path, **other)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Outcomes without a run, a run that can't be read, a line that is no outcome, a path that is a file."""
    (tmp_path / OUTCOMES).write_bytes(line(IDS[0]) + b"\n")
    with pytest.raises(InputError, match="outcomes without"):
        opened(tmp_path)
    (tmp_path / OUTCOMES).write_bytes(b"")
    (tmp_path / RUN).write_bytes(b"{")
    with pytest.raises(InputError, match="can't be read"):
        opened(tmp_path)
    (tmp_path / RUN).unlink()
    opened(tmp_path).close()
    (tmp_path / OUTCOMES).write_bytes(b'{"outcome_id": "zz"}\n')
    with pytest.raises(InputError, match=r"outcomes\.jsonl:1"):
        opened(tmp_path)
    with pytest.raises(InputError, match="a folder we may write"):
        opened(tmp_path / OUTCOMES)


def test_a_whole_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Readers see the old content or the new."""
    path = tmp_path / "summary.json"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
