"""The calls of one conversation: filed, charged against the limits of the round, and traced.

The limits are the round's: a conversation begins with what earlier ones of the round have used, and
an outage counts as what its requests have cost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from agent.planners.base import LlmPlannerConfig
from eval.chat.client import BadReply, ChatModel, ChatUnavailable, Completion, ToolCall
from eval.chat.reply import Attempt, sent
from mosaic.core.types.base import JsonObject, digest_of
from mosaic.core.types.records import AskPlanner, PlannerAnswer
from mosaic.core.types.runs import Observation
from prompts.load import Prompt
from tools.effects.model_calls import Ask, Request, Spent
from tools.planning.schemas import definitions, offered, schema_of
from tools.planning.toolbox import Toolbox

MAX_TRACE_TEXT = 2000


class GaveUp(Exception):
    """The conversation is over without a plan. The message says which limit or failure ended it."""


@dataclass
class CallTotals:
    """What the round has cost so far.

    `calls` are requests that reached a server and `tokens` charged tokens; both include failed
    attempts.
    """

    calls: int = 0
    retries: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, filed: Spent) -> None:
        """Count an answer or an outage that was filed."""
        self.calls += filed.attempts
        self.tokens += filed.charged
        self.seconds += filed.seconds


class PlannerCalls:
    """Asks the model within the limits of the round. `ask` files the answers."""

    def __init__(
        self,
        config: LlmPlannerConfig,
        chat: ChatModel,
        ask: Ask,
        observation: Observation,
        plan_shape: type[BaseModel],
        prompts: Mapping[str, Prompt],
        toolbox: Toolbox,
    ) -> None:
        self.config = config
        self.totals = CallTotals()
        self._chat = chat
        self._ask = ask
        self._observation = observation
        self._plan_shape = plan_shape
        self._toolbox = toolbox
        self._answers = 0
        # What the answers depend on beside the messages: the model with its sampling, the prompts
        # and the shapes.
        elsewhere = {"base_url", "api_key_env", "timeout_seconds"}
        self._question = AskPlanner(
            model=config.chat.model_dump(exclude=elsewhere),
            observation=observation.content_digest,
            prompts={name: prompt.digest for name, prompt in prompts.items()},
            shapes=digest_of([schema_of(plan_shape), sorted(offered(observation))]),
            conversation="",
            call=0,
            closing=False,
            messages="",
        )
        identity = {"model", "observation", "prompts", "shapes"}
        self._conversation = digest_of(self._question.model_dump(mode="json", include=identity))
        for filed in ask.earlier(self._conversation):
            self.totals.add(filed)

    def next_reply(self, messages: list[JsonObject]) -> Completion:
        """The next reply, charged and traced.

        Raises GaveUp if a limit is reached or no attempt gave a usable reply, ChatUnavailable if
        the endpoint is down.
        """
        config, totals = self.config, self.totals
        # Decided before an outage of this very call is counted: its inputs must be the same once
        # the endpoint is back.
        plans = self._observation.candidates
        closing = totals.calls >= config.max_calls - config.max_repairs - plans
        for outage in self._ask.charges(self._conversation, self._answers):
            totals.add(outage)
        self._check_limits()
        this_call = {
            "conversation": self._conversation,
            "call": self._answers,
            "closing": closing,
            "messages": digest_of(messages),
        }
        question = self._question.model_copy(update=this_call)
        try:
            request = self._request(messages, closing)
            answer = self._ask.answer(question, request, lambda: self._complete(messages, closing))
        except ChatUnavailable as error:
            self._trace_outage(error)
            raise
        self._answers += 1
        totals.add(answer)
        totals.retries += _retries(answer)
        self._trace(answer)
        if answer.failed is not None:
            raise GaveUp(f"{answer.failed}: {answer.reason}")
        return Completion.model_validate(answer.completion)

    def _check_limits(self) -> None:
        config, totals = self.config, self.totals
        if totals.calls >= config.max_calls:
            raise GaveUp(f"max_calls: {totals.calls} of {config.max_calls} calls are used")
        if totals.seconds >= config.max_seconds:
            raise GaveUp(
                f"max_seconds: {totals.seconds:.0f} of {config.max_seconds:.0f} s are used"
            )

    def _request(self, messages: list[JsonObject], closing: bool) -> Request:
        """What is sent, as it is filed."""
        tools, schema = self._offered(closing)
        offered: JsonObject = {"tools": [*tools]} if tools else {"schema": schema}
        return Request(self._chat.without_key(messages), offered)

    def _offered(self, closing: bool) -> tuple[list[JsonObject] | None, JsonObject | None]:
        """The tools, or the schema of the plan if the model has no tools."""
        if self.config.tool_calls:
            return definitions(self._observation, only_submit=closing), None
        return None, schema_of(self._plan_shape)

    def _complete(self, messages: list[JsonObject], closing: bool) -> PlannerAnswer:
        """One completion as it is filed. `closing` offers no tool but to submit the plan.

        A bad reply is filed like an answer: on resume the same round must fail in the same way,
        and not ask again.
        """
        config, totals = self.config, self.totals
        tools, schema = self._offered(closing)
        started = time.monotonic()
        try:
            completion = self._chat.complete(
                messages,
                schema=schema,
                tools=tools,
                deadline=config.max_seconds - totals.seconds,
                allowance=config.max_tokens - totals.tokens,
                most_attempts=config.max_calls - totals.calls,
            )
        except BadReply as error:
            return PlannerAnswer(
                failed=error.kind,
                reason=str(error),
                records=_records(error.attempts),
                attempts=sent(error.attempts),
                charged=sum(attempt.charged for attempt in error.attempts),
                seconds=round(time.monotonic() - started, 4),
                told=self._chat.without_key(error.told),
            )
        completion = completion.model_copy(update={"told": self._chat.without_key(completion.told)})
        return PlannerAnswer(
            completion=completion.json_data(),
            attempts=sent(completion.attempts),
            charged=completion.charged,
            seconds=round(time.monotonic() - started, 4),
        )

    # -- the trace --------------------------------------------------------------------------------

    def _trace(self, answer: PlannerAnswer) -> None:
        """One line for each message of the model."""
        line: dict[str, object] = {
            "seconds": answer.seconds,
            "charged": answer.charged,
            "retries": _retries(answer),
        }
        if answer.completion is None:
            line["failed"] = answer.failed
            line["reason"] = answer.reason
            line["attempts"] = answer.records
        else:
            completion = Completion.model_validate(answer.completion)
            line["text"] = completion.text[:MAX_TRACE_TEXT]
            line["tool_calls"] = [_traced_call(call) for call in completion.tool_calls]
            if completion.reasoning:
                line["reasoning"] = completion.reasoning[:MAX_TRACE_TEXT]
            line["usage"] = answer.completion["usage"]
            line["attempts"] = answer.completion["attempts"]
            line["model"] = completion.model
        self._record(self._answers, line)

    def _trace_outage(self, error: ChatUnavailable) -> None:
        line = {
            "failed": "unavailable",
            "reason": str(error),
            "attempts": _records(error.attempts),
        }
        self._record(self._answers + 1, line)

    def _record(self, call: int, line: Mapping[str, object]) -> None:
        self._toolbox.record("model", {"call": call, "prompt": self._conversation}, line)


def _retries(answer: PlannerAnswer) -> int:
    """Requests beyond the first. An answer may have taken none: nothing reached a server."""
    return max(0, answer.attempts - 1)


def _records(attempts: Sequence[Attempt]) -> list[JsonObject]:
    return [attempt.json_data() for attempt in attempts]


def _traced_call(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments[:MAX_TRACE_TEXT]}
