"""Our side of the stream benches, in a process of its own: `python -m tests.bench._stream_ours KIND SETTINGS`.

`bytes`: our app (Faust app, fetch, ledger, commits, publisher) around an instant handler: a record's bytes come out.
`core`: `sluiceway work` itself, but for its model, which answers in this process out of a recording, with the
logprobs that its gate asks for. The model counts as one that is paid, so the local store has all its work to do.
SETTINGS is JSON: {"bootstrap", "jobs", "results", "group"}; `core` takes `policy` and `recording` (files) and may take
`state` (a directory: without it no store), `delay` (seconds of a call) and `in_flight`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from sluiceway import worker
from sluiceway.core.call import Call, Failure, Reply, TokenLogprob, Usage
from sluiceway.core.cascade import Role
from sluiceway.core.stream import Limits
from sluiceway.kafka.consumer import RoleConsumer, RoleSettings
from sluiceway.kafka.publish import Publisher
from sluiceway.kafka.security import read_connection
from sluiceway.kafka.start import parse_start
from sluiceway.models import recorded, tokens
from sluiceway.models.pool import Pool, Served
from sluiceway.models.recorded import Recording
from sluiceway.ports import Outgoing, Record
from sluiceway.runner import Runner
from sluiceway.topicmap import TopicMap
from tests.bench._turn import Turn

MODEL = "cheap"
POLICY = """\
models:
  cheap:    {provider: bench, api: openai, model: bench, base_url: "http://127.0.0.1:1/v1",
             params: {max_tokens: 50, temperature: 0}, price: {input_mtok: 0.15, output_mtok: 0.6}}
  frontier: {provider: bench, api: openai, model: big, base_url: "http://127.0.0.1:1/v1",
             params: {max_tokens: 200}, price: {input_mtok: 5, output_mtok: 25}}
tasks:
  ticket-triage:
    ladder: [cheap, frontier]
    prompt: Classify this ticket of a bank's customer by what it is about.
    labels: [billing, login, refund, delivery, card lost, limits, fees, other]
    gate: {score: label_logprob, threshold: 0.85}
"""


class CountingMeter:
    """A meter of the Kafka layer that tells the turn."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def taken(self, group: str, topic: str, count: int) -> None:
        pass

    def settled(self, group: str, topic: str, count: int) -> None:  # noqa: ARG002  the protocol's
        self._turn.done(count)

    def notice(self, event: str, **fields: str | int | float) -> None:
        print(event, fields, file=sys.stderr)


async def copy_bytes(settings: dict[str, Any], turn: Turn) -> None:
    connection = read_connection(settings["bootstrap"], [])
    results = settings["results"]

    async def work(record: Record) -> Outgoing | None:
        if not turn.going:
            await turn.hold()
        return Outgoing(results, record.key, record.value, record.headers)

    meter = CountingMeter(turn)
    publisher = Publisher(connection, [results], meter=meter)
    await publisher.start()
    role = RoleSettings(settings["group"], (settings["jobs"],), limits=_limits(settings), start=parse_start("earliest"))
    consumer = RoleConsumer(connection, role, work, publisher, meter)
    await consumer.start()
    raise SystemExit(str(await consumer.failed()))


class Recorded:
    """Answers out of a recording after `delay` seconds, with the logprobs of a model that is sure."""

    origin = "recorded"

    def __init__(self, recording: Recording, turn: Turn, delay: float) -> None:
        self._recording = recording
        self._turn = turn
        self._delay = delay
        self._known: dict[str, tuple[str, tuple[TokenLogprob, ...], int]] = {}

    async def call(self, call: Call) -> Reply | Failure:
        if not self._turn.going:
            await self._turn.hold()
        if self._delay:
            await asyncio.sleep(self._delay)
        row = self._recording.find(call.request.text)
        label = "other" if row is None else str(row[MODEL])
        known = self._known.get(label)
        if known is None:
            known = self._known[label] = _reply(label)
        text, logprobs, size = known
        usage = Usage(input_uncached=call.request.input_tokens, output_text=size)
        return Reply(text, usage, logprobs=logprobs, model_served="bench", response_id="recorded-1")

    async def close(self) -> None:
        pass


def _reply(label: str) -> tuple[str, tuple[TokenLogprob, ...], int]:
    others = ((b"x", -6.0),)  # the likeliest alternative, as what reads a wire format keeps it
    parts = ('{"', "label", '":"', label, '"}')
    logprobs = tuple(TokenLogprob(part.encode(), -0.01, others) for part in parts)
    text = "".join(parts)
    return text, logprobs, tokens.default().count(text)


def work(settings: dict[str, Any], turn: Turn) -> int:
    """The worker, its model swapped, its settled jobs told to the turn, under a group of its own."""
    endpoint = Recorded(recorded.read(settings["recording"]), turn, settings.get("delay", 0.0))
    module: Any = worker  # whose parts are changed by name
    open_runner, topic_map, meter = module.open_runner, module.topic_map, module.KafkaMeter

    def opened(*given: Any, **named: Any) -> tuple[Runner, Pool]:
        runner, pool = open_runner(*given, **named)
        model = pool._served[MODEL].model
        pool._served = {**pool._served, MODEL: Served(model, (endpoint,), None)}
        return runner, pool

    def mapped(*given: Any, **named: Any) -> TopicMap:
        found: TopicMap = topic_map(*given, **named)
        return dataclasses.replace(found, groups={**found.groups, Role.JOBS: settings["group"]})

    class Told(meter):  # type: ignore[misc, valid-type]  # whichever the worker has
        def settled(self, group: str, topic: str, count: int) -> None:
            super().settled(group, topic, count)
            turn.done(count)

    module.open_runner, module.topic_map, module.KafkaMeter = opened, mapped, Told
    return worker.run(
        worker.WorkOptions(
            policy=Path(settings["policy"]),
            connection=read_connection(settings["bootstrap"], []),
            roles=(Role.JOBS,),
            start=parse_start("earliest"),
            metrics_port=0,
            state=Path(settings["state"]) if settings.get("state") else None,
            limits=_limits(settings),
        )
    )


def _limits(settings: dict[str, Any]) -> Limits:
    jobs = settings.get("in_flight")
    return Limits() if jobs is None else Limits(jobs=jobs)


if __name__ == "__main__":
    given, taken = json.loads(sys.argv[2]), Turn()
    if sys.argv[1] == "bytes":
        uvloop.run(copy_bytes(given, taken))
    else:
        sys.exit(work(given, taken))
