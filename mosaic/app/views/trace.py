"""The events of a run as `trace --json` prints them, and as they come while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.app.comments import Comment, of_event, read_comments
from mosaic.app.views.report_data import load
from mosaic.app.views.story_text import entry_text, terminal_width
from mosaic.app.views.telling import Teller, check_round, event_of
from mosaic.core.journal import Journal
from mosaic.core.rows import Event
from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.events import EVENT

POLL = 0.5
# Where an event stands: what `trace --json` adds to each record.
PLACE: JsonObject = {
    "seq": {
        "type": "integer",
        "minimum": 1,
        "description": "its number: an address, and the order",
    },
    "round": {"type": "integer", "minimum": 0},
    "trial": {"type": "string", "description": "id of the trial that it belongs to, or empty"},
    "at": {"type": "number", "description": "wall time in seconds since 1970: a label"},
    "comments": {
        "type": "array",
        "description": "what people said of it or of one of its turns, in order",
        "items": {"$ref": "#/$defs/Comment"},
    },
}


def trace_data(folder: Path, number: int | None = None) -> list[JsonObject]:
    """Events of a run or of one round, in order, with what they refer to."""
    journal, state = load(folder)
    try:
        check_round(journal, state, number)
        comments = read_comments(folder)
        return [event_data(event, comments) for event in journal.events(number)]
    finally:
        journal.close()


def one_event(folder: Path, seq: int) -> JsonObject:
    """One event. Raises UsageError if there is none of this number."""
    journal = Journal.open(folder)
    try:
        return event_data(event_of(journal, seq), read_comments(folder))
    finally:
        journal.close()


def event_data(event: Event, comments: Mapping[str, Sequence[Comment]]) -> JsonObject:
    """An event as `trace --json` prints it, with what people said of it."""
    where: JsonObject = {
        "seq": event.seq,
        "round": event.place.round,
        "trial": event.place.trial,
        "at": event.at,
        "comments": [comment.json_data() for comment in of_event(comments, event.seq)],
    }
    return {**event.record.json_data(), **where}


def trace_schema() -> dict[str, Any]:
    """The JSON Schema of `trace --json`: a list of records, each with its place."""
    schema = EVENT.json_schema(mode="serialization", ref_template="#/$defs/{model}")
    definitions = schema.pop("$defs")
    definitions["Comment"] = Comment.model_json_schema(mode="serialization")
    for reference in schema["discriminator"]["mapping"].values():
        record = definitions[reference.removeprefix("#/$defs/")]
        record["properties"] |= PLACE
        record["required"] = [*record.get("required", []), *PLACE, "kind"]
    return {"type": "array", "items": schema, "$defs": definitions}


def follow(
    folder: Path, number: int | None = None, wait: Callable[[float], None] = time.sleep
) -> Iterator[JsonObject]:
    """Events as they are recorded, of all rounds or of one, until the run is audited.

    If it was extended after an audit: until it is audited for good. `text` is the event as the
    terminal tells it.
    """
    last, store = 0, Store(folder)
    while True:
        journal = Journal.open(folder)
        try:
            events = journal.events(after=last)
            teller = Teller(journal, store)
            told = {event.seq: teller.entry(event) for event in events}
        finally:
            journal.close()
        for event in events:
            last = event.seq
            if number is None or event.place.round == number:
                text = entry_text(told[event.seq], terminal_width())
                yield {**event_data(event, read_comments(folder)), "text": text}
        if any(event.kind == "audited" for event in events):
            journal, state = load(folder)
            journal.close()
            if state.audit:
                return
        if not events:
            wait(POLL)
