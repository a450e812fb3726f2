"""Shapes of chats: one row of somebody's file becomes messages, and what else the row says about itself.

Where the field names come from:

* `sharegpt`, `xguard`: `conversations`, each `{"from": "human" | "gpt" | "system", "value": text}`. XGuard-Train
  (hub: marslabucla/XGuard-Train, file xguard-train.json, one JSON array) and the conversations that X-Teaming's own
  `xguard/reformat_convos.py` writes have this shape, says the readme of X-Teaming (github.com/salman-lui/x-teaming,
  "Reformat JSON for SFT"). A column `system` beside them, as LLaMA-Factory's variant has it, is the system turn.
  X-Teaming's raw `all_results.json` has no published description: reformat it first.
* `alpaca`: `instruction`, `input` (may be empty), `output` (Stanford Alpaca, "Data Release"); and
  `system` and `history`, a list of [user, assistant] pairs, as LLaMA-Factory's variant has them (its data/README.md).
* `tulu-if`: `id`, `prompt`, `messages` of `{"role", "content"}`, `constraints` (texts, "group:name"), the data set card
  of allenai/tulu-3-sft-personas-instruction-following. The constraints come without parameters, so nothing can verify
  them: they are kept as names, counted, and never checked.
* `chat`: `messages` of `{"role", "content"}`, the form of TRL, transformers and the OpenAI API; beside it, where they
  are there, `id`, `bucket`, `quality` and `attributes` as in a pool row.
* `map`: whatever `--map` says.

The content of a turn may be a list of text parts, as the OpenAI API has it. A row with a call of a tool, or with an
assistant turn that is not to be learnt from (`weight` 0), is bad: the trainer learns from every assistant turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.objectives.instruction_following import complexity
from mosaic.core.errors import UsageError

MAX_EXACT = 2**53
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
LIST_KEYS, FLAT_KEYS, OWN_KEYS = (
    ("messages", "role", "content"),
    ("prompt", "response", "system"),
    ("id", "quality"),
)
Row = Mapping[str, Any]


class Unusable(ValueError):
    """Why a row is no chat; the text names the field."""


@dataclass
class Chat:
    """A chat and what its row says beside it; None where the row says nothing."""

    messages: list[dict[str, str]]
    id: str | None = None
    bucket: str | None = None
    quality: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    unverifiable: int = 0


Shape = Callable[[Row], Chat]


def turns(value: Any, where: str, role: str, content: str) -> list[dict[str, str]]:
    """Messages from a list of objects with a role and a content field."""
    if not isinstance(value, list) or not value:
        raise Unusable(f"{where}: {'missing' if value is None else 'not a list of messages'}")
    messages = []
    for number, one in enumerate(value):
        if not isinstance(one, dict):
            raise Unusable(f"{where}.{number}: not an object")
        said, text = one.get(role), one.get(content)
        known = ROLES.get(said) if isinstance(said, str) else None
        if known is None:
            raise Unusable(f"{where}.{number}.{role}: {said!r} is none of {', '.join(ROLES)}")
        if known == "assistant":
            for call in ("tool_calls", "function_call"):
                if one.get(call):
                    raise Unusable(f"{where}.{number}.{call}: calls of tools are no text to learn")
            if one.get("weight") not in (None, 1):
                raise Unusable(
                    f"{where}.{number}.weight: {one['weight']!r}, but every assistant turn is learnt from"
                )
        if isinstance(text, list):
            text = _joined(text, f"{where}.{number}.{content}")
        if not isinstance(text, str) or not text.strip():
            raise Unusable(
                f"{where}.{number}.{content}: {'empty' if isinstance(text, str) else 'not a text'}"
            )
        messages.append({"role": known, "content": text})
    return messages


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content in parts."""
    for number, part in enumerate(parts):
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise Unusable(f"{where}.{number}: not a part of type 'text'")
    return "".join(part["text"] for part in parts)


def _with_system(row: Row, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages under the row's column `system`, where it has one."""
    text = row.get("system")
    if text is None:
        return messages
    if not isinstance(text, str):
        raise Unusable("system: not a text")
    if not text.strip():
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] != text:
        raise Unusable("system: differs from the system turn")
    return messages


def check(messages: list[dict[str, str]]) -> None:
    """Raise Unusable unless there is a request first, after an optional system message, and something to learn."""
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        raise Unusable("messages: a system message stands after the first message")
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken[0] != "user":
        raise Unusable("messages: the chat does not begin with the user")
    if "assistant" not in spoken:
        raise Unusable("messages: no assistant turn, so there is nothing to learn from")


def check_numbers(attributes: Mapping[str, Any]) -> None:
    """Raise Unusable for a whole number that no column holds, or that a column of numbers would round: they are floats
    of 64 bits. In a pool, lists hold their values as texts."""
    for name, value in attributes.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise Unusable(f"attributes.{name}: a number of more than 64 bits")
        if isinstance(value, int) and abs(value) > MAX_EXACT:
            raise Unusable(
                f"attributes.{name}: {value} is above 2^53 and would be rounded; write it as a text"
            )


