"""People's comments beside the events that they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from mosaic.app.comments import Comment
from mosaic.app.views.story import Entry, Words


def commented(entry: Entry, comments: Mapping[str, Sequence[Comment]]) -> Entry:
    """The entry, and its turns, each with what people said of it."""
    if not comments:
        return entry
    said = [_words(comment) for comment in comments.get(entry.id, ())]
    turns = [commented(turn, comments) for turn in entry.turns]
    return entry.model_copy(update={"parts": [*said, *entry.parts], "turns": turns})


def _words(comment: Comment) -> Words:
    when = datetime.fromtimestamp(comment.at).astimezone().isoformat(sep=" ", timespec="minutes")
    return Words(by=comment.by, label=f"{comment.by} commented, {when}", text=comment.text)
