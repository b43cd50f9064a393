"""Tracing, off unless asked for: OpenTelemetry is an extra, and nothing but `telemetry/otel.py` imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluiceway.core.errors import InputError

if TYPE_CHECKING:
    from sluiceway.telemetry.otel import Traces


def open_traces(sample: float | None, dead_letters: str = "") -> Traces | None:
    """Spans that go to the collector of OTEL_EXPORTER_OTLP_ENDPOINT; None where `sample` is.

    `sample`: the share of the traces begun here that are kept; for others it was decided where they began.
    `dead_letters`: the topic whose records keep their headers byte for byte.

    Raises InputError where the extra is not installed.
    """
    if sample is None:
        return None
    try:
        from sluiceway.telemetry.otel import exporting
    except ImportError as error:
        raise InputError(
            "tracing",
            f"traces are asked for, and OpenTelemetry is not installed ({error.name})."
            " Mend: pip install 'sluiceway[otel]', or leave --trace-sample out",
        ) from None
    return exporting(sample, dead_letters)
