"""Traces of real processes: publisher and workers tell a collector, and one trace leads from publish to result."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.support.fake_process import FakeProcess
from tests.support.outgoing import RESULTS, body
from tests.support.processes import run_sluiceway
from tests.support.rig import KEYS, Rig, models, triage

CANARY = "canary-4711"


@dataclass
class Collector:
    """Takes OTLP over HTTP and keeps what it was sent; `raw` is all of it, to look for what must not be there."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    metrics: set[str] = field(default_factory=set)
    raw: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str, body: bytes) -> None:
        with self.lock:
            self.raw += body
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            else:
                for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self.metrics |= {metric.name for scope in measured.scope_metrics for metric in scope.metrics}

    def path_to(self, name: str, trace: bytes) -> list[str]:
        """The names from the root of `trace` down to its one span `name`."""
        found = {span.span_id: span for span in self.spans if span.trace_id == trace}
        (span,) = [span for span in found.values() if span.name == name]
        names = [span.name]
        while span.parent_span_id:
            span = found[span.parent_span_id]
            names.append(span.name)
        return names[::-1]


@pytest.fixture
def collector() -> Iterator[Collector]:
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.take(self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's own name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow_on_embedded
async def test_one_trace_leads_from_publish_to_result(
    any_rig: Rig, fakes: tuple[FakeProcess, FakeProcess], collector: Collector, tmp_path: Path
) -> None:
    """`sluiceway publish` begins it, each role's process goes on in it, and the result's header names its end."""
    rig, (cheap, frontier) = any_rig, fakes
    start = [{"when": "tokens > 60", "at": "frontier"}]
    await rig.open(models(cheap.url, frontier.url), {"ticket-triage": triage(gate={"score": "none"}, start=start)})
    texts = {f"t{number}": f"My card was charged twice {number} {CANARY}" for number in range(5)}
    texts |= {f"long{number}": f"Where is it? {CANARY} " * 40 for number in range(5)}
    file = tmp_path / "tickets.jsonl"
    file.write_bytes(b"\n".join([orjson.dumps({"id": name, "input": text}) for name, text in texts.items()]))
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "SLUICEWAY_TRACE_SAMPLE": "1"}
    command = ("publish", str(file), "--task", "ticket-triage", "-b", str(rig.bootstrap), "--trace-sample", "1")
    done = await asyncio.to_thread(run_sluiceway, *command, environment={**KEYS, **environment}, within=90)
    assert done.returncode == 0, done.stderr
    workers = [rig.worker("--role", role, environment=environment) for role in ("jobs", "escalations")]
    seen = await rig.until(lambda seen: seen.ids(RESULTS) == set(texts), within=60)
    assert await rig.stopped(*workers) == [0, 0]

    for record in seen[RESULTS]:
        result, said = body(record), dict(record.headers)["traceparent"] or b""
        trace, last = bytes.fromhex(said.split(b"-")[1].decode()), bytes.fromhex(said.split(b"-")[2].decode())
        (end,) = [span for span in collector.spans if span.span_id == last]
        assert (end.name, end.trace_id) == ("send sluiceway.results", trace)
        first = ["send sluiceway.jobs", "process sluiceway.jobs"]
        if result["escalated"]:
            first += ["send sluiceway.escalations", "process sluiceway.escalations"]
        assert collector.path_to("send sluiceway.results", trace) == [*first, "send sluiceway.results"]
        model = "frontier-1" if result["escalated"] else "cheap-1"
        assert collector.path_to(f"chat {model}", trace) == [*first, "job ticket-triage", f"chat {model}"]
    assert {body(record)["job_id"] for record in seen[RESULTS] if body(record)["escalated"]} == {
        name for name in texts if name.startswith("long")
    }
    assert {"poll sluiceway.jobs", "commit sluiceway.jobs"} <= {span.name for span in collector.spans}
    assert collector.metrics == {"gen_ai.client.operation.duration"}
    assert b"process sluiceway.jobs" in collector.raw
    for secret in (CANARY, "charged twice", *KEYS.values()):
        assert secret.encode() not in collector.raw
