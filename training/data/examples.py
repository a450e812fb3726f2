"""Pool rows out of files: every field checked, every fault with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, canonical_json
from mosaic.core.types.data import Example
from training.data.faults import Faults
from training.data.importers.chats import check_numbers
from training.data.importers.containers import read_file
from training.data.importers.fields import Unusable
from training.data.importers.json_rows import decoded_line, has_lines, lines_of
from training.data.importers.reading import BadRow, Row, Unread
from training.data.importers.streams import bare_suffix
from training.data.learnable import LATE_SYSTEM, learnable_part, why_nothing
from training.models.chat_template import LEARN, Chat, Message

COLUMNS = (".parquet", ".arrow")
JSON = (".jsonl", ".ndjson", ".json")

PlacedRow = tuple[str, Row | BadRow | bytes]
"""`file:line`, and the row there as plain data, or why it is none, or a line of JSON not read yet."""
PlacedExample = tuple[str, Example]


def read_rows(path: Path) -> Iterator[PlacedRow]:
    """(file:line, row as plain data, or why it is none) of a file of pool rows.

    Lines of JSON come as they are: decoding them is a part of the work on a row, which other
    processes do. Raises UsageError for a file that cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give JSONL or Parquet files of pool rows")
    if bare_suffix(path) in JSON and has_lines(path):
        yield from lines_of(path)
        return
    columns = path.suffix in COLUMNS
    for where, row in read_file(path):
        if isinstance(row, Unread):
            raise UsageError(f"{where}: {row.what}; give files of pool rows")
        if columns and not isinstance(row, BadRow):
            row = _without_nulls(row)
        yield where, row


def _without_nulls(row: Row) -> Row:
    """A row without the nulls that Parquet puts where a row lacks what another row has."""
    messages = row.get("messages")
    if isinstance(messages, list) and any(LEARN in m for m in messages if isinstance(m, dict)):
        row["messages"] = [_without_null_mark(message) for message in messages]
    attributes = row.get("attributes")
    if isinstance(attributes, dict):
        row["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return {k: v for k, v in row.items() if v is not None}


def _without_null_mark(message: object) -> object:
    if isinstance(message, dict) and message.get(LEARN, False) is None:
        return {name: value for name, value in message.items() if name != LEARN}
    return message


def parse(
    path: Path,
    seen: dict[str, str],
    faults: Faults,
    defaults: Mapping[str, object] | None = None,
) -> Iterator[PlacedExample]:
    """(file:line, example) of each row of a file that can be trained on, every field checked.

    `seen` maps the ids so far to where they were read; `defaults` are fields that a row may lack.
    The others are added to `faults`, which the caller refuses when all are read.
    """
    for where, row in read_rows(path):
        example = checked(where, row, faults, defaults)
        if example is None:
            continue
        if example.id in seen:
            faults.add(used_twice(where, example.id, seen[example.id]))
            continue
        seen[example.id] = where
        yield where, example


def used_twice(where: str, identifier: str, first: str) -> str:
    """What is said of an id that stands at two places."""
    return f"{where}: the id {identifier!r} was used at {first} already; ids are unique in a pool"


def checked(
    where: str,
    row: Row | BadRow | bytes,
    faults: Faults,
    defaults: Mapping[str, object] | None = None,
) -> Example | None:
    """A row as an example that can be trained on; None, and a fault added, if it cannot be."""
    if isinstance(row, bytes):
        row = decoded_line(row)
    if isinstance(row, BadRow):
        faults.add(f"{where}: {row.reason}")
        return None
    try:
        example = _example(where, {**defaults, **row} if defaults else row)
        _check_learnable(where, example)
    except UsageError as error:
        faults.add(str(error))
        return None
    return example


def _example(where: str, row: Row) -> Example:
    """A row as an example whose texts, numbers and names can be stored."""
    try:
        example = Example.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(row)"
        shown = f" (value: {str(first.get('input'))[:60]!r})"
        if first["type"] == "missing":
            shown = ""
        raise UsageError(f"{where}: {field}: {first['msg']}{shown}") from None
    try:
        for message in example.messages:
            message.content.encode()
        canonical_json(example.attributes).encode()
        check_numbers(example.attributes)
    except Unusable as error:
        raise UsageError(f"{where}: {error}") from None
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise UsageError(
            f"{where}: half of a character (a lone surrogate, {broken!a}) in a text"
        ) from None
    for field, name in (("dataset", example.dataset), ("bucket", example.bucket)):
        if not LABEL.fullmatch(name):
            raise UsageError(f"{where}: {field}: {name[:60]!r} cannot be a name: {NAMES}")
    return example


def _check_learnable(where: str, example: Example) -> None:
    """Raise UsageError unless a turn is learnt, no answer is empty, and system comes first."""
    for number, message in enumerate(example.messages):
        if message.role == "system" and number:
            raise UsageError(f"{where}: {LATE_SYSTEM}")
        if not message.learn and message.role != "assistant":
            raise UsageError(
                f"{where}: messages.{number}.learn: only turns of the assistant are learnt, this "
                f"is the {message.role}'s"
            )
        if message.role != "assistant" and "learn" in message.model_fields_set:
            raise UsageError(
                f"{where}: messages.{number}.learn: a turn of the {message.role} is marked to be "
                "learnt, but only the assistant's are"
            )
        if message.role == "assistant" and not message.content.strip():
            raise UsageError(
                f"{where}: messages.{number}.content: empty, so there is nothing to learn from"
            )
    last = example.messages[-1]
    if last.role == "assistant" and last.learn:
        return
    chat = plain(example)
    if not learnable_part(chat):
        raise UsageError(f"{where}: {why_nothing(chat)}")


def plain(example: Example) -> Chat:
    """The chat of an example, as the template sees it."""
    chat: Chat = []
    for message in example.messages:
        turn: Message = {"role": message.role, "content": message.content}
        if not message.learn:
            turn["learn"] = False
        chat.append(turn)
    return chat
