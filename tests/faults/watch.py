"""The watch over a run: what is committed and what lies on the outgoing topics, looked at again and again.

It is the only one that reads while a row runs, and shares nothing with the product. A look reads the commits first and
the outgoing topics after them: a race can then hide an early commit, never invent one. While a broker is away its looks
fail and are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.support.evidence import Lag, Place, Published, Sample, settled
from tests.support.laws import no_early_commit
from tests.support.outgoing import Outgoing
from tests.support.rig import Rig
from tests.support.topics import Reader, group_offsets

Number = tuple[str, int]
"""A topic's partition."""


@dataclass(frozen=True, slots=True)
class Look:
    """`committed` of every group by partition; `seen` records had been read from the outgoing topics by then."""

    at: float  # monotonic
    committed: Mapping[Number, int]
    ends: Mapping[Number, int]
    seen: int


class Watch:
    """`async with Watch(rig, pitch=0.3) as watch:`; `jobs_ends` is to be kept up to date by whoever publishes."""

    def __init__(self, rig: Rig, *, pitch: float = 0.3) -> None:
        self.looks: list[Look] = []
        self.out: Outgoing = rig.out
        self.jobs_ends: dict[Number, int] = {}
        self._rig = rig
        self._pitch = pitch
        self._out_ends: dict[Number, int] = defaultdict(int)
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reader: Reader | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def __aenter__(self) -> Watch:
        self._reader = await Reader(self._rig.bootstrap, *self._rig.map.written, options=self._rig.options).__aenter__()
        self._task = asyncio.create_task(self._run(self._reader), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for closing in (self._close_admin(), self._close_reader()):
            with contextlib.suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(closing, 5)

    async def until(self, enough: Callable[[], object], *, within: float, what: str) -> None:
        """Returns after the first look at which `enough()` holds. TimeoutError says what was waited for."""
        try:
            async with asyncio.timeout(within):
                while not enough():
                    await self.look()
        except TimeoutError:
            counts = {topic: len(records) for topic, records in self.out.by_topic.items()}
            raise TimeoutError(
                f"not within {within} s: {what}; read so far: {counts}, behind: {self.behind()}"
            ) from None

    async def look(self) -> None:
        """Returns after the next whole look. Raises what has ended the watch."""
        self._looked.clear()
        assert self._task is not None
        looked = asyncio.ensure_future(self._looked.wait())
        await asyncio.wait([self._task, looked], return_when=asyncio.FIRST_COMPLETED)
        if not looked.done():
            looked.cancel()
            self._task.result()
            raise RuntimeError("the watch has ended")

    def behind(self) -> dict[Number, int]:
        """Records beyond the committed offset, by partition, at the last look."""
        if not self.looks:
            return dict(self.jobs_ends)
        committed = self.looks[-1].committed
        ends = {**self.jobs_ends, **self.looks[-1].ends}
        return {
            number: end - committed.get(number, 0) for number, end in ends.items() if end > committed.get(number, 0)
        }

    # -- what the laws read --------------------------------------------------------------------------------------------

    def early_commits(self, published: Sequence[Published]) -> list[str]:
        """L4 at every look. What was settled at one look is settled at each later one, so each offset is held against
        the first look that found it committed."""
        places: dict[Number, list[Published]] = defaultdict(list)
        for job in published:
            places[job.place.topic, job.place.partition].append(job)
        for jobs in places.values():
            jobs.sort(key=lambda job: job.place.offset)
        reached: dict[Number, int] = defaultdict(int)
        done: set[Place] = set()
        read = 0
        breaches: list[str] = []
        seen = self._reader.seen if self._reader else []
        for look in self.looks:
            done |= settled(seen[read : look.seen])
            read = look.seen
            fresh: list[Published] = []
            for number, jobs in places.items():
                first = last = reached[number]
                while last < len(jobs) and jobs[last].place.offset < look.committed.get(number, 0):
                    last += 1
                fresh += jobs[first:last]
                reached[number] = last
            found = frozenset(job.place for job in fresh) & done
            breaches += no_early_commit(fresh, [Sample(look.at, look.committed, found)])
        return breaches

    def lags(self) -> list[Lag]:
        """For L8: every partition of the jobs topics at every look, from the first outgoing record on: what workers
        take to start is not what they take to recover."""
        return [
            Lag(look.at, number, look.committed.get(number, 0), end)
            for look in self.looks
            if look.seen
            for number, end in look.ends.items()
            if number in self.jobs_ends
        ]

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _run(self, reader: Reader) -> None:
        known = 0
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(30):
                    committed = await self._committed()
                    await reader.read()
            except (KafkaError, OSError, TimeoutError):
                await self._close_admin()
            else:
                for record in reader.seen[known:]:
                    number = record.topic, record.partition
                    self._out_ends[number] = max(self._out_ends[number], record.offset + 1)
                self.out.read(reader.seen)
                read = {topic for role in self._rig.map.groups for topic in self._rig.map.read_by(role)}
                ends = {n: end for n, end in {**self._out_ends, **self.jobs_ends}.items() if n[0] in read}
                known = len(reader.seen)
                self.looks.append(Look(time.monotonic(), committed, ends, len(reader.seen)))
                self._looked.set()
            await asyncio.sleep(max(0.05, self._pitch - (time.monotonic() - began)))

    async def _committed(self) -> dict[Number, int]:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(bootstrap_servers=self._rig.bootstrap, **self._rig.options)
            await self._admin.start()
        found: dict[Number, int] = {}
        for group in self._rig.map.groups.values():
            offsets = await group_offsets(self._admin, group)
            found |= {(tp.topic, tp.partition): at.offset for tp, at in offsets.items()}
        return found

    async def _close_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(admin.close(), 3)

    async def _close_reader(self) -> None:
        if self._reader is not None:
            await self._reader.__aexit__()
