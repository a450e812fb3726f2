"""The assistant's message: its words, its thoughts and its tool calls, in the forms servers use.

What has one meaning is read: content as a list of parts, arguments as an object or not at all, the
older `function_call`, names with a namespace. The message goes back into the conversation as it
came, with ids that no other call of the conversation has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from eval.chat.fault import Fault, TokenCounts
from eval.chat.strict_json import NotStrict, strict_json
from eval.chat.unwrap import TRAILING, json_text, without_thoughts
from mosaic.core.types.base import FrozenModel, JsonObject, canonical_json

MAX_TOOL_NAME = 64
# What a server may call the model's thinking: in the message, and as the type of a part.
THOUGHTS = ("reasoning", "reasoning_content", "thinking")
THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking", "summary", "reasoning_content")
# What a server, or a model that writes its calls as text, calls the arguments of a tool.
ARGUMENTS = ("arguments", "parameters", "input", "args")
TEXT_PARTS = ("text", "output_text", "input_text")
WORD = re.compile(r"[^A-Za-z0-9_-]+")


class ToolCall(FrozenModel):
    """A tool that the model wants called. `arguments` is the strict JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Content:
    """The words of a message, and what stands among them as thoughts or as a refusal."""

    text: str = ""
    thoughts: str = ""
    refusal: str = ""


def content_of(message: Mapping[str, JsonValue], usage: TokenCounts) -> Content:
    """What a message says. Raises Fault for content that has no one meaning."""
    content = message.get("content")
    if isinstance(content, dict) and not {"type", *THOUGHT_PARTS, *TEXT_PARTS} & {*content}:
        content = canonical_json(content)  # the JSON that was asked for, in place of its text
    parts = [content] if isinstance(content, str | dict) else content
    if parts is None:
        parts = []
    if not isinstance(parts, list):
        raise Fault("envelope", "content that is not text", usage=usage, said=_short(content))
    texts: list[str] = []
    thoughts: list[str] = []
    refusals: list[str] = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in TEXT_PARTS:
            texts.append(_text_of(part))
        elif kind in THOUGHT_PARTS:
            thoughts.append(_text_of(part))
        elif kind == "refusal":
            refusals.append(_text_of(part))
        else:
            what = f"a part of content of the type {str(kind)[:40]!r}"
            raise Fault("envelope", what, usage=usage, said=_short(content))
    for name in THOUGHTS:
        value = message.get(name)
        if isinstance(value, str) and value and value not in thoughts:
            thoughts.append(value)
            break
    refusal = message.get("refusal")
    if refusal:
        refusals.append(refusal if isinstance(refusal, str) else canonical_json(refusal))
    return Content("".join(texts), "\n".join(thoughts), " ".join(refusals))


