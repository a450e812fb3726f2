"""One call of a chat model over HTTP: bounded attempts, five gates, and one of two failures.

The gates of every reply: transport, envelope, finish reason, strict parse; the fifth, schema and meaning, is the
caller's (`eval.chat.strict_json`). A reply that fails a gate is asked for again, at most `max_attempts` times; every attempt is
recorded and charged. What comes out is a `Completion`, `ChatUnavailable` (the endpoint is down: the run pauses) or
`BadReply` (the endpoint answers, but never with something usable); the last attempt decides which. The key is read from
the environment at the moment of the call and appears in no error, repr or log.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from eval.chat.http import Http
from eval.chat.reply import Attempt as Attempt
from eval.chat.reply import Completion as Completion
from eval.chat.reply import Fault, gates, holds_key, quoted
from eval.chat.reply import ToolCall as ToolCall
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.types.base import FrozenModel, canonical_json

MAX_WAIT = 120.0
FIRST_WAIT, LAST_WAIT = 0.5, 30.0
RAISES = 4
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
HOPELESS = (400, 401, 403, 404, 405, 413, 422)
# A server that turns a request away before the model sees it has spent nothing.
TURNED_AWAY = (401, 402, 403, 404, 429)
REFUSES = "the endpoint refuses the request"


class ChatConfig(FrozenModel):
    """A model behind an OpenAI-compatible chat completions endpoint.

    `api_key_env` names the environment variable that holds the key; a local server needs none. `timeout_seconds` is for
    one attempt. `max_tokens` is the cap of an answer; a truncated answer is asked for again with twice the cap, up to
    four times it. `structured` says whether the server takes a JSON schema.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = Field(default="mosaic", min_length=1)
    api_key_env: str = Field(default="MOSAIC_API_KEY", pattern=VARIABLE)
    max_attempts: int = Field(default=8, ge=1, le=8)
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = 1
    max_tokens: int = Field(default=2048, ge=1)
    structured: Literal["json_schema", "none"] = "json_schema"

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return plain_url(url)


def plain_url(url: str) -> str:
    """The address of an endpoint, unchanged. ValueError for one that cannot be asked, or that could carry a key."""
    # What might be a key is refused before anything that quotes the address.
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "must carry no key or password; put the key in the variable that api_key_env names"
        )
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError("must be an http or https address such as http://127.0.0.1:8000/v1")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(
            "must have a port from 1 to 65535, as in http://127.0.0.1:8000/v1, or none"
        )
    return url


class ChatUnavailable(PausedError):
    """The endpoint does not answer as a chat server. `attempts` are the records of what was asked for in vain."""

    def __init__(self, message: str, attempts: list[Attempt]) -> None:
        super().__init__(message)
        self.attempts = attempts


