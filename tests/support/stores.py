"""The local store in tests: small jobs, calls and records, a clock that stands, and a process that dies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sluiceway.archive.journal import Journal
from sluiceway.archive.store import Bounds, Store
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, Request, TokenLogprob, Usage
from sluiceway.core.catalog import Api, Clearance, Model
from sluiceway.core.held import Commit, Partition
from sluiceway.core.job import Job, admit
from sluiceway.core.offsets import METADATA_LIMIT, encode_finished
from sluiceway.ports import Record

REPLY = Reply(
    '{"label":"ä"}',
    Usage(10, 5, 0, 0, 3, 1),
    FinishReason.STOP,
    (
        TokenLogprob(b'{"label":"', -0.1, ()),
        TokenLogprob(b"\xc3", -0.2, ((b"\xc4", -1.5),)),
        TokenLogprob(b'\xa4"}', 0.0, ()),
    ),
    None,
    "served-1",
    "r-1",
    "https://host",
    0.25,
)
FAILED = Failure(FailureKind.TRANSIENT, "timeout")


class Time:
    """A clock that stands until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_job(job_id: str = "j1", text: str = "hello") -> Job:
    return admit({"id": job_id, "task": "t", "input": text}, origin="c/t/0/1", default_id="x")


def a_call(*, draw: int = 1, user: str = "u", clearance: Clearance = Clearance.INTERNAL, api: Api = Api.OPENAI) -> Call:
    model = Model(name="cheap", model="m", api=api)
    return Call(model, Request("s", user, None, "n", 1, "t"), 0, 1e12, "j1", draw=draw, clearance=clearance)


def a_record(offset: int = 1, *, topic: str = "jobs", partition: int = 0, timestamp: float = 1.5) -> Record:
    return Record(topic, partition, offset, timestamp, b"key", b"{}", ())


def a_store(directory: Path, time: Time | None = None, bounds: Bounds | None = None) -> Store:
    return Store(directory, bounds=bounds or Bounds(), now=time or Time())


def contents(directory: Path) -> dict[str, bytes]:
    """What lies in it, by the files' names."""
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def a_commit(offset: int, *finished: int, partition: int = 0) -> Commit:
    """Of all before `offset`, and of these above it."""
    text, left_out = encode_finished(offset, [(one, one + 1) for one in finished], METADATA_LIMIT)
    assert not left_out
    return Commit(Partition("jobs", partition), 1, offset, text, 0)


@contextmanager
def dead(store: Store, into: Path) -> Iterator[Store]:
    """A store as the next process finds it when this one dies now: what the file holds, and nothing gathered."""
    into.mkdir()
    for file in store.directory.glob("store.db*"):
        shutil.copy(file, into)
    store.close()
    again = a_store(into)
    yield again
    again.close()


async def pays(store: Store, job: Job, call: Call, event: Reply | Failure | None) -> None:
    """A call is made; None comes of it where it dies with its process."""
    entry = Journal(store).entry(job, call)
    assert entry is not None
    await entry.started()
    if event is not None:
        entry.ended(event)


def held(store: Store, job: Job, call: Call) -> Reply | None:
    entry = Journal(store).entry(job, call)
    assert entry is not None
    return entry.reply
