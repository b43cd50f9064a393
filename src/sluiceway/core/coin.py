"""Chance: HMAC(secret, purpose, origin) as a number in [0, 1).

A replay tosses the same coins, and no publisher can foresee one. Purposes never share a coin (guarantee.md, section 2).
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum


class Purpose(StrEnum):
    SAMPLE = "sample"  # review.sample: a delivered answer that a person looks at
    JITTER = "jitter"  # spreads waits; carries no promise
    PROBE = "probe"  # uses a model that is skipped for its price; carries no promise


def coin(secret: bytes, purpose: Purpose, origin: str) -> float:
    """A number in [0, 1), uniform over origins, the same whenever it is asked for."""
    digest = hmac.digest(secret, f"{purpose.value}\0{origin}".encode(), hashlib.sha256)
    return int.from_bytes(digest[:7], "big") / (1 << 56)
