"""Shapes of chats: one row of somebody's file becomes messages, and what else the row says.

Where the field names come from:

* `sharegpt`, `xguard`: `conversations`, each `{"from": "human" | "gpt" | "system", "value": text}`.
  XGuard-Train (hub: marslabucla/XGuard-Train, file xguard-train.json, one JSON array) and the
  conversations that X-Teaming's own `xguard/reformat_convos.py` writes have this shape, says the
  readme of X-Teaming (github.com/salman-lui/x-teaming, "Reformat JSON for SFT"). A column `system`
  beside them, as in LLaMA-Factory's variant, is the system turn. X-Teaming's raw
  `all_results.json` has no published description: reformat it first.
* `alpaca`: `instruction`, `input` (may be empty), `output` (Stanford Alpaca, "Data Release"); and
  `system` and `history`, a list of [user, assistant] pairs, as in LLaMA-Factory's variant (its
  data/README.md).
* `tulu-if`: `id`, `prompt`, `messages` of `{"role", "content"}`, `constraints` (texts,
  "group:name"), says the data set card of allenai/tulu-3-sft-personas-instruction-following. The
  constraints come without parameters, so nothing can verify them: they are kept as names, counted,
  and never checked.
* `chat`: `messages` of `{"role", "content"}`, the form of TRL, transformers and the OpenAI API.
  Beside it a row may have `id`, `bucket`, `quality` and `attributes`, as in a pool.
* `map`: whatever `--map` says.

The content of a turn may be a list of text parts, as in the OpenAI API. A column `system` or
`system_prompt` beside a chat is its system turn. An assistant turn that is marked as not to be
learnt (`train: false`, `weight: 0`, ...) stays in the chat with `learn: false`. What the other
fields of rows and turns mean is in `training.data.importers.fields`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from eval.ifeval import complexity
from mosaic.core.errors import UsageError
from training.data.importers.fields import (
    Unusable,
    check_meaning,
    is_empty,
    is_learnt,
    label_says,
    sorted_fields,
    unread_fields,
)
from training.data.learnable import LATE_SYSTEM
from training.models.chat_template import Chat, Message

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
# The keys of a `--map`: for chats in a list of turns, for chats in two texts, and for both.
LIST_KEYS = ("messages", "role", "content")
FLAT_KEYS = ("prompt", "response", "system")
OWN_KEYS = ("id", "quality")
SYSTEM = ("system", "system_prompt")
KEYS = (*LIST_KEYS, *FLAT_KEYS, *OWN_KEYS)
PART = frozenset(("type", "text"))
Row = Mapping[str, object]


@dataclass
class ImportedChat:
    """A chat and what its row says beside it; None if the row says nothing.

    `unverifiable` counts constraints that nothing can check; `unread` names fields of turns that
    hold something and are not read.
    """

    messages: Chat
    id: str | None = None
    bucket: str | None = None
    quality: object = None
    attributes: dict[str, object] = field(default_factory=dict)
    unverifiable: int = 0
    unread: set[str] = field(default_factory=set)


Shape = Callable[[Row], ImportedChat]


def turns(value: object, where: str, role: str, content: str, unread: set[str]) -> Chat:
    """Messages from a list of objects with a role and a content field.

    Fields of turns that are not read are added to `unread`. Raises Unusable.
    """
    if not isinstance(value, list) or not value:
        raise Unusable(f"{where}: {'missing' if value is None else 'not a list of messages'}")
    messages: Chat = []
    for one in value:
        # Nearly all turns are a role and a text; the others are looked at field by field.
        plain = _plain_turn(one, role, content) if isinstance(one, dict) else None
        if plain is None:
            plain = _turn(one, f"{where}.{len(messages)}", role, content, unread)
        if len(one) > len(plain):
            place = f"{where}.{len(messages)}"
            _beside(one, plain, place, frozenset((role, content)), unread, where)
        messages.append(plain)
    return messages


def _plain_turn(one: Row, role: str, content: str) -> Message | None:
    """A turn of a known role with a text, or None."""
    said, text = one.get(role), one.get(content)
    if isinstance(said, str) and isinstance(text, str) and said in ROLES and text.strip():
        return {"role": ROLES[said], "content": text}
    return None


def _turn(one: object, where: str, role: str, content: str, unread: set[str]) -> Message:
    """One message of a list: its role and its text. Raises Unusable.

    Fields of parts that are not read are added to `unread`.
    """
    if not isinstance(one, dict):
        raise Unusable(f"{where}: not an object")
    said, text = one.get(role), one.get(content)
    known = ROLES.get(said) if isinstance(said, str) else None
    if known is None:
        raise Unusable(f"{where}.{role}: {said!r} is none of {', '.join(ROLES)}")
    if isinstance(text, list):
        text = _joined(text, f"{where}.{content}", unread)
    if not isinstance(text, str):
        _refuse_call(one, where)
        raise Unusable(f"{where}.{content}: not a text")
    if not text.strip():
        _refuse_call(one, where)
        raise Unusable(f"{where}.{content}: empty")
    return {"role": known, "content": text}


def _refuse_call(one: Row, where: str) -> None:
    """Why a turn has no text may stand in another field, such as the call of a tool."""
    check_meaning(one, sorted_fields(tuple(one), frozenset()), f"{where}.")


def _beside(
    one: Row, message: Message, where: str, read: frozenset[str], unread: set[str], column: str
) -> None:
    """Look at the fields of a turn beside role and content; a turn that is off is marked."""
    fields = sorted_fields(tuple(one), read)
    check_meaning(one, fields, f"{where}.")
    learnt = is_learnt(one, fields, f"{where}.")
    if message["role"] != "assistant" and learnt:
        raise Unusable(
            f"{where}.{fields.flags[0]}: a turn of the {message['role']} is marked to be learnt, "
            "but only the assistant's are"
        )
    if message["role"] == "assistant" and learnt is False:
        message["learn"] = False
    for name in fields.labels:
        if message["role"] == "assistant" and label_says(one[name]) is False:
            raise Unusable(
                f"{where}.{name}: {one[name]!r} marks an answer that is not to be learnt; write "
                "`train: false` if it is context for the others"
            )
    for name in [*unread_fields(one, fields), *fields.labels]:
        if not is_empty(one[name]):
            unread.add(f"{column}[].{name}")


def _joined(parts: list[object], where: str, unread: set[str]) -> str:
    """The text of a content in parts; a part has a type and a text.

    Its other fields are refused if they change what is learnt, and else added to `unread`.
    """
    joined = ""
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(part, dict) or not isinstance(text, str):
            raise Unusable(f"{where}.{number}: not a part of type 'text'")
        if len(part) > len(PART):
            _check_part(part, f"{where}.{number}.", unread)
        joined += text
    return joined


def _check_part(part: Row, where: str, unread: set[str]) -> None:
    """Look at the fields of a part beside its type and text."""
    fields = sorted_fields(tuple(part), PART)
    check_meaning(part, fields, where)
    for name in [*fields.flags, *fields.labels]:
        if not is_empty(part[name]):
            raise Unusable(f"{where}{name}: marks a part of a turn; only whole turns can be marked")
    for name in unread_fields(part, fields):
        unread.add(f"content[].{name}")


def some_text(row: Row, name: str) -> str:
    """A field of a row that holds text. Raises Unusable if it is missing, empty or no text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise Unusable(f"{name}: missing or not a text")
    if not value.strip():
        raise Unusable(f"{name}: empty")
    return value


