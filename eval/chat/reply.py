"""What came back from a chat endpoint: the nouns of a completion, and the gates a body passes to become one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from eval.chat.strict_json import NotStrict, strict_json
from mosaic.core.types.base import FrozenModel, canonical_json

MAX_BODY = 2 * 1024 * 1024
MAX_REASONING = 32_000
SHORTEST_KEY = 8
MAX_SAID = 300
FENCE = "```"
VERSION = re.compile(r"-v?[0-9][0-9.v-]*")


def holds_key(key: str, texts: Iterable[str]) -> bool:
    """Whether a text, or the JSON that it is, holds the key. One shorter than SHORTEST_KEY may stand there by chance."""
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
    """What a server said, for a message: one line, capped, nothing that a terminal obeys; withheld with the key in it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    # Its beginning is enough: servers mask the rest, and a body that stalls may end within the key.
    begins = len(key) >= SHORTEST_KEY and any(key[:SHORTEST_KEY] in said for said in (text, line))
    if begins or holds_key(key, [text, line]):
        return "(not quoted: it holds the key)"
    return line if len(line) <= MAX_SAID else line[: MAX_SAID - 3] + "..."


class Fault(Exception):
    """One attempt that failed. `kind` is its gate's word; `tokens` is what the server said it cost, None for unknown.
    `said` is the server's own text, not to be shown unchecked; `unpaid` is a provider that wants money first."""

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
        """Whether the endpoint did not answer: no connection, no whole reply, no time, or a status other than 200."""
        return self.status is not None or self.kind in ("connect", "transport", "timeout")


class Attempt(FrozenModel):
    """One request of a call. `tokens` as the server counted them, None for unknown; `charged` is what limits count."""

    error: str | None
    seconds: float = Field(ge=0)
    tokens: int | None
    charged: int = Field(ge=0)
    max_tokens: int


def sent(attempts: Sequence[Attempt]) -> int:
    """How many of these attempts reached a server: what limits and report count as requests."""
    return sum(a.error != "connect" for a in attempts)


class ToolCall(FrozenModel):
    """A tool that the model wants called. `arguments` is strict JSON text of an object."""

    id: str
    name: str
    arguments: str


class Usage(FrozenModel):
    """Tokens as the server counted them; None for unknown, never 0 for unknown."""

    prompt: int | None = None
    completion: int | None = None


class Completion(FrozenModel):
    """One accepted answer, with the records of every attempt that led to it. `reasoning` is what the server parsed out
    of the model's answer as its thinking: shown to people, never sent back, never parsed."""

    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: Literal["stop", "tool_calls"]
    usage: Usage
    attempts: list[Attempt] = []
    model: str

    @property
    def tokens(self) -> int | None:
        return _total(self.usage)

    @property
    def charged(self) -> int:
        """Tokens that limits count for this call, failed attempts included."""
        return sum(a.charged for a in self.attempts)


def error_of(body: bytes) -> tuple[str, str]:
    """(sentence, code) of an error's body, as OpenAI, vLLM or a plain page put it; empty where there is none."""
    text = body.decode(errors="replace")
    try:
        value = strict_json(text, max_depth=32)
    except NotStrict:
        return text, ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return error if isinstance(error, str) else canonical_json(error), ""
    sentence, code = (
        error.get("message") or error.get("detail"),
        error.get("code") or error.get("type"),
    )
    return (
        sentence if isinstance(sentence, str) else canonical_json(error) if error else "",
        code if isinstance(code, str) else "",
    )


def gates(body: bytes, model: str, json_text: bool, tools: bool) -> Completion:
    """Envelope, finish reason and strict parse of one reply's body. Fault where one of them stops it."""
    envelope = _envelope(body, model)
    usage = _usage(envelope.get("usage"))
    spent = _total(usage)
    choice = envelope["choices"][0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Fault("envelope", "a choice without a message", tokens=spent)
    reason = choice.get("finish_reason")
    if reason == "length":
        raise Fault("truncated", "the answer was cut off", tokens=spent)
    if reason == "content_filter" or message.get("refusal"):
        raise Fault("refused", "the model or its filter refused", tokens=spent)
    if reason not in ("stop", "tool_calls"):
        raise Fault("envelope", "an unknown finish reason", tokens=spent)
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise Fault("envelope", "content that is no text", tokens=spent)
    calls = _tool_calls(message.get("tool_calls"), spent)
    if calls and not tools:
        raise Fault("envelope", "a tool call where no tool was offered", tokens=spent)
    if not calls and not (text or "").strip():
        raise Fault("unparsable", "an empty answer", tokens=spent)
    text = text or ""
    if json_text and not calls:
        text = _unfenced(text)
        try:
            strict_json(text)
        except NotStrict as error:
            raise Fault("unparsable", str(error), tokens=spent) from None
    # vLLM calls it `reasoning`, other servers `reasoning_content`.
    thought = message.get("reasoning") or message.get("reasoning_content")
    return Completion(
        text=text,
        reasoning=thought[:MAX_REASONING] if isinstance(thought, str) else "",
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        usage=usage,
        model=envelope["model"],
    )


def _envelope(body: bytes, model: str) -> dict[str, Any]:
    try:
        value = strict_json(body.decode(), max_bytes=MAX_BODY, max_depth=32)
    except UnicodeDecodeError:
        raise Fault("envelope", "a body that is no UTF-8") from None
    except NotStrict as error:
        raise Fault("envelope", f"a body with {error}") from None
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("choices"), list)
        or not value["choices"]
    ):
        raise Fault("envelope", "a body without choices")
    named = value.get("model")
    spent = _total(_usage(value.get("usage")))
    if not isinstance(named, str) or not named.strip():
        raise Fault("envelope", "a reply that names no model", tokens=spent)
    if named != model and not _dated(named, model):
        raise Fault("other_model", "a reply of another model", tokens=spent, said=named)
    return value


def _dated(named: str, model: str) -> bool:
    """Hosted models answer under a dated name: `name-2026-01-01` or `name-v1.2` is `name`; `name-mini` is another."""
    return named.startswith(model) and VERSION.fullmatch(named[len(model) :]) is not None


def _tool_calls(value: Any, spent: int | None) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Fault("envelope", "tool calls that are no list", tokens=spent)
    calls = []
    for number, item in enumerate(value):
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Fault("envelope", "a tool call without a name", tokens=spent)
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            raise Fault("envelope", "a tool call without arguments", tokens=spent)
        try:
            parsed = strict_json(arguments or "{}")
        except NotStrict as error:
            raise Fault("unparsable", f"arguments of a tool call: {error}", tokens=spent) from None
        if not isinstance(parsed, dict):
            raise Fault("unparsable", "arguments of a tool call that are no object", tokens=spent)
        name = item.get("id")
        calls.append(
            ToolCall(
                id=name if isinstance(name, str) and name else f"call_{number}",
                name=function["name"][:64],
                arguments=arguments or "{}",
            )
        )
    return calls


def _usage(value: Any) -> Usage:
    """Counts where the server gives sensible ones."""

    def count(key: str) -> int | None:
        number = value.get(key) if isinstance(value, dict) else None
        return (
            number
            if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31
            else None
        )

    return Usage(prompt=count("prompt_tokens"), completion=count("completion_tokens"))


def _total(usage: Usage) -> int | None:
    if usage.prompt is None or usage.completion is None:
        return None
    return usage.prompt + usage.completion


def _unfenced(text: str) -> str:
    """The inside of one code fence around the whole text, which models without a grammar like to add."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and stripped.endswith(FENCE) and "\n" in stripped:
        return stripped.split("\n", 1)[1][: -len(FENCE)].strip()
    return stripped
