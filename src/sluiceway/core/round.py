"""A job's round and id as headers state them, for a record whose value may not be touched.

A redrive sends back the very bytes that died. What must be new of them, the round, and what the record's new place
would change, the id of a job that names none itself, therefore stand in headers. They are believed on any topic, `jobs`
too, since they give nobody a power that the job's own JSON does not give: whoever may publish may state any id and any
round there. An origin is never taken from a header: it feeds the coins, and no publisher may choose those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Headers = tuple[tuple[str, bytes | None], ...]

ROUND = "sluiceway.round"
JOB_ID = "sluiceway.job_id"
TASK = "sluiceway.task"
MOST = 1_000_000
"""The highest round that a record can have."""
ID_CHARS = 256

_OURS = ("__dlq.errors.", "sluiceway.")


@dataclass(frozen=True, slots=True)
class Stated:
    """What a record's headers say of its job. `round` is 0 and `job_id` None where they say nothing usable."""

    round: int = 0
    job_id: str | None = None


NOTHING = Stated()


def stated(headers: Iterable[tuple[str, bytes | None]]) -> Stated:
    """What `headers` state; of several the first counts. Out of bounds or not well-formed is not stated."""
    found: dict[str, bytes] = {}
    for name, content in headers:
        if content is not None and name in (ROUND, JOB_ID):
            found.setdefault(name, content)
    if not found:
        return NOTHING
    return Stated(_round(found.get(ROUND)), _id(found.get(JOB_ID)))


def kept(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """The user's own headers, in their order: ours are replaced, never appended."""
    return tuple([(name, content) for name, content in headers if not name.startswith(_OURS)])


def written(job_id: str, round: int) -> Headers:  # noqa: A002  the word list's own name
    """The headers that state these."""
    return (ROUND, str(round).encode()), (JOB_ID, job_id.encode())


def _round(content: bytes | None) -> int:
    # int() would take "+1", " 1 ", "1_0" and digits of other scripts.
    if content is None or not content.isdigit() or len(content) > len(str(MOST)):
        return 0
    number = int(content)
    return number if number <= MOST else 0


def _id(content: bytes | None) -> str | None:
    if content is None:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if 0 < len(text) <= ID_CHARS else None
