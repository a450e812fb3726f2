"""What goes to the terminal: results to stdout, words for the person to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def safe(text: str) -> str:
    """Text for a terminal: control and bidirectional characters are shown, not obeyed."""
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in text)


def safe_lines(text: str) -> str:
    """Several lines for a terminal."""
    return "\n".join(map(safe, text.split("\n")))


def say(text: str) -> None:
    """Words for the person, on stderr."""
    print(safe_lines(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result in words, on stdout."""
    print(safe_lines(text), flush=True)


def emit(value: Any) -> None:
    """A JSON result on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, every cell whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(safe(title)), title_justify="left")
    for column in header:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(safe(cell)) for cell in row))
    Console().print(drawn)
