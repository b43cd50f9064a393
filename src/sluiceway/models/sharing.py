"""Fewer calls: identical jobs in flight share one call, and an answer that is kept is given again.

It stands between the runner and the pool. Each copy gets its own reply with its exact share of the usage, so that each
keeps its own trail, outcome and coin; a kept answer costs nothing. A failure is shared too, and tried again together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sluiceway.core import ledger, sharing
from sluiceway.core.call import CACHED, Call, Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.core.sharing import Kept, Sharing
from sluiceway.ports import Answers, Clock, Models, NoAnswers

_OVERHEAD = 600  # bytes that a kept answer takes beside its text and
_TOKEN = 700  # bytes for each token with its alternatives
_FRONT = 8_000_000  # bytes of memory before a store: it saves reading and decoding, and has what is not yet written


Alike = Callable[[Call, Iterable[str]], None]
"""Told of a call that has ended: what is now known of its `job_id` is to be known of all these jobs."""

_Follower = tuple[asyncio.Future[Reply | Failure | None], str]
"""Where a job waits for another's call, and the job's id."""


class AnswerCache:
    """Answers by key, in memory: at most `size` bytes, the least recently used leave first."""

    def __init__(self, size: int) -> None:
        self._limit = size
        self._size = 0
        self._kept: dict[bytes, tuple[Kept, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Kept | None:
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self._kept[key] = found  # the most recent again
        return found[0]

    def put(self, key: bytes, kept: Kept) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._size -= before[1]
        size = _OVERHEAD + 4 * len(kept.reply.text) + _TOKEN * len(kept.reply.logprobs)
        if size > self._limit:
            return
        self._kept[key] = kept, size
        self._size += size
        while self._size > self._limit:
            self._size -= self._kept.pop(next(iter(self._kept)))[1]


class SharedCalls:
    """Implements `ports.Models` over another. `saved` counts the calls that were not made.

    What may be kept is shared in flight too: who may have an answer a moment later may have it now.
    Without `answers`, what is kept lasts as long as the process.
    """

    def __init__(
        self,
        inner: Models,
        rules: Sharing,
        digest: str,
        clock: Clock,
        answers: Answers | None = None,
        alike: Alike | None = None,
    ) -> None:
        self._inner = inner
        self._rules = rules
        self._keys = sharing.Keys(digest)
        self._clock = clock
        self._alike = alike
        self._answers: Answers = answers or NoAnswers()
        self._front = AnswerCache(rules.cache_size if answers is None else min(_FRONT, rules.cache_size))
        self._open: dict[bytes, list[_Follower]] = {}  # who waits for the same call
        self.saved = 0

    async def call(self, call: Call) -> Reply | Failure:
        keeps = self._rules.keeps(call.clearance)
        if not keeps and not self._rules.coalesce:
            return await self._inner.call(call)
        key = self._keys.of(call)
        while True:
            if keeps and (kept := self._found(key)) is not None:
                self.saved += 1
                return kept
            if key not in self._open:
                return await self._lead(key, call, keeps)
            shared = await self._follow(key, call)
            if shared is not None:
                self.saved += 1
                return shared

    def _found(self, key: bytes) -> Reply | None:
        """The kept answer that still serves."""
        kept = self._front.get(key)
        if kept is None:
            kept = self._answers.find(key)
            if kept is None:
                return None
            self._front.put(key, kept)
        return kept.reply if self._rules.serves(kept.at, self._clock.now()) else None

    async def _lead(self, key: bytes, call: Call, keeps: bool) -> Reply | Failure:
        followers = self._open[key] = []
        try:
            whole = await self._inner.call(call)
        except BaseException:
            del self._open[key]
            # Cancelled, or a Bug: one of them calls for itself.
            self._tell([place for place, _ in followers], [None] * len(followers))
            raise
        del self._open[key]
        waiting = [place for place, _ in followers if not place.done()]
        if keeps:
            self._keep(key, call, whole)
        if not waiting:
            return whole
        if self._alike is not None:  # what has failed is tried again by each, and each such try is a second one
            self._alike(call, [call.job_id, *[job for place, job in followers if not place.done()]])
        shares = ledger.exact(sharing.split(whole.usage, len(waiting) + 1), call.model.price)
        self._tell(waiting, [_copy(whole, share) for share in shares[1:]])
        return replace(whole, usage=shares[0])

    async def _follow(self, key: bytes, call: Call) -> Reply | Failure | None:
        """The share of the call that another makes; None where it was given up and somebody must make it."""
        place: asyncio.Future[Reply | Failure | None] = asyncio.get_running_loop().create_future()
        self._open[key].append((place, call.job_id))
        try:
            async with asyncio.timeout(call.deadline - self._clock.now()):
                return await place
        except TimeoutError:
            # A share that came in the same instant is paid for: it is taken.
            came = place.result() if place.done() and not place.cancelled() else None
            return came or Failure(FailureKind.TRANSIENT, "timeout", copy=True)

    @staticmethod
    def _tell(places: list[asyncio.Future[Reply | Failure | None]], results: Sequence[Reply | Failure | None]) -> None:
        for place, result in zip(places, results, strict=True):
            if not place.done():
                place.set_result(result)

    def _keep(self, key: bytes, call: Call, result: Reply | Failure) -> None:
        if isinstance(result, Reply) and result.finish is FinishReason.STOP:
            kept = Kept(replace(result, usage=Usage(), endpoint=CACHED, seconds=0.0), self._clock.now())
            self._front.put(key, kept)
            self._answers.keep(key, kept, call.clearance)

    async def close(self) -> None:
        await self._inner.close()

    def __repr__(self) -> str:
        return f"SharedCalls({len(self._open)} open, {len(self._front)} kept, {self.saved} saved)"


def _copy(whole: Reply | Failure, share: Usage) -> Reply | Failure:
    """For one that made no call, packed or not: a reply says all the same what it was packed with."""
    if isinstance(whole, Reply):
        return replace(whole, usage=share, copy=True)
    return replace(whole, usage=share, copy=True, packed=1)
