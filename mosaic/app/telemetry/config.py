"""The settings of what leaves a run. No heavy imports."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mosaic.core.types.base import FrozenModel


class TelemetryConfig(FrozenModel):
    """What is handed to other tools whenever the controller of a run ends, whyever it ends.

    `spans` writes the run's spans to `spans.jsonl` in its folder, a request in OTLP's JSON form.
    `otlp` sends the same to a receiver of OTLP over HTTP; its headers come from the environment
    variable `OTEL_EXPORTER_OTLP_HEADERS`. What models were sent and said is left out of spans
    unless `capture_content` is true. `trackio` names a project of trackio that gets the scores and
    tokens of each round; TRL writes its curves to `huggingface`.
    """

    spans: bool = True
    otlp: str | None = None
    capture_content: bool = False
    trackio: str | None = Field(default=None, min_length=1, max_length=100)

    @field_validator("otlp")
    @classmethod
    def _address(cls, otlp: str | None) -> str | None:
        if otlp is not None:
            check_address(otlp)
        return otlp


def check_address(text: str) -> None:
    """Raise ValueError if a text is not the address of a receiver, or holds a password."""
    try:
        address = urlsplit(text)
        named = address.scheme in ("http", "https") and bool(address.hostname)
        secret = bool(address.username or address.password or address.query)
    except ValueError:
        named, secret = False, False
    if not named:
        raise ValueError("not an address; one is http://127.0.0.1:4318/v1/traces")
    if secret:
        raise ValueError(
            "holds a password or a query, which a run would keep; give keys in the environment "
            "variable OTEL_EXPORTER_OTLP_HEADERS"
        )
