"""Quantities as people write them in a policy: 60s, 200kB, 0.5%."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 1_000_000, "MiB": 1_048_576}
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*"


def duration(value: object) -> object:
    """Seconds, from a number or from text such as 500ms, 60s, 5m, 2h. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + "(ms|s|m|h|d)", value.strip())
        if match is None:
            raise ValueError("not a duration; write 500ms, 60s, 5m or 2h")
        return float(match.group(1)) * _UNITS[match.group(2)]
    return value


def size(value: object) -> object:
    """Bytes, from a number or from text such as 500kB, 2MiB. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + "(B|kB|KiB|MB|MiB)?", value.strip())
        if match is None:
            raise ValueError("not a size; write 500kB or 2MiB")
        return int(float(match.group(1)) * _SIZES[match.group(2) or ""])
    return value


def share(value: object) -> object:
    """A share of one, from a number or from text such as 0.5%. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + "%", value.strip())
        if match is None:
            raise ValueError("not a share; write 0.05 or 5%")
        return float(match.group(1)) / 100
    return value


Seconds = Annotated[float, BeforeValidator(duration), Field(gt=0, lt=10**9)]
Size = Annotated[int, BeforeValidator(size), Field(ge=1, lt=2**31)]
Share = Annotated[float, BeforeValidator(share), Field(ge=0, le=1)]
