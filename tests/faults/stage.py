"""Where scenes come from: the brokers of a run, started when first asked for and shared, and each row's own folder."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.faults.proxy import ProxiedKafka
from tests.faults.scene import CONNECTION, Scene
from tests.faults.watch import Watch
from tests.support.apache_kafka import ApacheKafka
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import ESCALATIONS, JOBS, RESULTS
from tests.support.rig import Rig, models, triage
from tests.support.topics import Address

Amount = TypeVar("Amount")
Serving = Callable[[str, str, str], Mapping[str, Mapping[str, Any]]]
"""Fields of models by name, from the URLs of the cheap, the frontier and the sick fake."""

PARALLEL = 128  # calls that one worker may have open


class Stage:
    """`async with Stage(folder, seed, full=True) as stage:`; leaves no process behind."""

    def __init__(self, folder: Path, seed: int, *, full: bool, kafka: ProxiedKafka | None = None) -> None:
        """`kafka`: a broker to use that is somebody else's to stop."""
        self.folder = folder
        self.seed = seed
        self.full = full
        self._stack = AsyncExitStack()
        self._brokers: dict[bool, ApacheKafka] = {} if kafka is None else {False: kafka}
        self._scenes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def of(self, full: Amount, fast: Amount) -> Amount:
        """The amount for this form of the run."""
        return full if self.full else fast

    def dice(self, row: str) -> random.Random:
        """A row's own, so that it rolls the same with and without other rows."""
        return random.Random(f"{self.seed} {row}")

    async def broker(self, *, secured: bool = False) -> ApacheKafka:
        """A running broker with its data on disk; `secured` as in tests/support/apache_kafka.py."""
        if secured not in self._brokers:
            name = "secured" if secured else "kafka"
            made = (ApacheKafka if secured else ProxiedKafka)(self.folder / name, secured=secured, lapse=6.0)
            self._stack.push_async_callback(asyncio.to_thread, made.stop)
            self._brokers[secured] = made
        kafka = self._brokers[secured]
        kafka.thaw()
        if not kafka.running:
            await asyncio.to_thread(kafka.start)
        return kafka

    @asynccontextmanager
    async def scene(
        self,
        row: str,
        *,
        cheap: str = "labels seed=3 doubt=5%",
        partitions: int = 8,
        parallel: int = PARALLEL,
        pitch: float = 0.3,
        secured: bool = False,
        pairs: Sequence[str] = (),
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        keep: bool = False,
        sick: str | None = None,
        serving: Serving | None = None,
    ) -> AsyncIterator[Scene]:
        """Topics of `partitions` each, empty. `tasks`: fields of them by name, of `ticket-triage` or of more beside it.

        `keep`: the cheap fake's journal holds texts, and when requests ended. `sick`: the script of a third fake model
        server; `serving`, given the three URLs, says what is added to the models, or to which fields of them.
        """
        kafka = await self.broker(secured=secured)
        self._scenes += 1
        folder = self.folder / f"{self._scenes}-{row}"
        folder.mkdir(parents=True)
        limits = {"limits": {"max_parallel_requests": parallel, "start_parallel_requests": parallel}}
        # Both fakes answer alike: a job that climbed the second time only must not differ for it.
        with (
            FakeProcess(folder / "cheap.jsonl", cheap, name="cheap", keep_bodies=keep, keep_ends=keep) as first,
            FakeProcess(folder / "frontier.jsonl", "labels seed=3", name="frontier") as second,
            FakeProcess(folder / "sick.jsonl", sick, name="sick", keep_ends=True) if sick else nullcontext() as third,
        ):
            rig = Rig(Address(kafka.bootstrap, "apache"), folder, pairs=[*CONNECTION, *pairs])
            try:
                catalog = models(first.url, second.url, cheap=limits, frontier=limits)
                if serving is not None:
                    for name, fields in serving(first.url, second.url, third.url if third else "").items():
                        catalog[name] = {**catalog.get(name, {}), **fields}
                # The deadline is no part of what is tested here: a job may wait for minutes while workers come and go.
                wanted = {"ticket-triage": {}, **(tasks or {})}
                policy = {name: triage(**{"deadline": "20m", **fields}) for name, fields in wanted.items()}
                # The declaration's own number is a ceiling: said here, it is met.
                many = {name: {"partitions": partitions} for name in (JOBS, ESCALATIONS, RESULTS)}
                for name, changed in (overrides or {}).items():
                    many[name] = {**many.get(name, {}), **changed}
                await rig.open(catalog, policy, partitions=partitions, overrides=many)
                async with Watch(rig, pitch=pitch) as watch:
                    yield Scene(rig, watch, first, second, self.seed, parallel, sick=third)
            finally:
                kafka.thaw()
                if not kafka.running:
                    await asyncio.to_thread(kafka.start)
                await rig.close()
