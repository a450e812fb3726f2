"""What comes back from a chat endpoint, and the gates that a body passes to become a completion."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, JsonValue

from eval.chat.strict_json import NotStrict, strict_json
from mosaic.core.types.base import FrozenModel, JsonObject, canonical_json

MAX_BODY = 2 * 1024 * 1024
MAX_REASONING = 32_000
MAX_TOOL_NAME = 64
# The nesting that a reply may have: more than an answer, since servers wrap it.
MAX_DEPTH = 32
# A shorter key may stand in a text by chance.
SHORTEST_KEY = 8
MAX_QUOTE = 300
FENCE = "```"
VERSION = re.compile(r"-v?[0-9][0-9.v-]*")


def holds_key(key: str, texts: Iterable[str]) -> bool:
    """Whether a text, or the JSON value that it spells, holds the key.

    Keys under `SHORTEST_KEY` are not looked for.
    """
    if len(key) < SHORTEST_KEY:
        return False
    escaped = canonical_json(key)[1:-1]
    for text in texts:
        if key in text:
            return True
        with contextlib.suppress(NotStrict):
            if escaped in canonical_json(strict_json(text)):
                return True
    return False


def quoted(text: str, key: str) -> str:
    """What a server said, fit for a message: one short line without control characters.

    Withheld if it holds the key.

    >>> quoted("max_tokens is\\x1b[2J\\nnot supported", "")
    'max_tokens is [2J not supported'
    >>> quoted("bad key sk-secret-1****", "sk-secret-123")
    '(not quoted: it holds the key)'
    """
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    # The beginning of the key is enough: servers mask the rest, and a body that stalls may end
    # within the key.
    beginning = key[:SHORTEST_KEY]
    begins = len(key) >= SHORTEST_KEY and (beginning in text or beginning in line)
    if begins or holds_key(key, [text, line]):
        return "(not quoted: it holds the key)"
    return line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 3] + "..."


class Fault(Exception):
    """One request that failed.

    `kind` names the gate that stopped it. `tokens` is what the server said it cost, None if
    unknown. `said` is the server's own text, not to be shown unchecked. `unpaid` is a provider that
    wants money first.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        tokens: int | None = None,
        said: str = "",
        unpaid: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.tokens = tokens
        self.said = said
        self.unpaid = unpaid

    @property
    def down(self) -> bool:
        """Whether the endpoint did not answer: no connection, no whole reply, or another status than 200."""
        return self.status is not None or self.kind in ("connect", "transport", "timeout")


class Attempt(FrozenModel):
    """One request of a call.

    `tokens` as the server counted them, None if unknown; `charged` is what limits count.
    """

    error: str | None
    seconds: float = Field(ge=0)
    tokens: int | None
    charged: int = Field(ge=0)
    max_tokens: int


def sent(attempts: Sequence[Attempt]) -> int:
    """How many of these attempts reached a server: what limits and the report count as requests."""
    return sum(a.error != "connect" for a in attempts)


class ToolCall(FrozenModel):
    """A tool that the model wants called. `arguments` is the strict JSON text of an object."""

    id: str
    name: str
    arguments: str


class TokenCounts(FrozenModel):
    """Tokens as the server counted them. None means unknown; unknown is never 0."""

    prompt: int | None = None
    completion: int | None = None

    @property
    def total(self) -> int | None:
        if self.prompt is None or self.completion is None:
            return None
        return self.prompt + self.completion


class Completion(FrozenModel):
    """One accepted answer, with the records of every attempt that led to it.

    `reasoning` is what the server separated from the answer as the model's thinking: shown to
    people, never sent back, never parsed.
    """

    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: Literal["stop", "tool_calls"]
    usage: TokenCounts
    attempts: list[Attempt] = []
    model: str

    @property
    def tokens(self) -> int | None:
        return self.usage.total

    @property
    def charged(self) -> int:
        """Tokens that limits count for this call, failed attempts included."""
        return sum(a.charged for a in self.attempts)


def error_of(body: bytes) -> tuple[str, str]:
    """(sentence, code) of an error's body, in the forms of OpenAI, vLLM or a plain page.

    Empty if there is none.

    >>> error_of(b'{"error": {"message": "no credit", "code": "insufficient_quota"}}')
    ('no credit', 'insufficient_quota')
    >>> error_of(b"Bad Gateway")
    ('Bad Gateway', '')
    """
    text = body.decode(errors="replace")
    try:
        value = strict_json(text, max_depth=MAX_DEPTH)
    except NotStrict:
        return text, ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return error if isinstance(error, str) else canonical_json(error), ""
    sentence = error.get("message") or error.get("detail")
    if not isinstance(sentence, str):
        sentence = canonical_json(error) if error else ""
    code = error.get("code") or error.get("type")
    return sentence, code if isinstance(code, str) else ""


