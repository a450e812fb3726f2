"""What people say about events of a run: a line each in a file beside the journal.

A comment needs no lock and changes nothing: neither planner nor controller reads it. Names are what
people type.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from mosaic.app.decisions import user_name
from mosaic.core.errors import DamageError, UsageError
from mosaic.core.types.base import FrozenModel

FILE = "comments.jsonl"
MAX_TEXT = 8000
MAX_NAME = 60


class Comment(FrozenModel):
    """What somebody said of an event: `12`, or of one turn of it: `12.3`. `at` is wall time."""

    event: str = Field(pattern=r"^[0-9]+(\.[0-9]+)?$")
    by: str
    at: float
    text: str = Field(min_length=1, max_length=MAX_TEXT)


def add_comment(folder: Path, event: str, text: str, by: str = "") -> Comment:
    """Append a comment on an event that there is (the caller has looked).

    Raises UsageError for an empty one, or one that is too long.
    """
    words = text.strip()
    if not words or len(words) > MAX_TEXT:
        raise UsageError(f"a comment has 1 to {MAX_TEXT:,} characters; this one has {len(words):,}")
    name = " ".join(by.split())[:MAX_NAME] or user_name()
    try:
        words.encode()
        name.encode()
    except UnicodeEncodeError:
        raise UsageError("the comment is not valid UTF-8; write it again") from None
    made = Comment(event=event, by=name, at=time.time(), text=words)
    line = json.dumps(made.json_data(), ensure_ascii=False) + "\n"
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())  # one write, so that two people's lines never mix
    finally:
        os.close(descriptor)
    return made


def read_comments(folder: Path) -> dict[str, list[Comment]]:
    """Comments by the event or turn that they are about, in order. Raises DamageError."""
    path = folder / FILE
    if not path.is_file():
        return {}
    found: dict[str, list[Comment]] = {}
    # Not `splitlines`: JSON leaves the line separators of Unicode as people typed them.
    lines = path.read_text(encoding="utf-8").split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            comment = Comment.model_validate_json(line)
        except ValidationError as error:
            raise DamageError(f"{path}:{number}: not a comment: {error}") from None
        found.setdefault(comment.event, []).append(comment)
    return found


def of_event(comments: Mapping[str, Sequence[Comment]], seq: int) -> list[Comment]:
    """Comments on an event and on its turns."""
    found: list[Comment] = []
    for about, each in comments.items():
        if about.partition(".")[0] == str(seq):
            found += each
    return sorted(found, key=lambda comment: comment.at)
