"""What a model put round the JSON that it was asked for, taken off where only one reading is left.

Each layer is taken off once: a leading block of thoughts, a trailing control token, one code fence
or one pair of tags round the whole, and JSON that is written as a text inside of JSON. What is
still not strict JSON is not guessed at: the model is told.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, JsonValue

from eval.chat.strict_json import NotStrict, strict_json, validate_strict
from mosaic.core.types.base import JsonObject

FENCE = "```"
THOUGHTS = ("think", "thinking", "thought", "reasoning", "reason", "scratchpad")
OPENED = re.compile(rf"\A\s*[<\[]({'|'.join(THOUGHTS)})[>\]]", re.IGNORECASE)
CLOSED = re.compile(rf"[<\[]/({'|'.join(THOUGHTS)})[>\]]", re.IGNORECASE)
# `<|im_end|>`, `</s>`, `[/INST]`: what ends a turn in somebody's template.
CONTROL = r"(?:<[|｜][^<>|｜]{1,40}[|｜]>|<(?:end_of_turn|eos|eot|pad)>|</s>|\[/?[A-Z_]{2,20}\])"
TRAILING = re.compile(rf"(?:\s*{CONTROL})+\s*\Z")
# Where the answer begins in a reply of which the server left every channel in.
FINAL = re.compile(r"<\|channel\|>final[^<]{0,80}<\|message\|>")
TAGGED = re.compile(r"\A<([A-Za-z_][\w-]{0,30})>(.*)</\1>\Z", re.DOTALL)
STRAY_TAG = re.compile(r"\s*</[A-Za-z_][\w-]{0,30}>\Z")

Model = TypeVar("Model", bound=BaseModel)


class Thoughts(NamedTuple):
    """What a model thought, and what it said after that."""

    thought: str
    said: str


def without_thoughts(text: str) -> Thoughts:
    """A text without the block of thoughts that it begins with.

    The block's opening tag may be missing: some templates write it into the prompt. Then there must
    be exactly one closing tag.

    >>> without_thoughts('<think>is it?</think> {"x": 1}')
    Thoughts(thought='is it?', said='{"x": 1}')
    >>> without_thoughts('is it?</think>yes').said
    'yes'
    """
    finals = list(FINAL.finditer(text))
    if len(finals) == 1:
        before, after = text[: finals[0].start()], text[finals[0].end() :]
        return Thoughts(before.strip(), after.strip())
    opened = OPENED.match(text)
    ends = list(CLOSED.finditer(text))
    if not ends or (not opened and len(ends) > 1):
        return Thoughts("", text)
    begin = opened.end() if opened else 0
    end = ends[0]
    return Thoughts(text[begin : end.start()].strip(), text[end.end() :].strip())


def json_text(text: str) -> str:
    """The JSON text inside of what a model said, or the text as it is unless it has exactly one reading.

    >>> json_text('```json\\n{"x": 1}\\n```')
    '{"x": 1}'
    >>> json_text('<answer>{"x": 1}</answer><|im_end|>')
    '{"x": 1}'
    >>> json_text('{"x": 1} or {"x": 2}')
    '{"x": 1} or {"x": 2}'
    """
    here = text.strip().lstrip("\ufeff").strip()
    for layer in (_itself, _thought, _control, _fence, _tags, _control, _fence):
        here = layer(here)
        if _is_json(here):
            return _inner_text(here)
    return text


def _itself(text: str) -> str:
    return text


def _thought(text: str) -> str:
    return without_thoughts(text).said


def _control(text: str) -> str:
    return TRAILING.sub("", text)


def _fence(text: str) -> str:
    """The inside of the only code fence."""
    if text.count(FENCE) != 2:
        return text
    _, inside, _ = text.split(FENCE)
    first, newline, rest = inside.partition("\n")
    language = first.strip()
    if newline and not language.startswith(("{", "[", '"')):
        return rest.strip()
    return inside.removeprefix("json").strip()


def _tags(text: str) -> str:
    """The inside of one pair of tags round the whole, or the text before one stray closing tag."""
    tagged = TAGGED.fullmatch(text)
    return tagged[2].strip() if tagged else STRAY_TAG.sub("", text)


def _inner_text(text: str) -> str:
    """An object or a list that is written as one JSON text, and anything else as it is."""
    value = strict_json(text)
    if isinstance(value, str) and _is_json(value) and value.strip()[:1] in ("{", "["):
        return value.strip()
    return text


def _is_json(text: str) -> bool:
    try:
        strict_json(text)
    except NotStrict:
        return False
    return True


# -- JSON written as a text inside of JSON --------------------------------------------------------


def parse_unwrapped(text: str, model: type[Model]) -> Model:
    """A model from JSON text, objects and lists that are written as texts unwrapped by its schema.

    Raises NotStrict if the text is not strict JSON, Invalid if it does not fit the model.
    """
    return validate_strict(unwrapped(strict_json(text), model.model_json_schema()), model)


def unwrapped(value: JsonValue, schema: JsonObject) -> JsonValue:
    """The value with each text read as JSON that stands where the schema wants no text.

    One layer: what is inside of such a text is taken as it is.

    >>> wanted = {"properties": {"a": {"type": "object"}, "b": {"type": "string"}}}
    >>> unwrapped({"a": '{"x": 1}', "b": "[]"}, wanted)
    {'a': {'x': 1}, 'b': '[]'}
    """
    return _unwrapped(value, schema, schema)


def _unwrapped(value: JsonValue, schema: Any, whole: JsonObject) -> JsonValue:
    choices = _choices(schema, whole)
    if isinstance(value, str):
        return _read_text(value, choices)
    if isinstance(value, dict):
        return {name: _member(name, inner, choices, whole) for name, inner in value.items()}
    if isinstance(value, list):
        items = [choice["items"] for choice in choices if "items" in choice]
        if len(items) == 1:
            return [_unwrapped(inner, items[0], whole) for inner in value]
    return value


def _member(name: str, value: JsonValue, choices: list[Any], whole: JsonObject) -> JsonValue:
    """One field of an object."""
    found = []
    for choice in choices:
        if name in choice.get("properties", {}):
            found.append(choice["properties"][name])
        elif isinstance(choice.get("additionalProperties"), dict):
            found.append(choice["additionalProperties"])
    return _unwrapped(value, found[0], whole) if len(found) == 1 else value


def _choices(schema: Any, whole: JsonObject) -> list[Any]:
    """The schemas that a value may fit, references followed."""
    if not isinstance(schema, dict):
        return []
    if "$ref" in schema:
        definitions: Any = whole.get("$defs", {})
        return _choices(definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1]), whole)
    found: list[Any] = []
    for one in [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]:
        found += _choices(one, whole)
    return found or [schema]


def _read_text(text: str, choices: list[Any]) -> JsonValue:
    """The object or list that a text spells, where no text may stand."""
    kinds = {choice.get("type") for choice in choices}
    wanted = {"object": dict, "array": list}
    if not kinds or not kinds <= {*wanted, "null"}:
        return text
    try:
        value: JsonValue = strict_json(json_text(text))
    except NotStrict:
        return text
    allowed = tuple(wanted[kind] for kind in kinds if kind in wanted)
    return value if isinstance(value, allowed) else text
