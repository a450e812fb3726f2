"""One call of a chat model over HTTP: bounded attempts, five gates, and one of two failures.

The gates of every reply are transport, envelope, finish reason and strict parse; the fifth, schema
and meaning, is the caller's (`eval.chat.strict_json`). A reply that fails a gate is asked for
again, at most `max_attempts` times: after an outage by the same request, after words that cannot be
read by one that says what was wrong with them, at most `MAX_TOLD` times. A server that answers with
other JSON than a completion is asked at most `MAX_STRANGE` times.

Every attempt is recorded and charged. The outcome is a `Completion`, or `ChatUnavailable` (the
endpoint is down: the run pauses), or `BadReply` (the endpoint answers, but with nothing usable).
The last attempt decides which failure. The key is read from the environment at the moment of the
call and appears in no error, repr or log.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import cast

from pydantic import JsonValue

from eval.chat.config import ChatConfig as ChatConfig
from eval.chat.failures import HOPELESS, failure_of
from eval.chat.failures import REFUSES as REFUSES
from eval.chat.failures import BadReply as BadReply
from eval.chat.failures import ChatUnavailable as ChatUnavailable
from eval.chat.fault import Fault, holds_key, without_key
from eval.chat.http import Endpoint, Http
from eval.chat.message import ids_of
from eval.chat.metering import UNLIMITED, Meter, Tokens
from eval.chat.reply import Attempt as Attempt
from eval.chat.reply import Completion as Completion
from eval.chat.reply import ToolCall as ToolCall
from eval.chat.reply import gates
from eval.chat.request import JsonMapping as JsonMapping
from eval.chat.request import names_of, request_body, told
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject, canonical_json

# Seconds to wait before another attempt: at most what the server asks for, else an exponential
# backoff.
MAX_RETRY_AFTER = 120.0
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0
CONNECT_SECONDS = 5.0
# The cap of a truncated answer is doubled up to this multiple of the first cap.
MAX_CAP_FACTOR = 4
# How often a model is told in one call that its words cannot be read.
MAX_TOLD = 2
# Attempts at a server that answers with status 200 and JSON that is not a completion.
MAX_STRANGE = 3
# A server that turns a request away before the model sees it has spent nothing.
TURNED_AWAY = (401, 402, 403, 404, 429)


class ChatModel:
    """Chat completions of one model.

    Safe to share between threads. `meter` is asked before each attempt and told what it took.
    `sleep` and `clock` are seams for tests.
    """

    def __init__(
        self,
        config: ChatConfig,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter = UNLIMITED,
    ) -> None:
        self.config = config
        self._meter = meter
        self._sleep = sleep
        self._clock = clock
        self._http = Http(
            Endpoint(
                config.base_url,
                config.api_key_env,
                connect_seconds=CONNECT_SECONDS,
                key_header=config.key_header,
            )
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
        conversation or a key that cannot be sent. What was added to the conversation meanwhile is in
        `told`, of the completion or of the error.
        """
        if not messages:
            raise UsageError(
                "messages: an empty conversation cannot be completed; give at least one message"
            )
        asked = list(messages)
        try:
            completion = self._complete(
                asked, schema, tools, max_tokens, deadline, allowance, most_attempts
            )
        except (ChatUnavailable, BadReply) as error:
            error.told = cast(list[JsonObject], asked[len(messages) :])
            raise
        return completion.model_copy(update={"told": asked[len(messages) :]})

    def _complete(
        self,
        asked: list[JsonMapping],
        schema: JsonMapping | None,
        tools: Sequence[JsonMapping] | None,
        max_tokens: int | None,
        deadline: float | None,
        allowance: int | None,
        most_attempts: int | None,
    ) -> Completion:
        """See `complete`. What is said about replies that cannot be read is added to `asked`."""
        end = None if deadline is None else self._clock() + deadline
        first_cap = cap = max_tokens or self.config.max_tokens
        attempts: list[Attempt] = []
        most = min(self.config.max_attempts, most_attempts or self.config.max_attempts)
        last: Fault | None = None
        for number in range(1, most + 1):
            time_left = None if end is None else end - self._clock()
            if time_left is not None and time_left <= 0:
                text = f"{deadline:.0f} s are used after {len(attempts)} attempts"
                raise self._limit_reached("time", "deadline", text, last, attempts)
            # Half a token per byte bounds English and numbers from above.
            prompt_bytes = len(canonical_json([asked, tools or [], schema or {}]).encode())
            most_tokens = Tokens(prompt_bytes // 2, cap)
            used = sum(a.charged for a in attempts)
            if allowance is not None and used + most_tokens.total > allowance:
                text = (
                    f"an attempt may take {most_tokens.total} tokens; of {allowance} allowed are "
                    f"{used} used"
                )
                raise self._limit_reached("tokens", "allowance", text, last, attempts)
            body = request_body(self.config, asked, schema, tools, cap, number)
            seconds = min(self.config.timeout_seconds, time_left or self.config.timeout_seconds)
            try:
                self._meter.reserve(most_tokens)
            except ChatUnavailable as error:
                error.attempts = attempts
                raise
            started = self._clock()
            taken = most_tokens
            try:
                completion = self._ask(body, seconds, cap, schema is not None, names_of(tools))
                taken = most_tokens.counted(completion.usage)
            except Fault as fault:
                # Nothing was spent if no model was reached; what the server does not count is taken
                # at its bound.
                free = fault.unreached or fault.unpaid or fault.status in TURNED_AWAY
                taken = Tokens() if free else most_tokens.counted(fault.usage)
                attempts.append(
                    Attempt(
                        error=fault.kind,
                        seconds=round(self._clock() - started, 4),
                        tokens=fault.tokens,
                        charged=taken.total,
                        max_tokens=cap,
                        written=taken.written,
                    )
                )
                if self._is_final(fault, cap, first_cap, attempts):
                    if fault.answer is not None:
                        asked += told(fault)[:1]
                    raise failure_of(self.config, self._key(), fault, attempts, body) from None
                if fault.kind == "truncated":
                    cap *= 2
                elif fault.answer is not None:
                    asked += told(fault)
                last = fault
                if number < most and fault.answer is None:
                    self._wait(number, fault.retry_after, end)
                continue
            except UsageError:  # a key that cannot be sent: nothing was
                taken = Tokens()
                raise
            finally:
                self._meter.settle(most_tokens, taken)
            success = Attempt(
                error=None,
                seconds=round(self._clock() - started, 4),
                tokens=completion.tokens,
                charged=taken.total,
                max_tokens=cap,
                written=taken.written,
            )
            return completion.model_copy(update={"attempts": [*attempts, success]})
        assert last is not None
        raise failure_of(self.config, self._key(), last, attempts, body)

    def _ask(
        self, body: JsonObject, seconds: float, cap: int, wants_json: bool, offered: Sequence[str]
    ) -> Completion:
        """The completion of one request. Raises Fault."""
        reply = self._http.request("POST", "/chat/completions", body, seconds)
        config = self.config
        completion = gates(
            reply,
            config.reply_model or config.model,
            wants_json,
            "tools" in body,
            offered=offered,
            cap=cap if config.max_tokens_field else None,
            taken=ids_of(cast(Sequence[JsonMapping], body["messages"])),
        )
        self._refuse_key(completion)
        return completion

    def _is_final(
        self, fault: Fault, cap: int, first_cap: int, attempts: Sequence[Attempt]
    ) -> bool:
        """Whether asking again would be in vain."""
        if fault.status in HOPELESS or fault.kind in ("refused", "other_model") or fault.unpaid:
            return True
        if fault.kind == "truncated":
            capped = self.config.max_tokens_field is not None
            return not capped or cap >= MAX_CAP_FACTOR * first_cap
        same = sum(a.error == fault.kind for a in attempts)
        if fault.answer is not None:
            return same > MAX_TOLD
        return fault.kind in ("envelope", "error") and same >= MAX_STRANGE

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._http.close()

    def _refuse_key(self, completion: Completion) -> None:
        """Fault for a reply that holds the key, which would put it into every trace."""
        texts = [completion.text, completion.reasoning, completion.model]
        for call in completion.tool_calls:
            texts += [f"{call.id} {call.name}", call.arguments]
        if completion.message is not None:
            texts.append(canonical_json(completion.message))
        if holds_key(self._key(), texts):
            raise Fault("envelope", "a reply that holds the key", usage=completion.usage)

    def without_key(self, messages: Sequence[JsonMapping]) -> list[JsonObject]:
        """Messages fit to be filed: a text that holds the key says so in the key's place."""
        plain = cast(list[JsonObject], [dict(message) for message in messages])
        return cast(list[JsonObject], without_key(cast(JsonValue, plain), self._key()))

    def _key(self) -> str:
        return os.environ.get(self.config.api_key_env) or ""

    def _wait(self, number: int, retry_after: float | None, end: float | None) -> None:
        """Sleep before the next attempt, never past the deadline.

        For as long as the server asks for, or else a backoff with jitter: before attempt 2, 3 and 4
        it is drawn from 0.25 to 0.5, 0.5 to 1 and 1 to 2 seconds.
        """
        longest = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (number - 1))
        seconds = random.uniform(longest / 2, longest)
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
            return failure_of(self.config, self._key(), last, attempts, {})
        return BadReply(f"no {what} left for {self.config.model}: {text}", kind, attempts)