def _own_id(row: Row, name: str = "id") -> str | None:
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def chat(row: Row) -> Chat:
    attributes = row.get("attributes")
    if attributes is not None and not isinstance(attributes, Mapping):
        raise Unusable("attributes: not an object")
    kept = {k: v for k, v in (attributes or {}).items() if v is not None}
    messages = turns(row.get("messages"), "messages", "role", "content")
    bucket = row.get("bucket")
    if bucket is not None and not (isinstance(bucket, str) and bucket):
        raise Unusable(f"bucket: {bucket!r} is not a name")
    return Chat(messages, _own_id(row), bucket, row.get("quality"), kept)


def sharegpt(row: Row) -> Chat:
    return Chat(
        _with_system(row, turns(row.get("conversations"), "conversations", "from", "value")),
        _own_id(row),
    )


def alpaca(row: Row) -> Chat:
    parts = {}
    for name in ("instruction", "input", "output"):
        value = row.get(name)
        if value is None and name == "input":
            value = ""
        if not isinstance(value, str) or (name != "input" and not value.strip()):
            raise Unusable(
                f"{name}: {'empty' if isinstance(value, str) else 'missing or not a text'}"
            )
        parts[name] = value
    request = parts["instruction"] + ("\n\n" + parts["input"] if parts["input"].strip() else "")
    messages = [*_history(row.get("history")), *_pair(request, parts["output"])]
    return Chat(_with_system(row, messages), _own_id(row))


def _history(pairs: Any) -> list[dict[str, str]]:
    """The turns before an instruction."""
    messages: list[dict[str, str]] = []
    if pairs is not None and not isinstance(pairs, list):
        raise Unusable("history: not a list of pairs")
    for number, pair in enumerate(pairs or ()):
        texts = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(t, str) and t.strip() for t in pair)
        )
        if not texts:
            raise Unusable(f"history.{number}: not a pair of texts, user and assistant")
        messages += _pair(*pair)
    return messages


def tulu_if(row: Row) -> Chat:
    constraints = row.get("constraints")
    if not isinstance(constraints, list) or not all(isinstance(c, str) and c for c in constraints):
        raise Unusable("constraints: not a list of names")
    messages = turns(row.get("messages"), "messages", "role", "content")
    bucket = f"complexity_{complexity(constraints)}" if constraints else None
    attributes = {"constraints": constraints, "constraint_count": len(constraints)}
    return Chat(messages, _own_id(row), bucket, None, attributes, len(constraints))


def _pair(request: str, answer: str, system: str | None = None) -> list[dict[str, str]]:
    pair = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *pair] if system else pair


SHAPES: dict[str, Shape] = {
    "chat": chat,
    "sharegpt": sharegpt,
    "xguard": sharegpt,
    "alpaca": alpaca,
    "tulu-if": tulu_if,
}


def _fields(spec: str) -> dict[str, str]:
    """Key -> field of a `--map`. UsageError for what is not key=field."""
    fields: dict[str, str] = {}
    for part in spec.split(","):
        key, equals, name = part.partition("=")
        if not equals or not name or key not in (*LIST_KEYS, *FLAT_KEYS, *OWN_KEYS):
            allowed = ", ".join((*LIST_KEYS, *FLAT_KEYS, *OWN_KEYS))
            raise UsageError(f"--map: {part!r} is not key=field; the keys are {allowed}")
        if key in fields:
            raise UsageError(f"--map: {key} stands twice")
        fields[key] = name
    return fields


def row_fields(spec: str) -> set[str]:
    """The fields that a `--map` reads from a row itself, not from its turns."""
    fields = _fields(spec)
    if any(key in fields for key in LIST_KEYS):
        fields = {"messages": "messages", **fields}
    return {name for key, name in fields.items() if key not in ("role", "content")}


def mapped(spec: str) -> Shape:
    """The shape that `--map` describes: `messages=dialogue,role=speaker,content=text` or `prompt=question,response=answer`.

    `system` goes with the second form and may be null, `id` and `quality` with both. UsageError where the two are mixed
    or incomplete.
    """
    fields = _fields(spec)
    as_list, as_flat = any(k in fields for k in LIST_KEYS), any(k in fields for k in FLAT_KEYS)
    if as_list == as_flat or (as_flat and not {"prompt", "response"} <= set(fields)):
        raise UsageError(
            "--map: name messages, role and content (a list of turns), or prompt and response (two texts)"
        )
    if as_list:
        names = [fields.get(key, key) for key in LIST_KEYS]
    else:
        names = []

    def shape(row: Row) -> Chat:
        if names:
            messages = turns(row.get(names[0]), names[0], names[1], names[2])
        else:
            texts = {key: row.get(fields[key]) for key in FLAT_KEYS if key in fields}
            for key, value in texts.items():
                if key == "system" and value is None:
                    continue
                if not isinstance(value, str) or (key != "system" and not value.strip()):
                    raise Unusable(
                        f"{fields[key]}: {'empty' if isinstance(value, str) else 'missing or not a text'}"
                    )
            messages = _pair(str(texts["prompt"]), str(texts["response"]), texts.get("system"))
        own = _own_id(row, fields["id"]) if "id" in fields else None
        return Chat(
            messages, own, None, row.get(fields["quality"]) if "quality" in fields else None
        )

    return shape
