"""What goes to the terminal: results to stdout, messages for the person to stderr."""

from __future__ import annotations

import json
import sys


def safe(text: str) -> str:
    """Text for a terminal: control and bidirectional characters are shown, not obeyed.

    >>> safe("a\\x1b[2J")
    'a\\\\u001b[2J'
    """
    shown = []
    for character in text:
        printable = character.isprintable() or character == " "
        shown.append(character if printable else f"\\u{ord(character):04x}")
    return "".join(shown)


def safe_lines(text: str) -> str:
    """Several lines for a terminal."""
    return "\n".join(map(safe, text.split("\n")))


def say(text: str) -> None:
    """A message for the person, on stderr."""
    print(safe_lines(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result as text, on stdout."""
    print(safe_lines(text), flush=True)


def emit(value: object) -> None:
    """A JSON result on stdout: plain data, as `json_data` of a noun gives it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def number(value: float | None) -> str:
    """A figure in a table: two digits, or a dash if it is not known."""
    return "-" if value is None else f"{value:.2f}"


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
