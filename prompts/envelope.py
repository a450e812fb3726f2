"""An envelope for text that somebody else wrote: a model reads it as data, and the text cannot close it.

The delimiter is random per call and checked against the text; inside stands one JSON string with brackets, controls and
bidirectional marks escaped, so neither a tag nor a line of the text survives as such.
"""

from __future__ import annotations

import json
import secrets

END = "…"


def delimiter(text: str = "") -> str:
    """A fresh random delimiter that does not occur in the text."""
    while True:
        mark = secrets.token_hex(8)
        if mark not in text:
            return mark


def capped(text: str, limit: int) -> str:
    """At most `limit` characters of the text, an ellipsis where it was longer; what is no UTF-8 is replaced."""
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - len(END)] + END


def wrap(text: str, mark: str, source: str = "text") -> str:
    """The text in an envelope. `source` says where it comes from and is ours, never the text's. ValueError where the
    text holds the mark: draw another."""
    if mark in text:
        raise ValueError("the delimiter occurs in the text; draw another")
    return f'<data-{mark} source="{source}">\n{_escaped(text)}\n</data-{mark}>'


def unwrap(envelope: str, mark: str) -> str:
    """The text that was wrapped. ValueError where this is no envelope of that mark."""
    lines = envelope.split("\n")
    if (
        len(lines) != 3
        or not lines[0].startswith(f"<data-{mark} ")
        or lines[2] != f"</data-{mark}>"
    ):
        raise ValueError("no envelope of this delimiter")
    return str(json.loads(lines[1]))


def _escaped(text: str) -> str:
    """A JSON string in which only plain printable characters stand for themselves."""
    return '"' + "".join(_character(c) for c in text) + '"'


def _character(c: str) -> str:
    if c.isprintable() and c not in '<>"\\':
        return c
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
