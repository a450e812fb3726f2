"""One input of the kind that failed somewhere in public, and what is right for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A case of `python -m benchmarks cases`.

    `run` is given an empty folder to work in. It returns None if the product did what is right,
    otherwise what was seen instead.
    """

    number: str
    what: str
    run: Callable[[Path], str | None]
