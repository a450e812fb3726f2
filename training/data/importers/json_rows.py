"""Rows out of JSON: lines, one array, objects over several lines, objects that wrap the rows.

`{"data": [...]}` holds rows under a name of the file's own. `{"conversations": [...]}` may be such
a wrapper or a chat: if the list holds turns, it is a chat.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eval.chat.strict_json import strict_decoder
from mosaic.core.errors import UsageError
from training.data.importers.reading import BOM, BadRow, Read, ReadFile, Row, Unread
from training.data.importers.streams import bare_suffix, binary, text_of

BUFFER = 1 << 20
LONGEST = 64 << 20
LARGEST = 1 << 30
# Lines after a broken one that are tried before a text is taken for an object over many lines.
LOOK_AHEAD = 4
SPACES = " \t\r\n" + BOM
# Fields of a turn: a list of these is a chat, not a list of rows.
ROLE_NAMES = {"role", "from", "speaker", "author"}
TRAIN = "train"
WRAPPERS = {
    "data",
    "dataset",
    "instructions",
    "conversations",
    "dialogues",
    "dialogs",
    "chats",
    "rows",
    "records",
    "entries",
    "examples",
    "samples",
    "instances",
    "items",
    "prompts",
    "questions",
    TRAIN,
    "test",
}

# What a sign does to a JSON array, by the state of reading it.
SIGNS: dict[str, dict[str, str]] = {
    "before": {"[": "open"},
    "open": {"]": "ended"},
    "element": {",": "comma", "]": "ended"},
    "comma": {},
    "ended": {},
}


def _plain(value: object) -> Row | BadRow:
    """A decoded value, which must be an object."""
    if isinstance(value, dict):
        return value
    return BadRow(f"a row is an object, this is {type(value).__name__}")


_decoder = strict_decoder(quote=True)


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """(place, line) of each line that is not empty, for who decodes it elsewhere."""
    with binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.startswith(codecs.BOM_UTF8):
                line = line.replace(codecs.BOM_UTF8, b"", 1)
            if line.strip():
                yield f"{path}:{number}", line


def has_lines(path: Path) -> bool:
    """Whether a file of JSON begins with an object on a line of its own, so that `lines_of` reads it."""
    with binary(path) as start:
        first, line, rest = _beginning(start)
    return first == "{" and _stands_alone(line, rest)


def decoded_line(line: bytes) -> Row | BadRow:
    """One line as a row. Joined files have byte order marks in the middle too."""
    try:
        return _plain(_decoder.decode(line.decode("utf-8").lstrip(BOM)))
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")


def read_json(path: Path) -> ReadFile:
    """One array of objects, element by element; lines of objects; or objects over several lines."""
    with binary(path) as start:
        first, line, rest = _beginning(start)
    if first.startswith("["):
        with text_of(path) as stream:
            yield from read_array(stream, str(path))
        return
    if first.startswith("{") and not _stands_alone(line, rest):
        yield from _documents(path)
        return
    if bare_suffix(path) == ".json" and not first.startswith("{"):
        raise UsageError(f"{path}: neither an array of objects nor lines of objects")
    for where, text in lines_of(path):
        yield where, decoded_line(text)


def _beginning(stream: IO[bytes]) -> tuple[str, str, str]:
    """(the first character that is not space, its line, some of what follows)."""
    line = b"\n"
    while line and not line.decode("utf-8", "replace").strip(SPACES):
        line = stream.readline(LONGEST)
    text = line.decode("utf-8", "replace").lstrip(SPACES)
    return text[:1], text, stream.read(BUFFER).decode("utf-8", "replace")


def _stands_alone(line: str, rest: str) -> bool:
    """Whether the first line of a file is an object, and not one that wraps all rows."""
    value = _object_of(line)
    return value is not None and (bool(rest.strip(SPACES)) or wrapped_rows(value) is None)


def _object_of(line: str) -> Row | None:
    try:
        value = _decoder.decode(line.strip(SPACES))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def wrapped_rows(value: Row) -> str | None:
    """The name under which an object holds rows, or None if it is a row itself.

    >>> wrapped_rows({"data": [{"instruction": "a", "output": "b"}]})
    'data'
    >>> wrapped_rows({"conversations": [{"from": "human", "value": "a"}]}) is None
    True
    """
    found = None
    for name, rows in value.items():
        objects = [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
        if any(ROLE_NAMES & set(one) for one in objects):
            return None
        # Of several splits the one to train on, wherever it stands.
        if objects and name in WRAPPERS and (found is None or name == TRAIN):
            found = name
    return found


def _documents(path: Path) -> ReadFile:
    """Objects over any number of lines, or the rows that the one object of a file wraps."""
    with text_of(path) as stream:
        text = stream.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise UsageError(f"{path}: an object of more than 1 GiB; write the rows one a line")
    at, line = 0, 1
    while True:
        start = at
        while at < len(text) and text[at] in SPACES:
            at += 1
        line += text.count("\n", start, at)
        if at == len(text):
            return
        try:
            value, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if _are_lines(text[at:]):
                # One line is broken, and the others are objects: each is told apart.
                yield from _lines_from(path, line)
                return
            yield (
                f"{path}:{line}",
                BadRow(f"not valid JSON, and what follows cannot be read: {error}"),
            )
            return
        wrapper = wrapped_rows(value) if isinstance(value, dict) and start == 0 else None
        if wrapper and not text[end:].strip(SPACES):
            yield from _unwrapped(path, text, value, wrapper)
            return
        yield f"{path}:{line}", _plain(value)
        line += text.count("\n", at, end)
        at = end


def _are_lines(text: str) -> bool:
    """Whether the second line of a text, or one soon after, is an object of its own."""
    return any(_object_of(line) for line in text.split("\n")[1:LOOK_AHEAD])


def _lines_from(path: Path, first: int) -> Read:
    with binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            if number >= first and line.strip().removeprefix(codecs.BOM_UTF8):
                yield f"{path}:{number}", decoded_line(line)


def _unwrapped(path: Path, text: str, value: Row, name: str) -> ReadFile:
    """The rows under a name of an object, each with its line, and the names beside it."""
    for other, beside in value.items():
        if other != name and beside not in (None, "", [], {}):
            many = f" ({len(beside):,} entries)" if isinstance(beside, list) else ""
            yield str(path), Unread(f"the field {other!r} beside {name!r} is not read{many}")
    for found in re.finditer(rf'"{name}"\s*:\s*(?=\[)', text):
        rows, _ = _decoder.raw_decode(text, found.end())
        if rows == value[name]:
            line = 1 + text.count("\n", 0, found.end())
            yield from read_array(io.StringIO(text[found.end() :]), str(path), line, closed=False)
            return


def read_array(stream: IO[str], name: str, line: int = 1, closed: bool = True) -> Read:
    """Elements of the JSON array with which a text begins.

    A broken element is the last: nobody can tell where the next one begins. Nothing may follow the
    array, unless it is not `closed`: then it stands in an object.
    """
    text, at, ended = "", 0, False

    def more() -> None:
        """Read on, at least as much as is left over, and forget what was read."""
        nonlocal text, at, ended
        try:
            chunk = stream.read(max(BUFFER, len(text) - at))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{name}: not UTF-8 after line {line} (byte {error.start} of a block)"
            ) from None
        ended = not chunk
        text, at = text[at:] + chunk, 0

    state = "before"
    while True:
        if state == "ended" and not closed:
            return
        start = at
        while at < len(text) and text[at] in SPACES:
            at += 1
        line += text.count("\n", start, at)
        if at == len(text):
            if not ended:
                more()
                continue
            if state != "ended":
                yield f"{name}:{line}", BadRow("not valid JSON: the array has no end")
            return
        if text[at] in SIGNS[state]:
            state = SIGNS[state][text[at]]
            at += 1
            continue
        if state in ("element", "ended"):
            wanted = "a comma or the array's end" if state == "element" else "nothing more"
            yield (
                f"{name}:{line}",
                BadRow(f"not valid JSON: {wanted} is expected here, not {text[at]!r}"),
            )
            return
        try:
            value, end = _decoder.raw_decode(text, at)
            if end == len(text) and not ended:
                more()
                continue
        except (ValueError, RecursionError) as error:
            if not ended and len(text) - at < LONGEST and not isinstance(error, RecursionError):
                more()
                continue
            yield (
                f"{name}:{line}",
                BadRow(f"not valid JSON, and what follows cannot be read: {error}"),
            )
            return
        yield f"{name}:{line}", _plain(value)
        line += text.count("\n", at, end)
        at, state = end, "element"
