"""`sluiceway demo`: a broker, real worker processes, real tickets through Kafka, and what it came to.

Everything that it starts it stops, in order, however it ends: done, failed, Ctrl-C, a closed terminal.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.live import Live as LiveDisplay
from rich.text import Text

from sluiceway.core.errors import InputError, PolicyError
from sluiceway.core.policy import Policy
from sluiceway.core.task import Task
from sluiceway.demo import notes, picture
from sluiceway.demo.flow import Flow
from sluiceway.demo.report import Figures
from sluiceway.demo.tickets import Ticket, policy_file, tickets
from sluiceway.demo.workers import WorkerProcess, environment
from sluiceway.kafka import topics
from sluiceway.kafka.embedded import SETTINGS, EmbeddedBroker
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import Connection, read_connection
from sluiceway.kafka.watch import Watch
from sluiceway.policyfile import read_policy
from sluiceway.topicmap import TopicMap, topic_map

_READY_WITHIN = 60.0  # seconds
_PARTITIONS = 4
_STOP_EMBEDDED = 3.0  # seconds for a worker whose jobs nobody misses
_STOP_OWN = 25.0
_STOP_ASKED = 1.0  # after a signal: whoever presses Ctrl-C waits for the prompt
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)  # the terminal was closed
_ROLES = ("jobs", "escalations")


def demo(
    jobs: int | None = None,
    connection: Connection | None = None,
    policy: Path | None = None,
    *,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """The exit code: 0 done, 1 failed (and said why), 128 + n ended by signal n.

    `jobs`: how many tickets, all 500 without it. `connection` leads to the user's own Kafka, where only missing topics
    are created; without it a broker is embedded. `as_json` prints the figures, and nothing else, on stdout.
    Raises PolicyError where the policy can't be used.
    """
    console = console or Console(stderr=as_json, highlight=False)
    # What aiokafka has to say is told by our own messages, or is no news.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    run = _Run(jobs, connection, policy or policy_file(), console, show=not as_json)
    with asyncio.Runner() as runner:
        try:
            figures = runner.run(run.guarded())
        except PolicyError:
            raise
        except InputError as error:
            console.print(Text.assemble(("sluiceway demo: ", "bold red"), error.detail), soft_wrap=True)
            return 1
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            return 1
    if figures is None:
        return 128 + (run.signal or signal.SIGINT)
    if as_json:
        sys.stdout.write(orjson.dumps(figures.as_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0


class _Run:
    def __init__(
        self, jobs: int | None, connection: Connection | None, policy_path: Path, console: Console, *, show: bool
    ) -> None:
        self._jobs = jobs
        self._own = connection
        self._policy_path = policy_path
        self._console = console
        self._show = show
        self._workers: list[WorkerProcess] = []
        self._stop_within = _STOP_EMBEDDED if connection is None else _STOP_OWN
        self.signal: int | None = None

    async def guarded(self) -> Figures | None:
        """The figures, or None where a signal ended it; nothing that was started is left either way."""
        main = asyncio.ensure_future(self._run())
        loop = asyncio.get_running_loop()

        def asked(number: int) -> None:
            if self.signal is not None:  # asked twice: at once
                for worker in self._workers:
                    worker.kill()
            self.signal = number
            self._stop_within = _STOP_ASKED if self._own is None else _STOP_OWN
            main.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, asked, number)
        try:
            return await main
        except asyncio.CancelledError:
            return None

    async def _run(self) -> Figures:
        policy = read_policy(self._policy_path)
        task = next(iter(policy.tasks.values()))
        async with AsyncExitStack() as stack:
            chosen = self._tickets()
            view = picture.Live(len(chosen), tuple(rung.model for rung in task.ladder))
            if self._show and self._console.is_terminal:
                stack.enter_context(
                    LiveDisplay(
                        view, console=self._console, refresh_per_second=8, transient=True, redirect_stdout=False
                    )
                )
            figures = await self._flow(policy, task, chosen, view, stack)
        if self._show:
            self._page(policy, task, figures)
        return figures

    async def _flow(
        self, policy: Policy, task: Task, chosen: list[Ticket], view: picture.Live, stack: AsyncExitStack
    ) -> Figures:
        """The figures of a whole run; what it opens is closed by `stack`."""
        map_ = topic_map(policy)
        goes_to = _jobs_topic(task, map_)
        self._say(view, "starting Kafka" if self._own is None else "looking at your Kafka")
        connection = self._own or await self._broker(stack)
        await self._topics(connection, map_)
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluiceway-demo-")))
        stack.push_async_callback(self._stop_workers)
        self._say(view, "starting two workers")
        self._start_workers(connection, logs)
        publisher = Publisher(connection, [goes_to])
        stack.push_async_callback(publisher.stop, 1.0)
        await publisher.start()
        watch = Watch(connection, map_.written)
        stack.push_async_callback(watch.stop)
        await watch.start()
        await asyncio.gather(*(worker.ready(_READY_WITHIN) for worker in self._workers))
        self._say(view, f"{len(chosen)} tickets through Kafka")
        flow = Flow(task, policy, map_, goes_to, publisher, watch, self._workers, view)
        figures = await flow.run(chosen)
        self._say(view, "stopping")
        return figures

    async def _broker(self, stack: AsyncExitStack) -> Connection:
        broker = EmbeddedBroker()
        stack.push_async_callback(broker.stop)  # before the start, which a signal may cut short
        await broker.start()
        return read_connection(broker.bootstrap, [f"{name}={value}" for name, value in SETTINGS.items()])

    async def _topics(self, connection: Connection, map_: TopicMap) -> None:
        """Declares all topics on our own broker; on the user's creates those that are missing, and alters nothing."""
        if self._own is None:
            await topics.apply(
                connection, topics.declared(overrides=map_.overrides(), replicas=1, partitions=_PARTITIONS)
            )
            return
        wanted = topics.declared(overrides=map_.overrides())
        missing = {one.topic for one in await topics.check(connection, wanted) if one.field == "topic"}
        if not missing:
            return
        try:
            await topics.apply(connection, [topic for topic in wanted if topic.name in missing])
        except InputError:
            # A cluster for development has fewer brokers than the three replicas that we declare.
            single = topics.declared(overrides=map_.overrides(), replicas=1)
            await topics.apply(connection, [topic for topic in single if topic.name in missing])

    def _start_workers(self, connection: Connection, logs: Path) -> None:
        # On the user's cluster other jobs may wait: they are not the demo's to pay for.
        start = "earliest" if self._own is None else datetime.now(UTC).isoformat(timespec="seconds")
        settings = environment(connection)
        for role in _ROLES:
            arguments = ["--policy", str(self._policy_path), "-b", connection.bootstrap, "--role", role]
            arguments += ["--from", start, "--metrics-port", "0"]
            worker = WorkerProcess(role, arguments, settings, logs / f"{role}.log")
            self._workers.append(worker)
            worker.start()

    async def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(worker.ended(self._stop_within) for worker in self._workers))

    def _tickets(self) -> list[Ticket]:
        """On the user's cluster under ids of this run alone, so that a second run is no repetition of the first."""
        return tickets(self._jobs, "" if self._own is None else f"demo-{secrets.token_hex(3)}-")

    def _say(self, view: picture.Live, stage: str) -> None:
        view.stage = stage
        if self._show and not self._console.is_terminal:
            self._console.print(f"{stage} ...")

    def _page(self, policy: Policy, task: Task, figures: Figures) -> None:
        names = {rung.model: notes.behind(policy.models[rung.model]) for rung in task.ladder}
        ladder = [rung.model for rung in task.ladder]
        about = notes.honest(policy, task, own_policy=self._policy_path != policy_file())
        times = "publish to outcome" + (": the pipeline alone" if notes.recorded(policy, task) else "")
        self._console.print(picture.final(figures, ladder, notes=about, names=names, times=times))


def _jobs_topic(task: Task, map_: TopicMap) -> str:
    if task.source is not None:
        raise InputError(
            "policy", f"the first task, {task.name}, reads a foreign topic. Mend: put one without source: first"
        )
    return task.topic or next(topic for topic in map_.jobs if topic not in map_.foreign)
