"""One call of a chat model over HTTP: bounded attempts, five gates, and one of two failures.

The gates of every reply: transport, envelope, finish reason, strict parse; the fifth, schema and meaning, is the
caller's (`eval.strict`). A reply that fails a gate is asked for again, at most `max_attempts` times; every attempt is
recorded and charged. What comes out is a `Completion`, `ChatUnavailable` (the endpoint is down: the run pauses) or
`BadReply` (the endpoint answers, but never with something usable). The key is read from the environment at the moment
of the call and appears in no error, repr or log.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from eval.chat_reply import MAX_BODY, Fault, gates
from eval.chat_reply import Attempt as Attempt
from eval.chat_reply import Completion as Completion
from eval.chat_reply import ToolCall as ToolCall
from eval.strict import NotStrict, strict_json
from mosaic.errors import BoundaryError, PausedError, UsageError
from mosaic.types import Noun, canonical_json

MAX_WAIT = 120.0
SHORTEST_KEY = 8
FIRST_WAIT, LAST_WAIT = 0.5, 30.0
RAISES = 4
HOPELESS = (400, 401, 403, 404, 405, 413, 422)


class ChatConfig(Noun):
    """A model behind an OpenAI-compatible chat completions endpoint.

    `api_key_env` names the environment variable that holds the key; a local server needs none. `timeout_seconds` is for
    one attempt. `max_tokens` is the cap of an answer; a truncated answer is asked for again with twice the cap, up to
    four times it. `structured` says whether the server takes a JSON schema.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = Field(default="mosaic", min_length=1)
    api_key_env: str = Field(default="MOSAIC_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    max_attempts: int = Field(default=8, ge=1, le=8)
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = 1
    max_tokens: int = Field(default=2048, ge=1)
    structured: Literal["json_schema", "none"] = "json_schema"

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query:
            raise ValueError("must carry no key or password; put the key in the variable that api_key_env names")
        return url


class ChatUnavailable(PausedError):
    """The endpoint does not answer as a chat server. `attempts` are the records of this call."""

    def __init__(self, message: str, attempts: list[Attempt]) -> None:
        super().__init__(message)
        self.attempts = attempts


class BadReply(BoundaryError):
    """No usable reply. `kind` is the last gate's word (refused, truncated, unparsable, envelope, http_400) or the limit
    that ended the call (allowance, deadline)."""

    def __init__(self, message: str, kind: str, attempts: list[Attempt]) -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts


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
        self._lock = threading.Lock()
        self._client: Any = None

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
    ) -> Completion:
        """One answer, with text that is strict JSON where `schema` is given and arguments that always are.

        `tools` are OpenAI tool definitions; `max_tokens` overrides the first cap; `deadline` is in seconds for the whole
        call, waits included; `allowance` is the tokens that all attempts together may be charged. Raises ChatUnavailable
        or BadReply after the last attempt, UsageError for no messages.
        """
        if not messages:
            raise UsageError("messages: an empty conversation cannot be completed; give at least one message")
        end = None if deadline is None else self._clock() + deadline
        first = cap = max_tokens or self.config.max_tokens
        prompt_bytes = len(canonical_json([messages, tools or [], schema or {}]).encode())
        attempts: list[Attempt] = []
        for number in range(1, self.config.max_attempts + 1):
            left = None if end is None else end - self._clock()
            if left is not None and left <= 0:
                text = f"{deadline:.0f} s are used after {len(attempts)} attempts"
                raise BadReply(f"no time left for {self.config.model}: {text}", "deadline", attempts)
            reserved = prompt_bytes // 2 + cap
            if allowance is not None and sum(a.charged for a in attempts) + reserved > allowance:
                used = sum(a.charged for a in attempts)
                text = f"an attempt may take {reserved} tokens; of {allowance} allowed are {used} used"
                raise BadReply(f"no tokens left for {self.config.model}: {text}", "allowance", attempts)
            body = self._body(messages, schema, tools, cap, number)
            started = self._clock()
            try:
                reply = self._post(body, min(self.config.timeout_seconds, left or self.config.timeout_seconds))
                completion = gates(reply, self.config.model, schema is not None, tools is not None)
                self._no_key(completion)
            except Fault as fault:
                # Half a token per byte bounds English and numbers from above; nothing was spent where nothing was sent.
                unknown = 0 if fault.kind == "connect" else reserved
                attempts.append(
                    Attempt(
                        error=fault.kind,
                        seconds=round(self._clock() - started, 4),
                        tokens=fault.tokens,
                        charged=unknown if fault.tokens is None else fault.tokens,
                        max_tokens=cap,
                    )
                )
                if fault.status in HOPELESS or fault.kind == "refused":
                    raise self._failure(fault, attempts) from None
                if fault.kind == "truncated":
                    if cap >= RAISES * first:
                        raise self._failure(fault, attempts) from None
                    cap *= 2
                last = fault
                if number < self.config.max_attempts:
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
        raise self._failure(last, attempts)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

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

    def _post(self, body: dict[str, Any], seconds: float) -> bytes:
        """The body of a 200 reply, at most `MAX_BODY` bytes, within `seconds`. Fault otherwise."""
        import httpx2
        import openai

        end = self._clock() + seconds
        parts: list[bytes] = []
        try:
            streaming = self._open().chat.completions.with_streaming_response
            timeout = httpx2.Timeout(seconds, connect=min(5.0, seconds))
            with streaming.create(**body, timeout=timeout) as response:
                size = 0
                # A server that drips byte by byte never trips a read timeout, so the clock is asked at each piece.
                for piece in response.http_response.iter_bytes():
                    parts.append(piece)
                    size += len(piece)
                    if size > MAX_BODY:
                        raise Fault("envelope", f"a body of more than {MAX_BODY} bytes")
                    if self._clock() > end:
                        raise Fault("timeout", f"no whole reply within {seconds:.0f} s")
        except Fault:
            raise
        except (openai.APITimeoutError, httpx2.TimeoutException):
            raise Fault("timeout", f"no whole reply within {seconds:.0f} s") from None
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
            cause = error.__cause__ or error
            kind = "connect" if isinstance(cause, httpx2.ConnectError) else "transport"
            raise Fault(kind, type(cause).__name__) from None
        return b"".join(parts)

    def _open(self) -> Any:
        import httpx2
        import openai

        with self._lock:
            if self._client is None:
                local = urlsplit(self.config.base_url).hostname in ("127.0.0.1", "localhost", "::1")
                http = httpx2.Client(
                    follow_redirects=False,
                    # A proxy or a netrc entry has no business between this process and its own machine.
                    trust_env=not local,
                    limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64),
                    event_hooks={"response": [_refuse]},
                )
                omit: Any = openai.Omit()
                self._client = openai.OpenAI(
                    base_url=self.config.base_url,
                    api_key=os.environ.get(self.config.api_key_env) or "none",
                    max_retries=0,
                    http_client=http,
                    default_headers={"OpenAI-Organization": omit, "OpenAI-Project": omit},
                )
            return self._client

    def _no_key(self, completion: Completion) -> None:
        """A server that echoes the key would put it into every trace; such a reply is no reply."""
        key = os.environ.get(self.config.api_key_env) or ""
        said = [completion.text, completion.reasoning, *(f"{c.id} {c.name}" for c in completion.tool_calls)]
        said += [canonical_json(strict_json(c.arguments)) for c in completion.tool_calls]
        with contextlib.suppress(NotStrict):
            said.append(canonical_json(strict_json(completion.text)))
        if len(key) >= SHORTEST_KEY and any(key in text for text in said):
            raise Fault("envelope", "a reply that holds the key", tokens=completion.tokens)

    def _wait(self, number: int, retry_after: float | None, end: float | None) -> None:
        """Full-jitter backoff, or what the server asks for, never past the deadline."""
        seconds = random.uniform(0, min(LAST_WAIT, FIRST_WAIT * 2 ** (number - 1)))
        if retry_after is not None:
            seconds = min(max(retry_after, 0.0), MAX_WAIT)
        if end is not None:
            seconds = min(seconds, max(0.0, end - self._clock()))
        self._sleep(seconds)

    def _failure(self, fault: Fault, attempts: list[Attempt]) -> ChatUnavailable | BadReply:
        where = f"{self.config.model} at {self.config.base_url}"
        tried = f"{len(attempts)} attempt{'s' if len(attempts) != 1 else ''}, the last: {fault.kind} ({fault})"
        kinds = {a.error for a in attempts}
        if fault.status in (401, 403):
            need = f"put a valid key into the environment variable {self.config.api_key_env}, then resume"
            return ChatUnavailable(f"{where} refuses the key: {tried}; {need}", attempts)
        if fault.status in (404, 405):
            need = "check base_url and model against the server's /models, then resume"
            return ChatUnavailable(f"{where} is not there: {tried}; {need}", attempts)
        # One reply of a working chat server is enough to know that the endpoint is up and the model is the trouble.
        if fault.status in HOPELESS or kinds & {"truncated", "unparsable", "refused"}:
            return BadReply(f"no usable reply from {where}: {tried}", fault.kind, attempts)
        return ChatUnavailable(f"{where} does not answer: {tried}; start the server, then resume", attempts)


def _refuse(response: Any) -> None:
    """Judge the status before a byte of the body is read: an error page may be endless, or echo the key."""
    status = response.status_code
    if status == 200:
        return
    raise Fault(f"http_{status}", f"HTTP {status}", status=status, retry_after=_seconds(response.headers))


def _seconds(headers: Any) -> float | None:
    """Retry-After in seconds, from a number or a date; None where it is absent or nonsense."""
    from email.utils import parsedate_to_datetime

    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        number = float(text)
        return number if number == number else None
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
