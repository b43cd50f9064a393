"""OpenTelemetry: spans from publish to result, and how long calls take. The only importer of its packages.

The names are OpenTelemetry's own (semantic conventions for messaging and for generative AI). A record's W3C
`traceparent` header is the parent of what is done with it, and what is written carries the next one, so that one trace
leads through every topic. No payload, prompt, answer or key is ever part of a span, whatever the environment asks for,
nor the text of an exception.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sluiceway import __version__
from sluiceway.core import ledger
from sluiceway.core.call import Call, Failure, Reply
from sluiceway.core.job import Job
from sluiceway.core.outcome import Ending, Escalation, Result, Retry, Review
from sluiceway.core.trail import Role
from sluiceway.ports import Headers, Models, Outgoing, Record, Work

_W3C = TraceContextTextMapPropagator()
_FIELDS = frozenset(_W3C.fields)  # traceparent, tracestate
# OpenTelemetry's advice for gen_ai.client.operation.duration.
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

Attributes: TypeAlias = dict[str, "str | int | float | tuple[str, ...]"]


class Traces:
    """Implements `ports.Tracer` over two providers, which it closes. `dead_letters`: headers there are not touched."""

    def __init__(self, spans: TracerProvider, metrics: MeterProvider, dead_letters: str = "") -> None:
        self._providers = (spans, metrics)
        self._tracer = spans.get_tracer("sluiceway", __version__)
        self._duration = metrics.get_meter("sluiceway", __version__).create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "How long calls to models took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._dead_letters = dead_letters

    # -- what a record is taken for --------------------------------------------------------------------------------

    def work(self, work: Work, group: str) -> Work:
        """The same work inside a span `process TOPIC`, a child of the span that the record names."""

        async def traced(record: Record) -> Outgoing | None:
            known: Attributes = {
                **_messaging("process", "process", record.topic),
                "messaging.consumer.group.name": group,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
            }
            parent = _extracted(record.headers)
            name = f"process {record.topic}"
            with _current(self._tracer.start_span(name, parent, SpanKind.CONSUMER, known)) as span:
                made = await work(record)
            return made if made is None else self._carrying(made, span)

        return traced

    async def job(self, job: Job, role: Role, climb: Awaitable[Ending]) -> Ending:
        """What `climb` ends in, inside a span `job TASK` that says what that was."""
        known: Attributes = {
            "sluiceway.task": job.task,
            "sluiceway.job_id": job.id,
            "sluiceway.round": job.round,
            "sluiceway.role": role.value,
        }
        with _current(self._tracer.start_span(f"job {job.task}", attributes=known)) as span:
            record = await climb
            if span.is_recording():
                span.set_attributes(_ended(record))
        return record

    # -- calls -----------------------------------------------------------------------------------------------------

    def calls(self, models: Models) -> Models:
        """The same models, with a span and a measurement of each call."""
        return TracedCalls(models, self.called)

    def called(self, call: Call, event: Reply | Failure) -> None:
        """A call has just ended in `event`: its span takes as long as it did, without its wait for a permit."""
        end = time.time_ns()
        known = _call(call)
        known |= _server(event.endpoint)
        if isinstance(event, Failure):
            known["error.type"] = event.detail
        elif event.model_served:
            known["gen_ai.response.model"] = event.model_served
        if event.seconds:
            self._duration.record(event.seconds, known)
        span = self._tracer.start_span(
            f"chat {call.model.model or call.model.name}",
            kind=SpanKind.CLIENT,
            attributes=known,
            start_time=end - round(event.seconds * 1e9),
        )
        if span.is_recording():
            span.set_attributes(_response(call, event))
            if isinstance(event, Failure):
                span.set_status(StatusCode.ERROR)
        span.end(end)

    # -- Kafka -----------------------------------------------------------------------------------------------------

    def sending(self, outgoing: Outgoing) -> tuple[Outgoing, Callable[[str | None], None]]:
        """The record with the `traceparent` of a span `send TOPIC`, and what ends that span: see `ports.Sending`.

        The span is a child of the one that the record's headers name, else the first of its trace.
        """
        known = _messaging("send", "send", outgoing.topic)
        name = f"send {outgoing.topic}"
        span = self._tracer.start_span(name, _extracted(outgoing.headers), SpanKind.PRODUCER, known)

        def ended(error: str | None) -> None:
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(StatusCode.ERROR)
            span.end()

        return self._carrying(outgoing, span), ended

    def batched(self, operation: str, topic: str, group: str, seconds: float) -> None:
        """Records were polled, or their offsets committed, just now: a trace of its own, which took `seconds`."""
        end = time.time_ns()
        kind = "receive" if operation == "poll" else "settle"
        known: Attributes = {
            **_messaging(operation, kind, topic),
            "messaging.consumer.group.name": group,
        }
        start = end - round(seconds * 1e9)
        self._tracer.start_span(f"{operation} {topic}", Context(), SpanKind.CLIENT, known, start_time=start).end(end)

    def _carrying(self, outgoing: Outgoing, span: Span) -> Outgoing:
        if outgoing.topic == self._dead_letters:
            return outgoing
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span, Context()))
        kept = [(name, value) for name, value in outgoing.headers if name.lower() not in _FIELDS]
        added = [(name, value.encode()) for name, value in carrier.items()]
        return Outgoing(outgoing.topic, outgoing.key, outgoing.value, (*kept, *added))

    # -- life ------------------------------------------------------------------------------------------------------

    async def close(self, budget: float) -> bool:
        """True if all spans and measurements were handed over within `budget` seconds. Never waits longer."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def closing() -> None:
            for provider in self._providers:
                provider.shutdown()
            with suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(done.set_result, None)

        # Not in the loop's own pool, whose threads are waited for: a collector that hangs must not hold the process.
        threading.Thread(target=closing, name="traces", daemon=True).start()
        await asyncio.wait([done], timeout=budget)
        return done.done()


