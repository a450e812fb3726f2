"""What goes to the terminal: results to stdout, words for the person to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """A JSON result on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, every cell whole."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for column in header:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)
