"""What reading a container yields: rows, rows that cannot be used, and what no row shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class BadRow:
    """Why the row at a place cannot be used."""

    reason: str


@dataclass(frozen=True)
class Unread:
    """Something beside the rows of a file that no row shows."""

    what: str


Row = dict[str, object]
Read = Iterator[tuple[str, Row | BadRow]]
ReadFile = Iterator[tuple[str, Row | BadRow | Unread]]
BOM = "\ufeff"
"""A byte order mark; joined files have them in the middle too."""
