"""The body of a chat request, as the config says that the server takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from eval.chat.config import ChatConfig
from eval.chat.fault import Fault
from eval.chat.message import standard
from mosaic.core.types.base import JsonObject

# One message of a conversation, a tool definition or a JSON schema, as plain JSON data.
JsonMapping = Mapping[str, object]

MAX_SHOWN = 8000
# What a model is told whose words cannot be read. Part of the conversation of one call only.
UNREADABLE = (
    "Your last reply could not be read: {problem}. Reply once more, with the whole answer and "
    "nothing else: one valid JSON object, or one complete tool call."
)


def request_body(
    config: ChatConfig,
    messages: Sequence[JsonMapping],
    schema: JsonMapping | None,
    tools: Sequence[JsonMapping] | None,
    cap: int,
    number: int,
) -> JsonObject:
    """The body of attempt `number` with a cap of `cap` tokens."""
    returned = [dict(message) for message in messages]
    if config.return_fields == "standard":
        returned = [_standard(message) for message in returned]
    body: dict[str, object] = {"model": config.model, "messages": returned}
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.seed is not None:
        # Another seed for each attempt: the same draw would give the same bad reply.
        body[config.seed_field] = config.seed + number - 1
    if config.max_tokens_field is not None:
        body[config.max_tokens_field] = cap
    if tools:
        body["tools"] = tools
        if config.tool_choice is not None:
            body["tool_choice"] = config.tool_choice
    if schema is not None and config.structured == "json_schema":
        named_schema: dict[str, object] = {"name": "reply", "schema": schema}
        if config.strict is not None:
            named_schema["strict"] = config.strict
        body["response_format"] = {"type": "json_schema", "json_schema": named_schema}
    if schema is not None and config.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return cast(JsonObject, body | config.extra_body)


def _standard(message: dict[str, Any]) -> dict[str, Any]:
    return standard(message) if message.get("role") == "assistant" else message


def told(fault: Fault) -> list[JsonMapping]:
    """The messages that show a model what it said, and what is wrong with it."""
    shown = (fault.answer or "").strip() or "(nothing)"
    return [
        {"role": "assistant", "content": shown[:MAX_SHOWN]},
        {"role": "user", "content": UNREADABLE.format(problem=fault)},
    ]


def names_of(tools: Sequence[JsonMapping] | None) -> list[str]:
    """The names of the tools that a request offers."""
    names = []
    for tool in tools or []:
        function = tool.get("function")
        if isinstance(function, Mapping):
            names.append(str(function["name"]))
    return names
