"""Opening a file that may be packed: plain, gzip or zstandard, told by its first bytes and never by its name."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import zstandard

from sluiceway.core.errors import InputError

STDIN = "-"
BROKEN = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading may raise where the file is cut short or not what its first bytes say."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@contextmanager
def open_packed(path: str) -> Iterator[io.BufferedReader]:
    """The unpacked bytes of `path` (`-` is standard input). Raises InputError where it can't be opened."""
    with ExitStack() as opened:
        try:
            raw = sys.stdin.buffer if path == STDIN else opened.enter_context(Path(path).open("rb"))
            packed = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw))
            magic = packed.peek(4)[:4]
        except OSError as error:
            detail = f"{path}: can't be read ({error.strerror}). Mend: name an existing file"
            raise InputError("backlog", detail) from None
        if magic.startswith(_GZIP):
            unpacked: Any = opened.enter_context(gzip.GzipFile(fileobj=packed))
            yield io.BufferedReader(unpacked)
        elif magic == _ZSTD:
            unpacked = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            yield io.BufferedReader(opened.enter_context(unpacked))
        else:
            yield packed
