"""Hands what a run did to other tools, when its controller ends. Nothing of it can fail the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mosaic.app.extras import needs
from mosaic.app.telemetry.config import TelemetryConfig
from mosaic.core.journal import Journal

SPANS = "spans.jsonl"


def check_telemetry(config: TelemetryConfig | None) -> None:
    """Raise UsageError if a library that the config needs is not installed."""
    if config is None:
        return
    if config.spans or config.otlp:
        needs_otel()
    if config.trackio:
        needs("trackio", "trackio")


def needs_otel() -> None:
    """Raise UsageError if spans cannot be made here."""
    needs("opentelemetry.sdk", "otel")
    needs("opentelemetry.exporter.otlp.proto.http", "otel")


def deliver(folder: Path, config: TelemetryConfig | None, say: Callable[[str], None]) -> None:
    """Write and send what the config asks for. What does not work is said, and nothing is raised."""
    if config is None:
        return
    parts = {"spans": deliver_spans, "trackio": deliver_scores}
    for name, part in parts.items():
        try:
            part(folder, config)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            say(f"telemetry: {name} not handed on: {reason}")


def deliver_spans(folder: Path, config: TelemetryConfig) -> None:
    """Write the run's spans to its folder, and send them, as the config says."""
    if not config.spans and not config.otlp:
        return
    needs_otel()
    from mosaic.app.telemetry import otel
    from mosaic.app.telemetry.spans import spans_of

    spans = spans_of(folder, content=config.capture_content)
    if config.spans and spans:
        otel.write_spans(spans, folder / SPANS)
    if config.otlp and spans:
        otel.send_spans(spans, config.otlp)


def deliver_scores(folder: Path, config: TelemetryConfig) -> None:
    """Log the run's rounds to trackio, if the config names a project."""
    if not config.trackio:
        return
    needs("trackio", "trackio")
    from mosaic.app.telemetry.trackio_scores import log_rounds
    from mosaic.app.views.report_data import report_data

    journal = Journal.open(folder)
    run = journal.run
    journal.close()
    log_rounds(report_data(folder), run, config.trackio)
