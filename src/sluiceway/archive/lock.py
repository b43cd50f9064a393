"""The lock on a directory: one process has it, and the operating system lets go of it with that process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sluiceway.core.errors import InputError


def locked(directory: Path) -> int | None:
    """A lock on the directory for as long as the descriptor is open, None where another process has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(
            "store", f"{directory}: {error.strerror}. Mend: name a writable directory with --state"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