def _with_system(row: Row, messages: Chat) -> Chat:
    """The messages under the system turn of the row's column, if it has one."""
    found = [name for name in SYSTEM if not is_empty(row.get(name))]
    if not found:
        return messages
    text = row[found[0]]
    if not isinstance(text, str):
        raise Unusable(f"{found[0]}: not a text")
    if len(found) > 1 and row[found[1]] != text:
        raise Unusable(f"{found[1]}: differs from {found[0]}")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] != text:
        raise Unusable(f"{found[0]}: differs from the system turn")
    return messages


def check(messages: Chat) -> None:
    """Check that a request comes first, after an optional system message.

    Raises Unusable.
    """
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        raise Unusable(LATE_SYSTEM)
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken[0] != "user":
        raise Unusable("messages: the chat does not begin with the user")


def check_numbers(attributes: Mapping[str, object]) -> None:
    """Check that a pool's columns hold every whole number as it is.

    Columns of numbers are floats of 64 bits; lists hold their values as texts. Raises Unusable for
    a number that does not fit, or that would be rounded.
    """
    for name, value in attributes.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise Unusable(f"attributes.{name}: a number of more than 64 bits")
        if isinstance(value, int) and abs(value) > MAX_EXACT:
            raise Unusable(
                f"attributes.{name}: {value} is above 2^53 and would be rounded; write it as a text"
            )


