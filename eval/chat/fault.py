"""One request that failed: at which gate, what it cost, and what the server said about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from pydantic import JsonValue

from eval.chat.strict_json import NotStrict, strict_json
from mosaic.core.types.base import FrozenModel, canonical_json

MAX_BODY = 2 * 1024 * 1024
# The nesting that a reply may have: more than an answer, since servers wrap it.
MAX_DEPTH = 32
# A shorter key may stand in a text by chance.
SHORTEST_KEY = 8
MAX_QUOTE = 300
# What stands in a filed text where the key stood.
THE_KEY = "(the key)"
# How the message of a fault begins if a server is there, and no secure connection comes about.
TLS = "TLS"


class TokenCounts(FrozenModel):
    """Tokens as the server counted them. None means unknown; unknown is never 0."""

    prompt: int | None = None
    completion: int | None = None

    @property
    def total(self) -> int | None:
        if self.prompt is None or self.completion is None:
            return None
        return self.prompt + self.completion


UNKNOWN = TokenCounts()


class Fault(Exception):
    """One request that failed.

    `kind` names the gate that stopped it. `usage` is what the server said it cost. `said` is the
    server's own text, not to be shown unchecked; `param` the request field that it named. `unpaid`
    is a provider that wants money first. `answer` is what the model said, if it said something that
    could not be read: it can be told so.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        usage: TokenCounts = UNKNOWN,
        said: str = "",
        param: str = "",
        unpaid: bool = False,
        answer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.usage = usage
        self.said = said
        self.param = param
        self.unpaid = unpaid
        self.answer = answer

    @property
    def tokens(self) -> int | None:
        """What the server said the request cost, None if unknown."""
        return self.usage.total

    @property
    def unreached(self) -> bool:
        """Whether no server was there to answer."""
        return self.kind == "connect"

    @property
    def down(self) -> bool:
        """Whether no reply came: no connection, no whole reply, or a status without success."""
        return self.status is not None or self.kind in ("connect", "transport", "timeout")


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


def without_key(value: JsonValue, key: str) -> JsonValue:
    """Plain JSON data in which no text holds the key: for what is filed and shown.

    >>> without_key({"role": "user", "content": "use sk-secret-123 now"}, "sk-secret-123")
    {'role': 'user', 'content': 'use (the key) now'}
    """
    if isinstance(value, str):
        if not holds_key(key, [value]):
            return value
        plain = value.replace(key, THE_KEY).replace(canonical_json(key)[1:-1], THE_KEY)
        return "(not kept: it holds the key)" if holds_key(key, [plain]) else plain
    if isinstance(value, list):
        return [without_key(item, key) for item in value]
    if isinstance(value, dict):
        return {str(without_key(name, key)): without_key(item, key) for name, item in value.items()}
    return value


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