class BadReply(BoundaryError):
    """No usable reply. `kind` is the last gate's word (refused, truncated, unparsable, envelope, http_400) or the limit
    that ended the call (allowance, deadline). `refusal` says how the endpoint refused the request itself, else empty."""

    def __init__(self, message: str, kind: str, attempts: list[Attempt], refusal: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts
        self.refusal = refusal


class ChatModel:
    """Chat completions of one model. Safe to share between threads. `sleep` and `clock` are seams for tests."""

    def __init__(
        self,
        config: ChatConfig,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._sleep = sleep
        self._clock = clock
        self._http = Http(config.base_url, config.api_key_env)

    def __repr__(self) -> str:
        return f"ChatModel({self.config.model!r})"

    def complete(
        self,
        messages: list[dict[str, Any]],
        *,
        schema: dict[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        allowance: int | None = None,
        most_attempts: int | None = None,
    ) -> Completion:
        """One answer, with text that is strict JSON where `schema` is given and arguments that always are.

        `tools` are OpenAI tool definitions; `max_tokens` overrides the first cap; `deadline` is in seconds for the whole
        call, waits included; `allowance` is the tokens that all attempts together may be charged; `most_attempts` may
        lower the config's `max_attempts`. Raises ChatUnavailable or BadReply after the last attempt, UsageError for no
        messages or a key that cannot be sent.
        """
        if not messages:
            raise UsageError(
                "messages: an empty conversation cannot be completed; give at least one message"
            )
        end = None if deadline is None else self._clock() + deadline
        first = cap = max_tokens or self.config.max_tokens
        prompt_bytes = len(canonical_json([messages, tools or [], schema or {}]).encode())
        attempts: list[Attempt] = []
        most = min(self.config.max_attempts, most_attempts or self.config.max_attempts)
        last: Fault | None = None
        for number in range(1, most + 1):
            left = None if end is None else end - self._clock()
            if left is not None and left <= 0:
                text = f"{deadline:.0f} s are used after {len(attempts)} attempts"
                raise self._out_of("time", "deadline", text, last, attempts)
            reserved = prompt_bytes // 2 + cap
            used = sum(a.charged for a in attempts)
            if allowance is not None and used + reserved > allowance:
                text = (
                    f"an attempt may take {reserved} tokens; of {allowance} allowed are {used} used"
                )
                raise self._out_of("tokens", "allowance", text, last, attempts)
            body = self._body(messages, schema, tools, cap, number)
            started = self._clock()
            try:
                reply = self._http.post(
                    body, min(self.config.timeout_seconds, left or self.config.timeout_seconds)
                )
                completion = gates(reply, self.config.model, schema is not None, tools is not None)
                self._no_key(completion)
            except Fault as fault:
                # Half a token per byte bounds English and numbers from above; nothing was spent where no model was reached.
                unknown = 0 if fault.kind == "connect" or fault.status in TURNED_AWAY else reserved
                attempts.append(
                    Attempt(
                        error=fault.kind,
                        seconds=round(self._clock() - started, 4),
                        tokens=fault.tokens,
                        charged=unknown if fault.tokens is None else fault.tokens,
                        max_tokens=cap,
                    )
                )
                if (
                    fault.status in HOPELESS
                    or fault.kind in ("refused", "other_model")
                    or fault.unpaid
                ):
                    raise self._failure(fault, attempts) from None
                if fault.kind == "truncated":
                    if cap >= RAISES * first:
                        raise self._failure(fault, attempts) from None
                    cap *= 2
                last = fault
                if number < most:
                    self._wait(number, fault.retry_after, end)
                continue
            tokens = completion.tokens
            done = Attempt(
                error=None,
                seconds=round(self._clock() - started, 4),
                tokens=tokens,
                charged=reserved if tokens is None else tokens,
                max_tokens=cap,
            )
            return completion.model_copy(update={"attempts": [*attempts, done]})
        assert last is not None
        raise self._failure(last, attempts)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._http.close()

    def _body(
        self,
        messages: list[dict[str, Any]],
        schema: dict[str, Any] | None,
        tools: list[dict[str, Any]] | None,
        cap: int,
        number: int,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            # Another seed on a later attempt: the same draw would give the same bad reply.
            "seed": self.config.seed + number - 1,
            "max_tokens": cap,
        }
        if tools:
            body |= {"tools": tools, "tool_choice": "auto"}
        if schema is not None and self.config.structured == "json_schema":
            name = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": name}
        return body

    def _no_key(self, completion: Completion) -> None:
        """A server that echoes the key would put it into every trace; such a reply is no reply."""
        said = [completion.text, completion.reasoning, completion.model]
        said += [text for c in completion.tool_calls for text in (f"{c.id} {c.name}", c.arguments)]
        if holds_key(os.environ.get(self.config.api_key_env) or "", said):
            raise Fault("envelope", "a reply that holds the key", tokens=completion.tokens)

    def _wait(self, number: int, retry_after: float | None, end: float | None) -> None:
        """Full-jitter backoff, or what the server asks for, never past the deadline."""
        seconds = random.uniform(0, min(LAST_WAIT, FIRST_WAIT * 2 ** (number - 1)))
        if retry_after is not None:
            seconds = min(max(retry_after, 0.0), MAX_WAIT)
        if end is not None:
            seconds = min(seconds, max(0.0, end - self._clock()))
        self._sleep(seconds)

    def _out_of(
        self, what: str, kind: str, text: str, last: Fault | None, attempts: list[Attempt]
    ) -> ChatUnavailable | BadReply:
        """A limit of the call is reached. An endpoint that was down until then is an outage all the same."""
        if last and last.down:
            return self._failure(last, attempts)
        return BadReply(f"no {what} left for {self.config.model}: {text}", kind, attempts)

    def _failure(self, fault: Fault, attempts: list[Attempt]) -> ChatUnavailable | BadReply:
        where = f"{self.config.model} at {self.config.base_url}"
        count = (
            f"{len(attempts)} attempt{'s' if len(attempts) != 1 else ''}, the last: {fault.kind}"
        )
        tried = f"{count} ({fault})"
        kinds = {a.error for a in attempts}
        said = quoted(fault.said, os.environ.get(self.config.api_key_env) or "")
        if fault.kind == "other_model":
            need = f"write `model: {said}` in the config if that is the model meant"
            return ChatUnavailable(
                f"{where}: the server answers as {said}; {need} ({count})", attempts
            )
        if fault.unpaid:
            text = "the provider wants payment, or the quota of the key is used up"
            need = "mend that with the provider, then resume"
            return ChatUnavailable(
                f"{where}: {text}: {tried}{said and f': {said}'}; {need}", attempts
            )
        refusal = f"{REFUSES} ({fault}): {said or 'it does not say why'}"
        if fault.status in (401, 403):
            need = f"put a valid key into the environment variable {self.config.api_key_env}, then resume"
            return ChatUnavailable(f"{where} refuses the key: {tried}; {need}", attempts)
        if fault.status in (404, 405):
            need = "check base_url and model against the server's /models, then resume"
            return ChatUnavailable(f"{where}: {refusal}; {count}; {need}", attempts)
        if fault.status in HOPELESS:
            return BadReply(f"{where}: {refusal}; {count}", fault.kind, attempts, refusal)
        # One reply of a working chat server shows that the model is the trouble, unless the endpoint went down after it.
        if kinds & {"truncated", "unparsable", "refused"} and not fault.down:
            return BadReply(f"no usable reply from {where}: {tried}", fault.kind, attempts)
        return ChatUnavailable(
            f"{where} does not answer: {tried}; start the server, then resume", attempts
        )
