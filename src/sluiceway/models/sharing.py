"""Fewer calls: identical jobs in flight share one call, and an answer that is kept is given again.

It stands between the runner and the pool. Each copy gets its own reply with its exact share of the usage, so that each
keeps its own trail, outcome and coin; a kept answer costs nothing. A failure is shared too, and tried again together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sluiceway.core import sharing
from sluiceway.core.call import CACHED, Call, Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.core.sharing import Sharing
from sluiceway.ports import Clock, Models

_OVERHEAD = 600  # bytes that a kept answer takes beside its text and
_TOKEN = 700  # bytes for each token with its alternatives


@dataclass(frozen=True, slots=True)
class _Kept:
    reply: Reply
    until: float
    size: int


class AnswerCache:
    """Answers by key, in memory: at most `size` bytes, the least recently used leave first."""

    def __init__(self, size: int) -> None:
        self._limit = size
        self._size = 0
        self._kept: dict[bytes, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float) -> Reply | None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if kept.until <= now:
            self._size -= kept.size
            return None
        self._kept[key] = kept  # the most recent again
        return kept.reply

    def put(self, key: bytes, reply: Reply, until: float) -> None:
        size = _OVERHEAD + 4 * len(reply.text) + _TOKEN * len(reply.logprobs)
        if size > self._limit:
            return
        if (before := self._kept.pop(key, None)) is not None:
            self._size -= before.size
        self._kept[key] = _Kept(reply, until, size)
        self._size += size
        while self._size > self._limit:
            self._size -= self._kept.pop(next(iter(self._kept))).size


class SharedCalls:
    """Implements `ports.Models` over another. `saved` counts the calls that were not made."""

    def __init__(self, inner: Models, rules: Sharing, digest: str, clock: Clock) -> None:
        self._inner = inner
        self._rules = rules
        self._digest = digest
        self._clock = clock
        self._cache = AnswerCache(rules.cache_size)
        self._open: dict[bytes, list[asyncio.Future[Reply | Failure | None]]] = {}  # who waits for the same call
        self.saved = 0

    async def call(self, call: Call) -> Reply | Failure:
        key = sharing.key(call, self._digest)
        keeps = self._rules.keeps(call.clearance)
        while True:
            if keeps and (kept := self._cache.get(key, self._clock.now())) is not None:
                self.saved += 1
                return replace(kept, usage=Usage(), endpoint=CACHED, seconds=0.0)
            if not self._rules.coalesce:
                return self._keep(key, await self._inner.call(call), keeps)
            if key not in self._open:
                return await self._lead(key, call, keeps)
            shared = await self._follow(key, call)
            if shared is not None:
                self.saved += 1
                return shared

    async def _lead(self, key: bytes, call: Call, keeps: bool) -> Reply | Failure:
        followers = self._open[key] = []
        try:
            whole = await self._inner.call(call)
        except BaseException:
            del self._open[key]
            self._tell(followers, [None] * len(followers))  # cancelled, or a Bug: one of them calls for itself
            raise
        del self._open[key]
        waiting = [place for place in followers if not place.done()]
        self._keep(key, whole, keeps)
        if not waiting:
            return whole
        mine, *others = [replace(whole, usage=share) for share in sharing.split(whole.usage, len(waiting) + 1)]
        self._tell(waiting, others)
        return mine

    async def _follow(self, key: bytes, call: Call) -> Reply | Failure | None:
        """The share of the call that another makes; None where it was given up and somebody must make it."""
        place: asyncio.Future[Reply | Failure | None] = asyncio.get_running_loop().create_future()
        self._open[key].append(place)
        try:
            async with asyncio.timeout(call.deadline - self._clock.now()):
                return await place
        except TimeoutError:
            # A share that came in the same instant is paid for: it is taken.
            came = place.result() if place.done() and not place.cancelled() else None
            return came or Failure(FailureKind.TRANSIENT, "timeout")

    @staticmethod
    def _tell(places: list[asyncio.Future[Reply | Failure | None]], results: Sequence[Reply | Failure | None]) -> None:
        for place, result in zip(places, results, strict=True):
            if not place.done():
                place.set_result(result)

    def _keep(self, key: bytes, result: Reply | Failure, keeps: bool) -> Reply | Failure:
        if keeps and isinstance(result, Reply) and result.finish is FinishReason.STOP:
            self._cache.put(key, result, self._clock.now() + (self._rules.cache or 0.0))
        return result

    async def close(self) -> None:
        await self._inner.close()

    def __repr__(self) -> str:
        return f"SharedCalls({len(self._open)} open, {len(self._cache)} kept, {self.saved} saved)"
