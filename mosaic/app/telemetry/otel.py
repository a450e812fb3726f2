"""Spans by OpenTelemetry's own library: to a file, or to a receiver over OTLP (extra `otel`).

Imported only by those who know that the library is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span as OpenSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from mosaic import __version__
from mosaic.app.telemetry.span import Span
from mosaic.core.errors import PausedError

# Seconds that one delivery may take, tries included.
TIMEOUT = 10.0
NANOSECONDS = 1_000_000_000
IDS = ("traceId", "spanId", "parentSpanId")


class _Ids(IdGenerator):
    """Ids that follow from the spans' paths: the same run gives the same spans."""

    def __init__(self) -> None:
        self.path = ""

    def generate_span_id(self) -> int:
        return int(hashlib.sha256(self.path.encode()).hexdigest()[:16], 16)

    def generate_trace_id(self) -> int:
        run, _, _ = self.path.partition("/")
        return int(hashlib.sha256(f"trace {run}".encode()).hexdigest()[:32], 16)


def as_opentelemetry(spans: Sequence[Span]) -> list[ReadableSpan]:
    """The spans as the SDK makes them. Each comes after its parent."""
    ids, kept = _Ids(), InMemorySpanExporter()
    service = {"service.name": "mosaic", "service.version": __version__}
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=Resource(service), id_generator=ids, shutdown_on_exit=False
    )
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("mosaic", __version__)
    begun: dict[str, OpenSpan] = {}
    for span in spans:
        ids.path = span.path
        parent = begun.get(span.parent) if span.parent else None
        made = tracer.start_span(
            span.name,
            context=set_span_in_context(parent) if parent else None,
            kind=SpanKind.CLIENT if span.calls_out else SpanKind.INTERNAL,
            attributes=span.attributes,
            start_time=round(span.start * NANOSECONDS),
        )
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        begun[span.path] = made
    for span in reversed(spans):
        begun[span.path].end(end_time=round(span.end * NANOSECONDS))
    return list(kept.get_finished_spans())


def write_spans(spans: Sequence[Span], path: Path) -> None:
    """One line with all spans, as OTLP writes a request in JSON: ids as hexadecimal text."""
    request = MessageToDict(encode_spans(as_opentelemetry(spans)), use_integers_for_enums=True)
    path.write_text(json.dumps(_hexadecimal(request)) + "\n")


def _hexadecimal(request: dict[str, Any]) -> dict[str, Any]:
    """Ids as OTLP's JSON has them. Protobuf's JSON has base64 there."""
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in IDS:
                    if name in span:
                        span[name] = base64.b64decode(span[name]).hex()
    return request


def send_spans(spans: Sequence[Span], address: str) -> None:
    """Send spans to a receiver of OTLP over HTTP.

    Raises PausedError if it does not take them within TIMEOUT seconds.
    """
    exporter = OTLPSpanExporter(endpoint=address, timeout=TIMEOUT)
    try:
        result = exporter.export(as_opentelemetry(spans))
    finally:
        exporter.shutdown()
    if result is not SpanExportResult.SUCCESS:
        raise PausedError(f"{address} did not take the spans within {TIMEOUT:.0f} s")
