"""What goes to the terminal: results to stdout, messages for the person to stderr."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys

PIPE_COLUMNS = 10_000
COMMAND = "python -m mosaic"


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
    """A message for the person, on stderr; commands in it can be typed as they stand."""
    print(safe_lines(text.replace(COMMAND, _typed())), file=sys.stderr, flush=True)


def _typed() -> str:
    """How this program is started here: by `python` only if that is the interpreter that runs."""
    found = shutil.which("python")
    if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
        return COMMAND
    path = os.path.relpath(sys.executable)
    if path.startswith(".."):
        path = sys.executable
    return f"{shlex.quote(path)} -m mosaic"


def show(text: str) -> None:
    """A result as text, on stdout."""
    print(safe_lines(text), flush=True)


def emit(value: object) -> None:
    """A JSON result on stdout: plain data, as `json_data` of a noun gives it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def number(value: float | None) -> str:
    """A figure in a table: two digits, or a dash if it is not known."""
    return "-" if value is None else f"{value:.2f}"


def columns() -> int | None:
    """Columns of the terminal that results go to; None in a pipe, where nothing is folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, every cell whole; in a pipe no cell is folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=Text(safe(title)),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in header:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(safe(cell)) for cell in row))
    # Rich takes 80 columns where it finds no terminal.
    Console(width=columns() or PIPE_COLUMNS).print(drawn)
