"""One call of a chat model over HTTP: bounded attempts, five gates, and one of two failures.

The gates of every reply are transport, envelope, finish reason and strict parse; the fifth, schema
and meaning, is the caller's (`eval.chat.strict_json`). A reply that fails a gate is asked for
again, at most `max_attempts` times. Every attempt is recorded and charged. The outcome is a
`Completion`, or `ChatUnavailable` (the endpoint is down: the run pauses), or `BadReply` (the
endpoint answers, but never with something usable). The last attempt decides which failure. The key
is read from the environment at the moment of the call and appears in no error, repr or log.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence

from eval.chat.config import ChatConfig as ChatConfig
from eval.chat.http import Endpoint, Http
from eval.chat.reply import Attempt as Attempt
from eval.chat.reply import Completion as Completion
from eval.chat.reply import Fault, gates, holds_key, quoted
from eval.chat.reply import ToolCall as ToolCall
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.types.base import canonical_json

# Seconds to wait before another attempt: at most what the server asks for, else an exponential
# backoff.
MAX_RETRY_AFTER = 120.0
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0
CONNECT_SECONDS = 5.0
# The cap of a truncated answer is doubled up to this multiple of the first cap.
MAX_CAP_FACTOR = 4
# Statuses that the same request would get again.
HOPELESS = (400, 401, 403, 404, 405, 413, 422)
# A server that turns a request away before the model sees it has spent nothing.
TURNED_AWAY = (401, 402, 403, 404, 429)
REFUSES = "the endpoint refuses the request"

# One message of a conversation, a tool definition or a JSON schema, as plain JSON data.
JsonMapping = Mapping[str, object]


class ChatUnavailable(PausedError):
    """The endpoint does not answer as a chat server.

    `attempts` records the requests that were made in vain.
    """

    def __init__(self, message: str, attempts: list[Attempt]) -> None:
        super().__init__(message)
        self.attempts = attempts


class BadReply(BoundaryError):
    """The endpoint answers, but gave no usable reply.

    `kind` names the gate that the last reply failed (refused, truncated, unparsable, envelope,
    http_400), or the limit that ended the call (allowance, deadline). `refusal` says how the
    endpoint refused the request itself, else "".
    """

    def __init__(self, message: str, kind: str, attempts: list[Attempt], refusal: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts
        self.refusal = refusal


class ChatModel:
    """Chat completions of one model.

    Safe to share between threads. `sleep` and `clock` are seams for tests.
    """

    def __init__(
        self,
        config: ChatConfig,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._sleep = sleep
        self._clock = clock
        self._http = Http(
            Endpoint(config.base_url, config.api_key_env, connect_seconds=CONNECT_SECONDS)
        )

    def __repr__(self) -> str:
        return f"ChatModel({self.config.model!r})"

    def complete(
        self,
        messages: Sequence[JsonMapping],
        *,
        schema: JsonMapping | None = None,
        tools: Sequence[JsonMapping] | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        allowance: int | None = None,
        most_attempts: int | None = None,
    ) -> Completion:
        """One answer.

        Its text is strict JSON if `schema` is given; arguments of tool calls always are.

        `tools` are OpenAI tool definitions. `max_tokens` overrides the first cap. `deadline` is in
        seconds for the whole call, waits included. `allowance` is how many tokens all attempts
        together may be charged. `most_attempts` may lower the config's `max_attempts`.

        Raises ChatUnavailable or BadReply after the last attempt, and UsageError for an empty
        conversation or a key that cannot be sent.
        """
        if not messages:
            raise UsageError(
                "messages: an empty conversation cannot be completed; give at least one message"
            )
        end = None if deadline is None else self._clock() + deadline
        first_cap = cap = max_tokens or self.config.max_tokens
        prompt_bytes = len(canonical_json([messages, tools or [], schema or {}]).encode())
        attempts: list[Attempt] = []
        most = min(self.config.max_attempts, most_attempts or self.config.max_attempts)
        last: Fault | None = None
        for number in range(1, most + 1):
            time_left = None if end is None else end - self._clock()
            if time_left is not None and time_left <= 0:
                text = f"{deadline:.0f} s are used after {len(attempts)} attempts"
                raise self._limit_reached("time", "deadline", text, last, attempts)
            # Half a token per byte bounds English and numbers from above.
            reserved = prompt_bytes // 2 + cap
            used = sum(a.charged for a in attempts)
            if allowance is not None and used + reserved > allowance:
                text = (
                    f"an attempt may take {reserved} tokens; of {allowance} allowed are {used} used"
                )
                raise self._limit_reached("tokens", "allowance", text, last, attempts)
            body = self._body(messages, schema, tools, cap, number)
            seconds = min(self.config.timeout_seconds, time_left or self.config.timeout_seconds)
            started = self._clock()
            try:
                reply = self._http.request("POST", "/chat/completions", body, seconds)
                completion = gates(reply, self.config.model, schema is not None, tools is not None)
                self._refuse_key(completion)
            except Fault as fault:
                # Nothing was spent if no model was reached; what the server does not count is taken
                # at its bound.
                unreached = fault.kind == "connect" or fault.status in TURNED_AWAY
                unknown = 0 if unreached else reserved
                attempts.append(
                    Attempt(
                        error=fault.kind,
                        seconds=round(self._clock() - started, 4),
                        tokens=fault.tokens,
                        charged=unknown if fault.tokens is None else fault.tokens,
                        max_tokens=cap,
                    )
                )
                if _is_final(fault):
                    raise self._failure(fault, attempts) from None
                if fault.kind == "truncated":
                    if cap >= MAX_CAP_FACTOR * first_cap:
                        raise self._failure(fault, attempts) from None
                    cap *= 2
                last = fault
                if number < most:
                    self._wait(number, fault.retry_after, end)
                continue
            tokens = completion.tokens
            success = Attempt(
                error=None,
                seconds=round(self._clock() - started, 4),
                tokens=tokens,
                charged=reserved if tokens is None else tokens,
                max_tokens=cap,
            )
            return completion.model_copy(update={"attempts": [*attempts, success]})
        assert last is not None
        raise self._failure(last, attempts)

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._http.close()

    def _body(
        self,
        messages: Sequence[JsonMapping],
        schema: JsonMapping | None,
        tools: Sequence[JsonMapping] | None,
        cap: int,
        number: int,
    ) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            # Another seed for each attempt: the same draw would give the same bad reply.
            "seed": self.config.seed + number - 1,
            "max_tokens": cap,
        }
        if tools:
            body |= {"tools": tools, "tool_choice": "auto"}
        if schema is not None and self.config.structured == "json_schema":
            named_schema = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named_schema}
        return body

    def _refuse_key(self, completion: Completion) -> None:
        """Fault for a reply that holds the key, which would put it into every trace."""
        texts = [completion.text, completion.reasoning, completion.model]
        for call in completion.tool_calls:
            texts += [f"{call.id} {call.name}", call.arguments]
        if holds_key(self._key(), texts):
            raise Fault("envelope", "a reply that holds the key", tokens=completion.tokens)

    def _key(self) -> str:
        return os.environ.get(self.config.api_key_env) or ""

    def _wait(self, number: int, retry_after: float | None, end: float | None) -> None:
        """Sleep before the next attempt, never past the deadline.

        For as long as the server asks for, or else a full-jitter backoff.

        Before attempt 2, 3 and 4 the backoff is drawn from 0 to 0.5, 1 and 2 seconds.
        """
        seconds = random.uniform(0, min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (number - 1)))
        if retry_after is not None:
            seconds = min(max(retry_after, 0.0), MAX_RETRY_AFTER)
        if end is not None:
            seconds = min(seconds, max(0.0, end - self._clock()))
        self._sleep(seconds)

    def _limit_reached(
        self, what: str, kind: str, text: str, last: Fault | None, attempts: list[Attempt]
    ) -> ChatUnavailable | BadReply:
        """The failure when the call reaches a limit.

        If the endpoint was down until then, it is still an outage.
        """
        if last and last.down:
            return self._failure(last, attempts)
        return BadReply(f"no {what} left for {self.config.model}: {text}", kind, attempts)

    def _failure(self, fault: Fault, attempts: list[Attempt]) -> ChatUnavailable | BadReply:
        """The error that a call ends with after its last fault, saying what to do next."""
        where = f"{self.config.model} at {self.config.base_url}"
        plural = "s" if len(attempts) != 1 else ""
        count = f"{len(attempts)} attempt{plural}, the last: {fault.kind}"
        tried = f"{count} ({fault})"
        said = quoted(fault.said, self._key())
        if fault.kind == "other_model":
            need = f"write `model: {said}` in the config if that is the model meant"
            return ChatUnavailable(
                f"{where}: the server answers as {said}; {need} ({count})", attempts
            )
        if fault.unpaid:
            text = "the provider wants payment, or the quota of the key is used up"
            need = "mend that with the provider, then resume"
            reason = f": {said}" if said else ""
            return ChatUnavailable(f"{where}: {text}: {tried}{reason}; {need}", attempts)
        refusal = f"{REFUSES} ({fault}): {said or 'it does not say why'}"
        if fault.status in (401, 403):
            variable = self.config.api_key_env
            need = f"put a valid key into the environment variable {variable}, then resume"
            return ChatUnavailable(f"{where} refuses the key: {tried}; {need}", attempts)
        if fault.status in (404, 405):
            need = "check base_url and model against the server's /models, then resume"
            return ChatUnavailable(f"{where}: {refusal}; {count}; {need}", attempts)
        if fault.status in HOPELESS:
            return BadReply(f"{where}: {refusal}; {count}", fault.kind, attempts, refusal)
        # One reply of a working chat server shows that the model is the trouble, unless the
        # endpoint went down later.
        kinds = {a.error for a in attempts}
        if kinds & {"truncated", "unparsable", "refused"} and not fault.down:
            return BadReply(f"no usable reply from {where}: {tried}", fault.kind, attempts)
        return ChatUnavailable(
            f"{where} does not answer: {tried}; start the server, then resume", attempts
        )


def _is_final(fault: Fault) -> bool:
    """Whether the same request would fail in the same way again."""
    return fault.status in HOPELESS or fault.kind in ("refused", "other_model") or fault.unpaid
