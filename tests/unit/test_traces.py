"""Tracing: one trace leads from publish to result, nothing of a payload is in it, and off it is not even imported."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.support.core import USAGE, HandClock, Letters, Scripted, down, policy, reply

from sluiceway.core.call import Call, Failure, FailureKind, Reply
from sluiceway.core.cascade import Role
from sluiceway.core.errors import Bug, InputError
from sluiceway.core.leave import Leaving
from sluiceway.core.outcome import Ending
from sluiceway.ports import Headers, Outgoing, Record
from sluiceway.runner import Runner
from sluiceway.telemetry.otel import Traces, sampler
from sluiceway.telemetry.traces import open_traces
from sluiceway.topicmap import DELAYS, topic_map
from sluiceway.work import Desk

CANARY = "canary-4711"
POLICY = policy({"deadline": "10m"})
TOPICS = topic_map(POLICY)
JOB = orjson.dumps({"id": "j1", "task": "triage", "input": f"I was billed twice {CANARY}"})
TRACE = "0af7651916cd43dd8448eb211c80319c"
W3C = "00-{}-b7ad6b7169203331-{}"


class _NoMeter:
    def finished(self, record: Ending, *, known: int) -> None:
        pass


class Traced:
    """A desk with scripted models behind traces that stay in memory. `hop` does what publisher and broker do."""

    def __init__(self, *answers: Reply | Failure | BaseException, sample: float = 1.0) -> None:
        told = list(answers)

        def answer(_call: Call) -> Reply | Failure:
            event = told.pop(0)
            if isinstance(event, BaseException):
                raise event
            return event

        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        provider = TracerProvider(sampler(sample), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        metrics = MeterProvider((self.reader,), shutdown_on_exit=False)
        self.traces = Traces(provider, metrics, TOPICS.dead_letters)
        clock = HandClock()
        runner = Runner(
            POLICY,
            self.traces.calls(Scripted(answer, clock, 1.0)),
            clock=clock,
            tokens=Letters(),
            meter=_NoMeter(),
            secret=b"a secret of sixteen",
            leaving=Leaving(DELAYS, 5),
            tracer=self.traces,
        )
        desk = Desk(runner, TOPICS, "c", lambda *_: None, lambda _: None)
        self._work = {role: self.traces.work(desk.work(role), TOPICS.groups[role]) for role in Role}

    async def work(self, record: Record) -> Outgoing:
        made = await self._work[TOPICS.reader_of(record.topic)](record)
        assert made is not None
        return made

    def hop(self, outgoing: Outgoing, error: str | None = None) -> Record:
        """Published, acked, and read again."""
        sent, ended = self.traces.sending(outgoing)
        ended(error)
        return Record(sent.topic, 3, 41, 1000.0, sent.key, sent.value, sent.headers)

    async def through(self, *headers: tuple[str, bytes]) -> Record:
        """A job from its publisher to the end of its way."""
        record = self.hop(Outgoing("sluiceway.jobs", b"k", JOB, headers))
        while record.topic not in (*TOPICS.results.values(), TOPICS.reviews, TOPICS.dead_letters):
            record = self.hop(await self.work(record))
        return record

    @property
    def finished(self) -> Sequence[ReadableSpan]:
        return self.spans.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.finished if span.name == name]
        return span

    def points(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        assert (metric.name, metric.unit) == ("gen_ai.client.operation.duration", "s")
        return list(metric.data.data_points)


def chain(spans: Sequence[ReadableSpan], last: ReadableSpan) -> list[str]:
    """The names from the root down to `last`."""
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    names = [last.name]
    while last.parent is not None:
        last = by_id[last.parent.span_id]
        names.append(last.name)
    return names[::-1]


def sampled(traceparent: bytes) -> bool:
    """Its lowest flag; newer SDKs set the next one too, for a random trace id."""
    found = re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})", traceparent)
    assert found, traceparent
    return bool(int(found[1], 16) & 1)


async def test_one_trace_leads_from_publish_to_result_over_the_escalation() -> None:
    """Each span is the child of the one before it; the result's own header names the last one."""
    world = Traced(reply(p=0.2, seconds=0.5), reply(p=None, seconds=2.0))
    result = await world.through()
    assert result.topic == "sluiceway.results"
    assert chain(world.finished, world.named("send sluiceway.results")) == [
        "send sluiceway.jobs",
        "process sluiceway.jobs",
        "send sluiceway.escalations",
        "process sluiceway.escalations",
        "send sluiceway.results",
    ]
    small = chain(world.finished, world.named("chat gpt-cheap"))
    assert small == ["send sluiceway.jobs", "process sluiceway.jobs", "job triage", "chat gpt-cheap"]
    large = chain(world.finished, world.named("chat claude-frontier"))
    assert large[3:] == ["process sluiceway.escalations", "job triage", "chat claude-frontier"]
    (trace,) = {span.context.trace_id for span in world.finished if span.context is not None}
    last = world.named("send sluiceway.results").context
    assert last is not None
    said = dict(result.headers)["traceparent"] or b""
    assert said.startswith(f"00-{trace:032x}-{last.span_id:016x}-".encode())
    assert sampled(said)
    assert [name for name, _ in result.headers].count("traceparent") == 1