def _own_id(row: Row, name: str = "id") -> str | None:
    """The id that a row has of its own, as a text."""
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def chat(row: Row) -> ImportedChat:
    """The form of TRL and of the OpenAI API, with a pool row's own fields."""
    attributes = row.get("attributes")
    if attributes is not None and not isinstance(attributes, Mapping):
        raise Unusable("attributes: not an object")
    kept = {k: v for k, v in (attributes or {}).items() if v is not None}
    unread: set[str] = set()
    messages = turns(row.get("messages"), "messages", "role", "content", unread)
    messages = _with_system(row, messages)
    bucket = row.get("bucket")
    if bucket is not None and not (isinstance(bucket, str) and bucket):
        raise Unusable(f"bucket: {bucket!r} is not a name")
    own = _own_id(row)
    return ImportedChat(messages, own, bucket, row.get("quality"), kept, unread=unread)


def sharegpt(row: Row) -> ImportedChat:
    """`conversations` of from and value."""
    unread: set[str] = set()
    messages = turns(row.get("conversations"), "conversations", "from", "value", unread)
    return ImportedChat(_with_system(row, messages), _own_id(row), unread=unread)


def alpaca(row: Row) -> ImportedChat:
    """`instruction`, `input` and `output`, after the turns of `history`."""
    chat = alpaca_request(row)
    chat.messages.append({"role": "assistant", "content": some_text(row, "output")})
    return chat


def alpaca_request(row: Row) -> ImportedChat:
    """What a row of `alpaca` asks."""
    request = some_text(row, "instruction")
    extra = row.get("input")
    if extra is None:
        extra = ""
    if not isinstance(extra, str):
        raise Unusable("input: missing or not a text")
    if extra.strip():
        request += "\n\n" + extra
    messages = _history(row.get("history"))
    messages.append({"role": "user", "content": request})
    return ImportedChat(_with_system(row, messages), _own_id(row))


def _history(pairs: object) -> Chat:
    """The turns before an instruction: a list of [user, assistant] pairs."""
    messages: Chat = []
    if is_empty(pairs):
        return messages
    if not isinstance(pairs, list):
        raise Unusable("history: not a list of pairs")
    for number, pair in enumerate(pairs):
        if not _are_texts(pair) or len(pair) != 2:
            raise Unusable(f"history.{number}: not a pair of texts, user and assistant")
        messages += _pair(pair[0], pair[1])
    return messages


def _are_texts(value: object) -> TypeGuard[list[str]]:
    """Whether a value is a list of texts, none of them blank."""
    return isinstance(value, list) and all(isinstance(t, str) and t.strip() for t in value)


