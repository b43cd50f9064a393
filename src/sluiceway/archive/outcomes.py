"""The outcomes of one replay in a folder: one line each, appended as it is made; and whose outcomes they are.

What is done is read from the outcomes themselves, by whose they are, and from nothing else: progress can't be ahead of
output.
A line that a kill cut short is dropped; its job is asked again. One run at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from sluiceway.archive.atomic import sync_folder, write_whole
from sluiceway.core.errors import InputError

OUTCOMES, RUN = "outcomes.jsonl", "run.json"
_SYNC_EVERY = 256  # lines; a kill loses none of those written, a power cut at most so many


class Whose(NamedTuple):
    """Which round of which job an outcome is of: tenants and tasks that share job ids share the outcome id too."""

    outcome_id: str
    task: str | None = None  # None where bytes are no job
    tenant: str | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Whose:
        """Raises KeyError, TypeError for a line that is no outcome."""
        return cls(line["outcome_id"], line.get("task"), line.get("tenant"))

    @property
    def digest(self) -> bytes:
        """A replay may have millions: 16 bytes each. Raises ValueError where the id is none."""
        known = bytes.fromhex(self.outcome_id)
        return hashlib.sha256(b"\0".join((known, *((name or "").encode() for name in self[1:])))).digest()[:16]


class OutcomeLog:
    """`with OutcomeLog.open(folder, policy=..., source=...) as log:`; `finished` holds whose outcomes it has."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.finished: set[bytes] = set()
        self._untold: set[Whose] = set()  # dead letters of an older version, which named no tenant
        self._number = number
        self._unsynced = 0

    @classmethod
    def open(cls, folder: Path, *, policy: str, source: str) -> OutcomeLog:
        """The log in `folder`, which is made where it is missing.

        Raises InputError where it holds another policy's or another file's outcomes, or another run holds it.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(folder / OUTCOMES, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError("out", f"{folder}: {error.strerror}. Mend: --out names a folder we may write") from None
        log = cls(folder, number)
        try:
            log._lock()
            log._belongs_to(policy, source)
            log._drop_cut_line()
            for line in log.lines():
                log.finished.add(Whose.of(line).digest)
                if "tenant" not in line:
                    log._untold.add(Whose.of(line))
            sync_folder(folder)
        except BaseException:
            os.close(number)
            raise
        return log

    def has(self, whose: Whose) -> bool:
        return whose.digest in self.finished or (bool(self._untold) and whose._replace(tenant=None) in self._untold)

    def append(self, whose: Whose, line: bytes) -> None:
        """Written when it returns. `line` is one JSON object that says so of itself. Raises OSError (disk full)."""
        left = memoryview(line + b"\n")
        while left:
            left = left[os.write(self._number, left) :]
        self.finished.add(whose.digest)
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._number)
        self._unsynced = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every outcome, in the order written. Raises InputError for a line that is none."""
        with (self.folder / OUTCOMES).open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    tree = orjson.loads(line)
                    _ = Whose.of(tree).digest
                except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
                    mend = "move this folder away, or take that line out"
                    raise InputError("out", f"{file.name}:{number}: not an outcome. Mend: {mend}") from None
                yield tree

    def close(self) -> None:
        self.sync()
        os.close(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OutcomeLog({str(self.folder)!r}, {len(self.finished)} finished)"

    def _lock(self) -> None:
        try:
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("out", f"{self.folder}: another replay is writing here. Mend: wait for it") from None

    def _belongs_to(self, policy: str, source: str) -> None:
        path = self.folder / RUN
        wanted = {"schema": "sluiceway.replay/1", "policy": policy, "source": source}
        try:
            known = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            if os.fstat(self._number).st_size:
                raise InputError(
                    "out", f"{self.folder}: outcomes without {RUN}. Mend: another --out for this replay"
                ) from None
            write_whole(path, orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
            return
        except (orjson.JSONDecodeError, OSError):
            known = None
        if not isinstance(known, dict) or "policy" not in known:
            raise InputError("out", f"{path}: can't be read. Mend: another --out for this replay")
        if known["policy"] != policy:
            raise InputError(
                "out",
                f"{self.folder}: begun under policy {known['policy'][:12]}, this one is {policy[:12]}."
                " Mend: go on with that policy, or begin anew with another --out",
            )
        if known.get("source") != source:
            raise InputError(
                "out",
                f"{self.folder}: holds the outcomes of {known.get('source')}, not of {source}. Mend: another --out",
            )

    def _drop_cut_line(self) -> None:
        size = end = os.fstat(self._number).st_size
        while end:
            start = max(0, end - 65_536)
            found = os.pread(self._number, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._number, end)