async def test_a_publisher_s_own_trace_goes_on_and_its_state_travels_along() -> None:
    """W3C: same trace id, and tracestate kept; other headers are not touched."""
    world = Traced(reply())
    given = (("TraceParent", W3C.format(TRACE, "01").encode()), ("tracestate", b"vendor=1"), ("x-correlation", b"7"))
    result = await world.through(*given)
    assert {f"{span.context.trace_id:032x}" for span in world.finished if span.context is not None} == {TRACE}
    assert world.named("send sluiceway.jobs").parent is not None
    said = dict(result.headers)
    assert (said["tracestate"], said["x-correlation"]) == (b"vendor=1", b"7")
    assert "TraceParent" not in said


async def test_a_job_that_waits_in_a_retry_topic_stays_in_its_trace() -> None:
    """It leaves with the header and comes back by it."""
    busy = down(FailureKind.OVERLOADED, "http_429", retry_after=90.0)
    world = Traced(busy, reply())
    await world.through()
    assert "process sluiceway.retries-jobs-60000" in {span.name for span in world.finished}
    assert len({span.context.trace_id for span in world.finished if span.context is not None}) == 1


@pytest.mark.parametrize("given", [(), (("traceparent", W3C.format(TRACE, "00").encode()),)], ids=["ours", "theirs"])
async def test_what_is_not_sampled_makes_no_span_and_says_so_onwards(given: Headers) -> None:
    """By the share where the trace begins here, else as was decided where it began. Measurements count it all."""
    world = Traced(reply(seconds=1.0), sample=0.0 if not given else 1.0)
    result = await world.through(*[(name, value or b"") for name, value in given])
    assert world.finished == ()
    parent = dict(result.headers)["traceparent"] or b""
    assert not sampled(parent)
    assert not given or TRACE.encode() in parent
    assert len(world.points()) == 1