def tulu_if(row: Row) -> ImportedChat:
    """`messages` and the names of `constraints`, from which the bucket follows."""
    constraints = row.get("constraints")
    if not isinstance(constraints, list) or not all(isinstance(c, str) and c for c in constraints):
        raise Unusable("constraints: not a list of names")
    unread: set[str] = set()
    messages = turns(row.get("messages"), "messages", "role", "content", unread)
    messages = _with_system(row, messages)
    bucket = f"complexity_{complexity(constraints)}" if constraints else None
    attributes = {"constraints": constraints, "constraint_count": len(constraints)}
    own = _own_id(row)
    return ImportedChat(messages, own, bucket, None, attributes, len(constraints), unread)


def _pair(request: str, answer: str) -> Chat:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


READ: dict[str, frozenset[str]] = {
    "chat": frozenset(("messages", "id", "bucket", "quality", "attributes", *SYSTEM)),
    "sharegpt": frozenset(("conversations", "id", *SYSTEM)),
    "xguard": frozenset(("conversations", "id", *SYSTEM)),
    "alpaca": frozenset(("instruction", "input", "output", "history", "id", *SYSTEM)),
    "tulu-if": frozenset(("messages", "prompt", "constraints", "id", *SYSTEM)),
}
"""The fields that each shape reads from a row itself."""

SHAPES: dict[str, Shape] = {
    "chat": chat,
    "sharegpt": sharegpt,
    "xguard": sharegpt,
    "alpaca": alpaca,
    "tulu-if": tulu_if,
}


def _fields(spec: str) -> dict[str, str]:
    """Key -> field of a `--map`. Raises UsageError for what is not key=field."""
    fields: dict[str, str] = {}
    for part in spec.split(","):
        key, equals, name = part.partition("=")
        if not equals or not name or key not in KEYS:
            raise UsageError(f"--map: {part!r} is not key=field; the keys are {', '.join(KEYS)}")
        if key in fields:
            raise UsageError(f"--map: {key} occurs twice")
        fields[key] = name
    return fields


def _is_list(fields: Mapping[str, str]) -> bool:
    """Whether a `--map` describes a list of turns."""
    return any(key in fields for key in LIST_KEYS)


def row_fields(spec: str) -> set[str]:
    """The fields that a `--map` reads from a row itself, not from its turns."""
    fields = _fields(spec)
    if _is_list(fields):
        fields = {"messages": "messages", **fields}
    return {name for key, name in fields.items() if key not in ("role", "content")}


def mapped(spec: str, answers: bool = True) -> Shape:
    """The shape that `--map` describes; without `answers`, `prompt=question` is enough.

    Either `messages=dialogue,role=speaker,content=text` or `prompt=question,response=answer`.
    `system` goes with the second form and may be null; `id` and `quality` go with both. Raises
    UsageError if the two are mixed or incomplete.
    """
    fields = _fields(spec)
    as_list, as_flat = _is_list(fields), any(key in fields for key in FLAT_KEYS)
    needed = {"prompt", "response"} if answers else {"prompt"}
    if as_list == as_flat or (as_flat and not needed <= set(fields)):
        raise UsageError(
            "--map: name messages, role and content (a list of turns), or prompt and response "
            "(two texts)"
        )

    def shape(row: Row) -> ImportedChat:
        unread: set[str] = set()
        if as_list:
            name, role, content = (fields.get(key, key) for key in LIST_KEYS)
            messages = turns(row.get(name), name, role, content, unread)
        else:
            messages = _flat(row, fields)
        own = _own_id(row, fields["id"]) if "id" in fields else None
        quality = row.get(fields["quality"]) if "quality" in fields else None
        return ImportedChat(messages, own, None, quality, unread=unread)

    return shape


def _flat(row: Row, fields: Mapping[str, str]) -> Chat:
    """A request and an answer, under a system turn if there is one."""
    messages: Chat = [{"role": "user", "content": some_text(row, fields["prompt"])}]
    if "response" in fields:
        messages.append({"role": "assistant", "content": some_text(row, fields["response"])})
    system = row.get(fields["system"]) if "system" in fields else None
    if system is not None and not isinstance(system, str):
        raise Unusable(f"{fields['system']}: missing or not a text")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return messages