class TracedCalls:
    """Implements `ports.Models` over another, and tells of each call that it made."""

    def __init__(self, inner: Models, called: Callable[[Call, Reply | Failure], None]) -> None:
        self._inner = inner
        self._called = called

    async def call(self, call: Call) -> Reply | Failure:
        event = await self._inner.call(call)
        self._called(call, event)
        return event

    async def close(self) -> None:
        await self._inner.close()


def exporting(sample: float, dead_letters: str = "") -> Traces:
    """Traces over OTLP (HTTP), set up by OpenTelemetry's own environment variables (endpoint, headers, resource)."""
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "sluiceway"}
    resource = Resource.create({**named, "service.version": __version__})
    spans = TracerProvider(sampler(sample), resource, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return Traces(spans, MeterProvider((reader,), resource, shutdown_on_exit=False), dead_letters)


def sampler(sample: float) -> Sampler:
    """As the trace's beginning was decided, here by the share `sample` of their ids."""
    return ParentBased(TraceIdRatioBased(sample))


@contextmanager
def _current(span: Span) -> Iterator[Span]:
    """`span` is the parent of all that begins inside; what is raised gives it its type's name, and no more."""
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise


def _extracted(headers: Headers) -> Context:
    """The context that the headers name; an empty one where they name none, or none that is well formed."""
    carrier = {
        name.lower(): value.decode("ascii", "replace")
        for name, value in headers
        if value is not None and name.lower() in _FIELDS
    }
    return _W3C.extract(carrier, Context())


def _messaging(operation: str, kind: str, topic: str) -> Attributes:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
    }


def _ended(record: Ending) -> Mapping[str, str | int | float]:
    """What a cascade came to; no detail, which may name what a job says."""
    known: dict[str, str | int | float] = {
        "sluiceway.policy": record.policy,
        "sluiceway.attempts": len(record.trail.attempts),
        "sluiceway.cost_usd": ledger.usd(record.trail.cost_picousd),
    }
    match record:
        case Result():
            known["sluiceway.outcome"] = record.status.value
            if record.model is not None:
                known["sluiceway.model"] = record.model
            if record.reason is not None:
                known["sluiceway.reason"] = record.reason.value
        case Review():
            known["sluiceway.outcome"] = "review"
            known["sluiceway.reason"] = record.reason.value
        case Escalation():
            known["sluiceway.outcome"] = "escalation"
            known["sluiceway.reason"] = record.reason.value
        case Retry():
            known["sluiceway.outcome"] = "retry"
            known["sluiceway.model"] = record.rung
    return known


def _call(call: Call) -> Attributes:
    model = call.model
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": model.provider or model.api.value,
        "gen_ai.request.model": model.model or model.name,
    }


def _response(call: Call, event: Reply | Failure) -> Attributes:
    usage = event.usage
    known: Attributes = {
        "gen_ai.output.type": "text" if call.request.schema is None else "json",
        "gen_ai.usage.input_tokens": usage.input,
        "gen_ai.usage.output_tokens": usage.output,
        "gen_ai.usage.cache_read.input_tokens": usage.input_cache_read,
        "gen_ai.usage.cache_creation.input_tokens": usage.input_cache_write_5m + usage.input_cache_write_1h,
    }
    if isinstance(event, Reply):
        known["gen_ai.response.finish_reasons"] = (event.finish.value,)
        if event.response_id:
            known["gen_ai.response.id"] = event.response_id
    return known


@lru_cache(1024)
def _server(origin: str) -> Attributes:
    """Address and port of an endpoint's origin; nothing for what answers in this process."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or (443 if parts.scheme == "https" else 80)}
