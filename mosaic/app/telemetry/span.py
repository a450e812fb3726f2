"""A span as plain data, before any library of telemetry is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]


@dataclass(frozen=True)
class Span:
    """Something that took time. `path` is unlike any other span's; times are seconds since 1970.

    `calls_out` marks a request to another system. `error` is one word for how it failed.
    """

    path: str
    parent: str | None
    name: str
    start: float
    end: float
    attributes: Attributes = field(default_factory=dict)
    calls_out: bool = False
    error: str = ""

    def child(
        self,
        key: str,
        name: str,
        start: float,
        end: float,
        attributes: Attributes,
        *,
        calls_out: bool = False,
        error: str = "",
    ) -> Span:
        """A span inside this one. `key` tells it from its siblings."""
        path = f"{self.path}/{key}"
        return Span(path, self.path, name, start, end, attributes, calls_out, error)
