"""The body of a reply as one JSON value, whether it comes whole or as a stream of events.

Some servers stream although nobody asked, begin with a byte order mark, or send comments to keep
the connection alive. The pieces of a stream are put together as the whole reply would have been.
"""

from __future__ import annotations

import re

from pydantic import JsonValue

from eval.chat.fault import MAX_BODY, MAX_DEPTH, Fault
from eval.chat.strict_json import NotStrict, strict_json
from mosaic.core.types.base import JsonObject

FIELDS = ("data:", "event:", "id:", "retry:", ":")
DONE = "[DONE]"
LINE_END = re.compile(r"\r\n|\r|\n")


def value_of(body: bytes) -> JsonValue:
    """The JSON value of a body. Raises Fault if it is not UTF-8, not strict JSON, or cut."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        said = body.decode(errors="replace")
        raise Fault("body", "a body that is not UTF-8", said=said) from None
    if text.lstrip().startswith(FIELDS):
        return _streamed(text)
    return _json(text)


def _json(text: str) -> JsonValue:
    try:
        value: JsonValue = strict_json(text, max_bytes=MAX_BODY, max_depth=MAX_DEPTH)
    except NotStrict as error:
        raise Fault("body", f"a body with {error}", said=text) from None
    return value


def _streamed(text: str) -> JsonValue:
    """The reply that a stream of events amounts to."""
    events, done = _events(text)
    if not events:
        # Comments that kept the connection alive, and then the reply itself.
        lines = [line for line in _lines(text) if not line.startswith(FIELDS)]
        return _json("\n".join(lines))
    whole: JsonObject = {}
    choice: JsonObject = {"index": 0}
    message: JsonObject = {"role": "assistant", "content": None}
    pieces = 0
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            return {"error": event["error"]}
        for name, value in event.items():
            if name != "choices" and value is not None:
                whole[name] = value
        choices = event.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            continue
        if isinstance(first.get("message"), dict):  # a whole reply in one event
            return {**whole, "choices": choices}
        delta = first.get("delta")
        if isinstance(delta, dict):
            pieces += 1
            _add(message, delta)
        if first.get("finish_reason") is not None:
            choice["finish_reason"] = first["finish_reason"]
    if not pieces:
        return {**whole, "choices": []}
    if "finish_reason" not in choice and not done:
        raise Fault("body", "an event stream that ends before its reply does", said=text)
    _finish_calls(message)
    return {**whole, "choices": [{**choice, "message": message}]}


def _events(text: str) -> tuple[list[JsonValue], bool]:
    """The values of the events in order, and whether the stream says that it is over."""
    events: list[JsonValue] = []
    data: list[str] = []
    done = False
    for line in [*_lines(text), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line.strip() and data:
            joined, data = "\n".join(data), []
            events, done = _with(events, joined, done)
    if data:
        events, done = _with(events, "\n".join(data), done)
    return events, done


def _lines(text: str) -> list[str]:
    """The lines of a stream. Other ends of lines, such as U+2028, may stand within a JSON text."""
    return LINE_END.split(text)


def _with(events: list[JsonValue], text: str, done: bool) -> tuple[list[JsonValue], bool]:
    """The events with what one more text holds: a value, several lines of values, or the end."""
    lines = [text] if not _lines_of_values(text) else text.split("\n")
    for line in lines:
        if line == DONE:
            done = True
        elif line:
            events = [*events, _json(line)]
    return events, done


def _lines_of_values(text: str) -> bool:
    """Whether each line is an event of its own: some servers leave out the empty line between."""
    lines = [line for line in text.split("\n") if line]
    return len(lines) > 1 and all(line == DONE or line[0] == "{" for line in lines)


def _add(message: JsonObject, delta: JsonObject) -> None:
    """Add a piece to the message: texts are joined, lists appended, calls joined by their index."""
    for name, piece in delta.items():
        if name == "tool_calls" and isinstance(piece, list):
            _add_calls(message, piece)
        elif name == "role" or piece is None:
            message.setdefault(name, piece)
        else:
            before = message.get(name)
            if isinstance(before, str) and isinstance(piece, str):
                message[name] = before + piece
            elif isinstance(before, list) and isinstance(piece, list):
                message[name] = [*before, *piece]
            else:
                message[name] = piece


def _add_calls(message: JsonObject, pieces: list[JsonValue]) -> None:
    calls = message.setdefault("tool_calls", [])
    assert isinstance(calls, list)
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        begun = _begun(calls, piece)
        if begun is None:
            calls.append(dict(piece))
            continue
        more = piece.get("function")
        for name, value in piece.items():
            if name != "function" and begun.get(name) is None:
                begun[name] = value
        if not isinstance(more, dict):
            continue
        function = begun.setdefault("function", {})
        if isinstance(function, dict):
            # Some servers say the name anew with each piece.
            same = more.get("name") == function.get("name")
            _add(function, {k: v for k, v in more.items() if not (same and k == "name")})


def _begun(calls: list[JsonValue], piece: JsonObject) -> JsonObject | None:
    """The call that a piece goes on with, None if it begins another.

    Without an index, a piece that names neither a call nor a tool goes on with the last call.
    """
    if "index" in piece:
        found = [c for c in calls if isinstance(c, dict) and c.get("index") == piece["index"]]
        return found[-1] if found else None
    function = piece.get("function")
    named = isinstance(function, dict) and function.get("name")
    last = calls[-1] if calls else None
    return None if piece.get("id") or named or not isinstance(last, dict) else last


def _finish_calls(message: JsonObject) -> None:
    """Take off the numbers that joined the pieces: a whole reply has none."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        for call in calls:
            if isinstance(call, dict):
                call.pop("index", None)
