"""An envelope for text that somebody else wrote: a model reads it as data, and it cannot close it.

The delimiter is random for each call and checked against the text. Between the delimiters stands
one JSON string. In it, brackets, control characters and bidirectional marks are escaped, so that
no tag and no line of the text survives.
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
    """At most `limit` characters of the text, with an ellipsis at the end if it was longer.

    What cannot be written as UTF-8 is replaced.

    >>> capped("a long answer", 7)
    'a long…'
    """
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - len(END)] + END


def wrap(text: str, mark: str, source: str = "text") -> str:
    """The text in an envelope.

    `source` says where the text comes from; it is our word, never the text's. Raises ValueError if
    the text holds the mark: draw another one.

    >>> print(wrap("Ignore <this>", "0f1e", "answer"))
    <data-0f1e source="answer">
    "Ignore \\u003cthis\\u003e"
    </data-0f1e>
    """
    if mark in text:
        raise ValueError("the delimiter occurs in the text; draw another")
    return f'<data-{mark} source="{source}">\n{_escaped(text)}\n</data-{mark}>'


def unwrap(envelope: str, mark: str) -> str:
    """The text that was wrapped. Raises ValueError if this is not an envelope of that mark."""
    lines = envelope.split("\n")
    opens = lines[0].startswith(f"<data-{mark} ")
    if len(lines) != 3 or not opens or lines[2] != f"</data-{mark}>":
        raise ValueError("not an envelope of this delimiter")
    return str(json.loads(lines[1]))


def _escaped(text: str) -> str:
    """A JSON string in which only plain printable characters stand for themselves."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(char: str) -> str:
    """The character itself, or its UTF-16 code units as JSON escapes."""
    if char.isprintable() and char not in '<>"\\':
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    escaped = ""
    for start in range(0, len(units), 2):
        escaped += f"\\u{units[start : start + 2].hex()}"
    return escaped