def _text_of(part: JsonValue) -> str:
    """The text of a part, which may stand in parts of its own."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(_text_of(inner) for inner in part)
    if isinstance(part, dict):
        for name in ("text", *THOUGHT_PARTS, "refusal", "value", "content"):
            if part.get(name):
                return _text_of(part[name])
    return ""


# -- tool calls -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Called:
    """The tool calls of a message, and the message as it goes back into the conversation."""

    calls: list[ToolCall]
    message: JsonObject


def called(
    message: JsonObject, offered: Collection[str], taken: Collection[str], usage: TokenCounts
) -> Called:
    """The tool calls of a message.

    `offered` are the names of the tools, `taken` the ids of earlier calls of the conversation.
    Raises Fault of kind unparsable for a call without a name, and for arguments that are not the
    JSON of an object.
    """
    back: JsonObject = {**message, "role": "assistant"}  # whatever role it came with
    items = message.get("tool_calls")
    legacy = message.get("function_call")
    if not items:
        back.pop("tool_calls", None)
        items = []
    if not items and isinstance(legacy, dict):
        back.pop("function_call")
        items = [{"type": "function", "function": legacy}]
    if isinstance(items, dict):
        items = [items]
    if not items:
        items = written_calls(message.get("content"), offered)
        if items:
            back["content"] = None
    if not isinstance(items, list):
        raise Fault("envelope", "tool calls that are not a list", usage=usage, said=_short(items))
    calls: list[ToolCall] = []
    written: list[JsonValue] = []
    ids = set(taken)
    came = ids_of([{"tool_calls": items}])
    for item in items:
        call = _call(item, offered, ids, came, usage)
        ids.add(call.id)
        calls.append(call)
        written.append(_returned(item, call))
    if calls:
        back["tool_calls"] = written
    return Called(calls, back)


WRITTEN = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
LISTED = re.compile(r"\[TOOL_CALLS\]\s*(\[.*\])", re.DOTALL)
# Llama's token before a call, which is then JSON and nothing else.
BARE = re.compile(r"(?:<\|python_tag\|>\s*)?(\{.*\}|\[.*\])", re.DOTALL)


def written_calls(content: JsonValue, offered: Collection[str]) -> list[JsonValue]:
    """Calls of offered tools that a model wrote as text, since its server has no parser for them.

    Nothing unless the whole text is such calls.

    >>> written_calls('<tool_call>{"name": "look", "arguments": {}}</tool_call>', ["look"])
    [{'type': 'function', 'function': {'name': 'look', 'arguments': {}}}]
    >>> written_calls('I would <tool_call>{"name": "look"}</tool_call>', ["look"])
    []
    """
    if not offered or not isinstance(content, str):
        return []
    text = without_thoughts(content).said.strip()
    listed = LISTED.fullmatch(text) or BARE.fullmatch(TRAILING.sub("", text))
    pieces = WRITTEN.findall(text)
    if not listed and (not pieces or WRITTEN.sub("", text).strip()):
        return []
    calls: list[JsonValue] = []
    try:
        found = strict_json(listed[1]) if listed else [strict_json(piece) for piece in pieces]
    except NotStrict:
        return []
    for function in found if isinstance(found, list) else [found]:
        if not isinstance(function, dict) or function.get("name") not in offered:
            return []
        calls.append({"type": "function", "function": function})
    return calls


def _call(
    item: JsonValue,
    offered: Collection[str],
    ids: set[str],
    came: set[str],
    usage: TokenCounts,
) -> ToolCall:
    """One call. Its id is the one that it came with, unless that is in `ids` already."""
    function: JsonValue = item.get("function", item) if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict) or not isinstance(name, str):
        raise Fault("unparsable", "a tool call without a name", usage=usage, answer=_short(item))
    identifier = item.get("id")
    if not isinstance(identifier, str) or not identifier or identifier in ids:
        identifier = _new_id(ids | came)
    return ToolCall(
        id=identifier,
        name=tool_name(name, offered)[:MAX_TOOL_NAME],
        arguments=_arguments(name, _given_arguments(item, function), usage),
    )


def _given_arguments(item: JsonObject, function: JsonObject) -> JsonValue:
    """What a call passes to its tool, under whichever name; None if it passes nothing."""
    for name in ARGUMENTS:
        for where in (function, item):
            if where.get(name) is not None:
                return where[name]
    return None


def tool_name(name: str, offered: Collection[str]) -> str:
    """The name of an offered tool without what a server puts round it, else the name as it is.

    >>> tool_name("functions.submit_plan:0", ["submit_plan", "check_plan"])
    'submit_plan'
    >>> tool_name("submit_plan or check_plan", ["submit_plan", "check_plan"])
    'submit_plan or check_plan'
    """
    if name in offered:
        return name
    found = {word for word in WORD.split(name) if word in offered}
    return found.pop() if len(found) == 1 else name


def _arguments(name: str, value: JsonValue, usage: TokenCounts) -> str:
    """The JSON text of the arguments; nothing at all is an empty object."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    if isinstance(value, dict):
        return canonical_json(value)
    said = f"{name} {_short(value, 4000)}"
    if not isinstance(value, str):
        what = "arguments of a tool call that are not an object"
        raise Fault("unparsable", what, usage=usage, answer=said)
    text = json_text(value)
    try:
        parsed = strict_json(text)
    except NotStrict as error:
        what = f"arguments of a tool call: {error}"
        raise Fault("unparsable", what, usage=usage, answer=said) from None
    if parsed is None:
        return "{}"
    if not isinstance(parsed, dict):
        what = "arguments of a tool call that are not an object"
        raise Fault("unparsable", what, usage=usage, answer=said)
    return text


def _new_id(taken: Collection[str]) -> str:
    """An id that no other call has: nine letters and digits, which every provider takes."""
    number = len(taken)
    while f"call{number:05d}" in taken:
        number += 1
    return f"call{number:05d}"


def _returned(item: JsonValue, call: ToolCall) -> JsonObject:
    """A call as it came, with its id, its name and arguments that can be read."""
    came: dict[str, Any] = dict(item) if isinstance(item, dict) else {}
    inner = came.get("function")
    function = dict(inner) if isinstance(inner, dict) else {}
    if not isinstance(inner, dict):  # the call itself was the function
        came.pop("name", None)
        came = {name: value for name, value in came.items() if name not in ARGUMENTS}
    function = {name: value for name, value in function.items() if name not in ARGUMENTS}
    function |= {"name": call.name, "arguments": call.arguments}
    return {**came, "id": call.id, "type": "function", "function": function}


def ids_of(messages: Sequence[Mapping[str, object]]) -> set[str]:
    """The ids of all tool calls of a conversation."""
    found = set()
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                found.add(call["id"])
    return found


STANDARD = ("role", "content", "tool_calls")


def standard(message: JsonObject) -> JsonObject:
    """A message with nothing but the fields that every server knows."""
    kept = {name: value for name, value in message.items() if name in STANDARD}
    calls = kept.get("tool_calls")
    if isinstance(calls, list):
        kept["tool_calls"] = [_standard_call(call) for call in calls]
    if not isinstance(kept.get("content"), str):
        kept["content"] = content_of(message, TokenCounts()).text or None
    return kept


def _standard_call(call: JsonValue) -> JsonValue:
    if not isinstance(call, dict):
        return call
    return {name: call[name] for name in ("id", "type", "function") if name in call}


def _short(value: JsonValue, most: int = 600) -> str:
    return canonical_json(value)[:most]
