"""A Faust app for one role, with a transport of our own.

Faust keeps app, agent, services and timers; acking, committing, revoking and pausing are `core.stream`'s. No tables, no
web, no Faust producer, no Faust worker.

An app must be made inside the running loop, and writes nothing into the working directory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

import faust
from faust.app.base import BootStrategy
from faust.transport import base
from faust.transport.consumer import Consumer
from faust.types import TP
from mode import Service
from mode.types import ServiceT

_TIMER = 0.05  # seconds; how often it is asked whether a commit is due


class Duties:
    """What the role's parts do inside Faust's services; each runs until it is told to stop."""

    __slots__ = ("crashed", "fetch", "join", "tick")

    def __init__(
        self,
        join: Callable[[], None],
        fetch: Callable[[], Awaitable[None]],
        tick: Callable[[], Awaitable[None]],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self.join = join
        self.fetch = fetch
        self.tick = tick
        self.crashed = crashed


class RoleConsumerService(Consumer):
    """Faust's consumer service without its acks, offsets and flow: those lose jobs (tests/contract/test_faust_*)."""

    async def on_start(self) -> None:
        pass

    async def _drain_messages(self, fetcher: ServiceT) -> None:  # noqa: ARG002  Faust's signature
        """Runs in Faust's Fetcher, the last service to start: join the group only when the agent is up."""
        app = self.app
        assert isinstance(app, RoleApp)  # noqa: S101  our own transport makes it so
        app.duties.join()
        await app.duties.fetch()

    @Service.task
    async def _commit_handler(self) -> None:
        app = self.app
        assert isinstance(app, RoleApp)  # noqa: S101  our own transport makes it so
        while not self.should_stop:
            await self.sleep(_TIMER)
            await app.duties.tick()

    @Service.task
    async def _commit_livelock_detector(self) -> None:
        """Faust's compares the wall clock with a monotonic one and never fires; ours is the worker's watchdog."""

    async def on_stop(self) -> None:
        pass

    async def on_task_error(self, exc: BaseException) -> None:
        """Faust would commit here."""

    async def wait_empty(self) -> None:
        pass

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002  Faust's
        return False

    def assignment(self) -> set[TP]:
        return set()  # Faust stops flow, fetcher and agents by it

    async def _unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the stream layer does this")

    def _unused_now(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the stream layer does this")

    # What Faust's interface declares and no service of ours calls.
    _commit = seek_to_committed = _seek = _getmany = position = seek_wait = _unused
    earliest_offsets = highwaters = subscribe = create_topic = _unused
    _new_topicpartition = _to_message = highwater = topic_partitions = key_partition = _unused_now

    def close(self) -> None:
        pass


class RoleTransport(base.Transport):
    Consumer: ClassVar[Any] = RoleConsumerService
    driver_version = "sluiceway"


class _Boot(BootStrategy):
    def server(self) -> Iterable[ServiceT]:
        app: Any = self.app
        return [app.consumer, app.agents, app._fetcher]


class RoleApp(faust.App):
    """`duties` are called by its services. A crash of any of them is told to `duties.crashed`."""

    BootStrategy = _Boot

    def __init__(self, group: str, bootstrap: str, duties: Duties) -> None:
        self.duties = duties
        super().__init__(
            group,
            broker=";".join(f"kafka://{server.strip()}" for server in bootstrap.split(",")),
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
        )

    def _new_transport(self) -> base.Transport:
        return RoleTransport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """No tables, no directories."""

    async def on_started(self) -> None:
        """Nothing to recover, no web server, no extra services."""

    async def on_stop(self) -> None:
        """The role has stopped its consumer before it stops the app."""

    async def crash(self, reason: BaseException) -> None:
        self.duties.crashed(reason)
        await super().crash(reason)