@pytest.mark.parametrize("header", [b"00-1", b"\xff\xfe", b"", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"])
async def test_a_header_that_names_no_trace_begins_one(header: bytes) -> None:
    """Anybody may write to the jobs topic: nonsense costs a job nothing."""
    world = Traced(reply())
    await world.through(("traceparent", header))
    assert world.named("send sluiceway.jobs").parent is None


async def test_a_call_is_a_client_span_by_the_names_of_the_convention() -> None:
    """As OpenTelemetry names them; it lasts as long as the call did, and the measurement says the same."""
    world = Traced(
        reply(model_served="gpt-cheap-2", response_id="r-1", endpoint="https://api.test/v1", seconds=1.5),
    )
    await world.through()
    span = world.named("chat gpt-cheap")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-cheap",
        "gen_ai.response.model": "gpt-cheap-2",
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.output.type": "json",
        "gen_ai.usage.input_tokens": USAGE.input,
        "gen_ai.usage.output_tokens": USAGE.output,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "server.address": "api.test",
        "server.port": 443,
    }
    assert (span.end_time or 0) - (span.start_time or 0) == 1_500_000_000
    (point,) = world.points()
    assert point.sum == 1.5
    assert point.attributes["gen_ai.request.model"] == "gpt-cheap"
    assert "gen_ai.response.id" not in point.attributes, "one series a job would be no metric"


async def test_kafka_s_spans_have_the_convention_s_names() -> None:
    """Who read which record for which group."""
    world = Traced(reply())
    await world.through()
    taken = world.named("process sluiceway.jobs")
    assert taken.kind is SpanKind.CONSUMER
    assert dict(taken.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "sluiceway.jobs",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "sluiceway-jobs",
        "messaging.kafka.offset": 41,
    }
    assert world.named("send sluiceway.results").kind is SpanKind.PRODUCER
    world.traces.batched("commit", "sluiceway.jobs", "sluiceway-jobs", 0.25)
    commit = world.named("commit sluiceway.jobs")
    assert commit.parent is None
    assert (commit.attributes or {})["messaging.operation.type"] == "settle"
    assert (commit.end_time or 0) - (commit.start_time or 0) == 250_000_000


async def test_a_call_that_fails_is_an_error_with_its_code() -> None:
    """The code is ours and short; the endpoint's own words are nowhere."""
    world = Traced(down(FailureKind.INVALID, "http_400", seconds=0.1), reply(p=None))
    await world.through()
    span = world.named("chat gpt-cheap")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "http_400"
    assert {point.attributes.get("error.type") for point in world.points()} == {"http_400"}


async def test_an_exception_s_text_is_in_no_span() -> None:
    """It may hold anything; its type says enough."""
    world = Traced(Bug(f"broke over {CANARY}"))
    with pytest.raises(Bug):
        await world.through()
    for name in ("job triage", "process sluiceway.jobs"):
        span = world.named(name)
        assert (span.attributes or {})["error.type"] == "Bug"
        assert span.status.status_code is StatusCode.ERROR
    assert CANARY not in _written(world)


async def test_no_payload_is_in_a_span_whatever_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither text nor answer nor prompt nor key: not even where another instrumentation would be told to."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    world = Traced(Reply(f'{{"label":"{CANARY}"}}', USAGE), reply(p=None))
    await world.through(("x-secret", CANARY.encode()))
    written = _written(world)
    assert "chat claude-frontier" in written
    assert CANARY not in written
    assert "billing" not in written
    assert "Classify this ticket" not in written


def _written(world: Traced) -> str:
    return "".join([span.to_json() for span in world.finished])


async def test_a_dead_letter_keeps_its_headers_byte_for_byte() -> None:
    """Its trace goes on in the spans alone."""
    world = Traced()
    given = (("traceparent", W3C.format(TRACE, "01").encode()), ("x", b"1"))
    letter = world.hop(await world.work(Record("sluiceway.jobs", 0, 1, 1000.0, None, b"no json", given)))
    assert letter.topic == TOPICS.dead_letters
    assert letter.headers[:2] == given
    assert [name for name, _ in letter.headers].count("traceparent") == 1
    assert world.named("send sluiceway.dead-letters").parent is not None
    assert {f"{span.context.trace_id:032x}" for span in world.finished if span.context is not None} == {TRACE}


def test_a_record_that_was_not_taken_is_an_error() -> None:
    """Its span ends as it is handed back."""
    world = Traced()
    world.hop(Outgoing("sluiceway.results", None, b"{}", ()), error="too_large")
    span = world.named("send sluiceway.results")
    assert (span.attributes or {})["error.type"] == "too_large"
    assert span.status.status_code is StatusCode.ERROR


async def test_closing_waits_no_longer_than_it_is_told() -> None:
    """A collector that hangs holds no worker."""
    held = _Hung()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.shutdown = held  # type: ignore[method-assign]  # a collector that never answers
    traces = Traces(provider, MeterProvider(shutdown_on_exit=False))
    assert not await traces.close(0.05)
    held.end()
    assert await Traced().traces.close(10.0)


class _Hung:
    def __init__(self) -> None:
        self._event = threading.Event()
        self.end: Callable[[], None] = self._event.set

    def __call__(self) -> None:
        self._event.wait()


def test_asked_for_without_the_extra_is_a_fault_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback: the name of what to install."""
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sluiceway.telemetry.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InputError) as caught:
        open_traces(0.1)
    assert caught.value.reason == "tracing"
    assert "pip install 'sluiceway[otel]'" in caught.value.detail
    assert open_traces(None) is None


def test_off_means_that_nothing_of_it_is_imported() -> None:
    """Neither by the worker nor by publishing."""
    code = (
        "import sys, sluiceway.worker, sluiceway.publishing\n"
        "from sluiceway.telemetry.traces import open_traces\n"
        "assert open_traces(None) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
