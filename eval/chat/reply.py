"""What comes back from a chat endpoint, and the gates that a body passes to become a completion."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field, JsonValue

from eval.chat.fault import MAX_BODY as MAX_BODY
from eval.chat.fault import Fault as Fault
from eval.chat.fault import TokenCounts as TokenCounts
from eval.chat.fault import holds_key as holds_key
from eval.chat.fault import quoted as quoted
from eval.chat.message import Content, called, content_of
from eval.chat.message import ToolCall as ToolCall
from eval.chat.providers import ANY_MODEL
from eval.chat.refusals import error_of as error_of
from eval.chat.refusals import refusal_in
from eval.chat.streams import value_of
from eval.chat.strict_json import NotStrict, strict_json
from eval.chat.unwrap import json_text as unwrapped_json
from eval.chat.unwrap import without_thoughts
from mosaic.core.types.base import FrozenModel, JsonObject, canonical_json

MAX_REASONING = 32_000
VERSION = re.compile(r"-v?[0-9][0-9.v-]*")
# How servers call the ends that are not whole. Every other end is one of a whole reply, if the
# reply can be read.
CUT = (
    "length",
    "max_length",
    "max_tokens",
    "max_new_tokens",
    "max_output_tokens",
    "model_length",
    "token_limit",
    "incomplete",
)
REFUSED = (
    "content_filter",
    "refusal",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
    "sensitive",
)
BROKEN = ("error", "abort", "cancelled", "insufficient_system_resource", "network_error")


class Attempt(FrozenModel):
    """One request of a call.

    `tokens` as the server counted them, None if unknown; `charged` is what limits count. `written`
    are those of `charged` that the model wrote, None in records of earlier releases.
    """

    error: str | None
    seconds: float = Field(ge=0)
    tokens: int | None
    charged: int = Field(ge=0)
    max_tokens: int
    written: int | None = Field(default=None, ge=0)


def sent(attempts: Sequence[Attempt]) -> int:
    """How many of these attempts reached a server: what limits and the report count as requests."""
    return sum(a.error != "connect" for a in attempts)


class Completion(FrozenModel):
    """One accepted answer, with the records of every attempt that led to it.

    `text` is what was read: JSON without what stood round it, if JSON was asked for. `reasoning` is
    the model's thinking, set apart by the server or by tags: shown to people, never parsed.
    `message` is the message as it goes back into the conversation: as it came, with ids that no
    other call has. `told` are messages that were added within the call: replies that could not be
    read, each with what the model was told about it.
    """

    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: Literal["stop", "tool_calls"]
    usage: TokenCounts
    attempts: list[Attempt] = []
    model: str
    message: JsonObject | None = None
    told: list[JsonObject] = Field(default=[], exclude_if=lambda told: not told)

    @property
    def tokens(self) -> int | None:
        return self.usage.total

    @property
    def charged(self) -> int:
        """Tokens that limits count for this call, failed attempts included."""
        return sum(a.charged for a in self.attempts)


def gates(
    body: bytes,
    model: str,
    json_text: bool,
    tools: bool,
    *,
    offered: Collection[str] = (),
    cap: int | None = None,
    taken: Collection[str] = (),
) -> Completion:
    """Envelope, finish reason and strict parse of one reply's body.

    Raises Fault if one of these gates stops it.

    `json_text` says that the answer must be JSON, `tools` that tools were offered, `offered` by
    which names. `cap` is the greatest number of tokens that was asked for. `taken` are the ids of
    earlier tool calls of the conversation.
    """
    envelope = _envelope(body, model)
    usage = _token_counts(envelope.get("usage"))
    choices = envelope["choices"]
    choice = choices[0] if isinstance(choices, list) else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Fault("envelope", "a choice without a message", usage=usage, said=_told(choice))
    content = content_of(message, usage)
    _check_end(choice, content, usage)
    at_cap = cap is not None and usage.completion is not None and usage.completion >= cap
    # A server that holds to the cap says so exactly; beyond it, the cap did not cut anything.
    if at_cap and usage.completion == cap:
        raise Fault("truncated", "the answer was cut off at its cap", usage=usage)
    try:
        return _read(message, content, envelope, usage, json_text, tools, offered, taken)
    except Fault as fault:
        if at_cap and fault.kind == "unparsable":
            raise Fault("truncated", "the answer was cut off at its cap", usage=usage) from None
        raise


def _check_end(choice: JsonObject, content: Content, usage: TokenCounts) -> None:
    """Raise Fault for a reply that the server itself does not call whole."""
    refusal, error = content.refusal, choice.get("error")
    reason = choice.get("finish_reason")
    word = reason.lower().replace("-", "_") if isinstance(reason, str) else ""
    if word in CUT:
        raise Fault("truncated", "the answer was cut off", usage=usage)
    if word in REFUSED or refusal:
        what = "the model or its filter refused"
        raise Fault("refused", what, usage=usage, said=refusal or word)
    if word in BROKEN or (error and not content.text):
        said = refusal_in(error).sentence if error else word
        raise Fault("envelope", "a reply that the server broke off", usage=usage, said=said)


def _read(
    message: JsonObject,
    content: Content,
    envelope: JsonObject,
    usage: TokenCounts,
    wants_json: bool,
    tools: bool,
    offered: Collection[str],
    taken: Collection[str],
) -> Completion:
    """The completion of a whole message."""
    found = called(message, offered, taken, usage)
    calls = found.calls
    if calls and not tools:
        what = "a tool call although no tool was offered"
        raise Fault("unparsable", what, usage=usage, answer=calls[0].name)
    text, thoughts = content.text, content.thoughts
    if not calls and not text.strip() and wants_json and _is_json(thoughts):
        text, thoughts = thoughts, ""  # a parser for thoughts that took the answer for one
    if not calls and not text.strip():
        raise Fault("unparsable", "an empty answer", usage=usage, answer="")
    if not calls:
        block = without_thoughts(text)
        if block.thought:
            thoughts = thoughts or block.thought
    if wants_json and not calls:
        text = unwrapped_json(text)
        try:
            strict_json(text)
        except NotStrict as error:
            raise Fault("unparsable", str(error), usage=usage, answer=content.text) from None
    return Completion(
        text=text,
        reasoning=thoughts[:MAX_REASONING],
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        usage=usage,
        model=str(envelope.get("model") or ""),
        message=found.message,
    )


def _is_json(text: str) -> bool:
    try:
        return isinstance(strict_json(text), dict)
    except NotStrict:
        return False


def _envelope(body: bytes, model: str) -> JsonObject:
    """The whole reply, with at least one choice and the name of the right model.

    `model` is the name that replies carry; `*` takes any, or none.
    """
    value = value_of(body)
    choices = value.get("choices") if isinstance(value, dict) else None
    whole = isinstance(choices, list) and choices and not _fields(value).get("error")
    if not isinstance(value, dict) or not whole:
        raise _instead_of_choices(value)
    usage = _token_counts(value.get("usage"))
    named = value.get("model")
    if model == ANY_MODEL:
        return value
    if not isinstance(named, str) or not named.strip():
        raise Fault("envelope", "a reply that names no model", usage=usage, said=NAMES_NONE)
    named = named.removeprefix("models/")
    if named != model.removeprefix("models/") and not _is_dated(named, model):
        raise Fault("other_model", "a reply of another model", usage=usage, said=named)
    return value


NAMES_NONE = "set chat.reply_model: '*' if that is how this server replies"


def _instead_of_choices(value: JsonValue) -> Fault:
    """What a body without choices is: an error that came with the status of a success."""
    refusal = refusal_in(value)
    usage = _token_counts(value.get("usage")) if isinstance(value, dict) else TokenCounts()
    said = refusal.sentence
    if refusal.code and refusal.code.lower() not in said.lower():
        said = f"{said} ({refusal.code})"
    is_error = isinstance(value, dict) and bool(
        value.get("error") or value.get("errors") or value.get("object") == "error"
    )
    status = refusal.status if is_error or "choices" not in _fields(value) else None
    what = "an error in place of an answer" if is_error else "a body without choices"
    return Fault(
        f"http_{status}" if status else "error" if is_error else "envelope",
        f"HTTP 200 with {what}",
        status=status,
        usage=usage,
        said=said,
        param=refusal.param,
        unpaid=refusal.unpaid(status, None),
    )


def _fields(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _told(value: JsonValue) -> str:
    return canonical_json(value)[:600]


def _is_dated(named: str, model: str) -> bool:
    """Whether a name is the model's with a date or version, as hosted models answer.

    >>> _is_dated("gpt-4o-2026-08-06", "gpt-4o"), _is_dated("gpt-4o-mini", "gpt-4o")
    (True, False)
    """
    return named.startswith(model) and VERSION.fullmatch(named[len(model) :]) is not None


def _token_counts(value: JsonValue) -> TokenCounts:
    """The server's counts, as far as they are sensible."""
    counts = value if isinstance(value, dict) else {}
    return TokenCounts(
        prompt=_count(counts.get("prompt_tokens")),
        completion=_count(counts.get("completion_tokens")),
    )


def _count(number: JsonValue) -> int | None:
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if 0 <= number < 2**31 else None