def gates(body: bytes, model: str, json_text: bool, tools: bool) -> Completion:
    """Envelope, finish reason and strict parse of one reply's body.

    Raises Fault if one of these gates stops it.

    `json_text` says that the answer must be JSON, `tools` that tools were offered.
    """
    envelope = _envelope(body, model)
    usage = _token_counts(envelope.get("usage"))
    cost = usage.total
    choices = envelope["choices"]
    choice = choices[0] if isinstance(choices, list) else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Fault("envelope", "a choice without a message", tokens=cost)
    reason = choice.get("finish_reason")
    if reason == "length":
        raise Fault("truncated", "the answer was cut off", tokens=cost)
    if reason == "content_filter" or message.get("refusal"):
        raise Fault("refused", "the model or its filter refused", tokens=cost)
    if reason not in ("stop", "tool_calls"):
        raise Fault("envelope", "an unknown finish reason", tokens=cost)
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise Fault("envelope", "content that is not text", tokens=cost)
    text = content or ""
    calls = _tool_calls(message.get("tool_calls"), cost)
    if calls and not tools:
        raise Fault("envelope", "a tool call although no tool was offered", tokens=cost)
    if not calls and not text.strip():
        raise Fault("unparsable", "an empty answer", tokens=cost)
    if json_text and not calls:
        text = _unfenced(text)
        try:
            strict_json(text)
        except NotStrict as error:
            raise Fault("unparsable", str(error), tokens=cost) from None
    # vLLM calls it `reasoning`, other servers `reasoning_content`.
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return Completion(
        text=text,
        reasoning=reasoning[:MAX_REASONING] if isinstance(reasoning, str) else "",
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        usage=usage,
        model=str(envelope["model"]),
    )


def _envelope(body: bytes, model: str) -> JsonObject:
    """The whole reply, with at least one choice and the name of the right model."""
    try:
        value = strict_json(body.decode(), max_bytes=MAX_BODY, max_depth=MAX_DEPTH)
    except UnicodeDecodeError:
        raise Fault("envelope", "a body that is not UTF-8") from None
    except NotStrict as error:
        raise Fault("envelope", f"a body with {error}") from None
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Fault("envelope", "a body without choices")
    cost = _token_counts(value.get("usage")).total
    named = value.get("model")
    if not isinstance(named, str) or not named.strip():
        raise Fault("envelope", "a reply that names no model", tokens=cost)
    if named != model and not _is_dated(named, model):
        raise Fault("other_model", "a reply of another model", tokens=cost, said=named)
    return value


def _is_dated(named: str, model: str) -> bool:
    """Whether a name is the model's with a date or version, as hosted models answer.

    >>> _is_dated("gpt-4o-2026-08-06", "gpt-4o"), _is_dated("gpt-4o-mini", "gpt-4o")
    (True, False)
    """
    return named.startswith(model) and VERSION.fullmatch(named[len(model) :]) is not None


def _tool_calls(value: JsonValue, cost: int | None) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Fault("envelope", "tool calls that are not a list", tokens=cost)
    return [_tool_call(item, number, cost) for number, item in enumerate(value)]


def _tool_call(item: JsonValue, number: int, cost: int | None) -> ToolCall:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict) or not isinstance(name, str):
        raise Fault("envelope", "a tool call without a name", tokens=cost)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise Fault("envelope", "a tool call without arguments", tokens=cost)
    try:
        parsed = strict_json(arguments or "{}")
    except NotStrict as error:
        raise Fault("unparsable", f"arguments of a tool call: {error}", tokens=cost) from None
    if not isinstance(parsed, dict):
        raise Fault("unparsable", "arguments of a tool call that are not an object", tokens=cost)
    identifier = item.get("id")
    return ToolCall(
        id=identifier if isinstance(identifier, str) and identifier else f"call_{number}",
        name=name[:MAX_TOOL_NAME],
        arguments=arguments or "{}",
    )


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


def _unfenced(text: str) -> str:
    """The text without a code fence around all of it, which models without a grammar like to add."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and stripped.endswith(FENCE) and "\n" in stripped:
        return stripped.split("\n", 1)[1][: -len(FENCE)].strip()
    return stripped
