"""The spans of a plan: the agent that was invoked, each call of its model, each call of a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from pydantic import JsonValue

from agent.planners.base import LlmPlannerConfig
from mosaic.app.config import RunConfig
from mosaic.app.telemetry.span import Attributes, Span
from mosaic.app.telemetry.timeline import Timed
from mosaic.core.errors import DamageError
from mosaic.core.rows import Event, Step
from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.events import PlannedEvent, ToolCall
from mosaic.core.types.records import AskPlanner
from tools.effects.transcripts import read_messages

MODEL = "model"


class PlanSpans:
    """Makes the spans of plans of one run. With `content` they hold what was sent and said."""

    def __init__(self, config: RunConfig, store: Store, content: bool) -> None:
        self.planner = config.planner
        self.store = store
        self.content = content

    def of(
        self, round_: Span, plan: Timed, calls: Sequence[Step[AskPlanner]], event: Event | None
    ) -> Iterator[Span]:
        """The plan's span, then those of its calls, one after the other from its beginning.

        `calls` are the model's answers of this plan, `event` is what it left.
        """
        answers = [step.result for step in calls]
        attributes: Attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self.planner.kind,
            **plan.attributes,
        }
        if answers:
            attributes["mosaic.charged_tokens"] = sum(answer.charged for answer in answers)
        start = plan.start
        if plan.failed:
            start = plan.end - sum(answer.seconds for answer in answers)
        error = "no_plan" if plan.failed else ""
        agent = round_.child(
            f"plan {plan.seq}", plan.name, start, plan.end, attributes, error=error
        )
        yield agent
        planned = event.record if event is not None else None
        lines = planned.calls if isinstance(planned, PlannedEvent) else []
        left, at = list(calls), agent.start
        for number, line in enumerate(lines):
            if not isinstance(line, ToolCall):
                continue
            if line.tool != MODEL:
                yield self._tool(agent, number, line, at)
            elif left:
                chat = self._chat(agent, left.pop(0), at)
                at = chat.end
                yield chat
        for step in left:
            chat = self._chat(agent, step, at)
            at = chat.end
            yield chat

    def _chat(self, agent: Span, step: Step[AskPlanner], at: float) -> Span:
        """One call of the planner's model, retries included."""
        answer, asked = step.result, step.inputs.model
        completion = answer.completion or {}
        model = str(asked.get("model", "unknown"))
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "mosaic.requests": answer.attempts,
            "mosaic.charged_tokens": answer.charged,
        }
        for name in ("max_tokens", "temperature", "seed"):
            value = asked.get(name)
            if isinstance(value, int | float):
                attributes[f"gen_ai.request.{name}"] = value
        if isinstance(self.planner, LlmPlannerConfig):
            address = urlsplit(self.planner.chat.base_url)
            attributes["server.address"] = address.hostname or "unknown"
            if address.port is not None:
                attributes["server.port"] = address.port
        if completion:
            attributes["gen_ai.response.model"] = str(completion.get("model") or model)
            attributes["gen_ai.response.finish_reasons"] = [str(completion.get("finish_reason"))]
        usage = completion.get("usage")
        if isinstance(usage, dict):
            for ours, theirs in (("prompt", "input"), ("completion", "output")):
                tokens = usage.get(ours)
                if isinstance(tokens, int):
                    attributes[f"gen_ai.usage.{theirs}_tokens"] = tokens
        if self.content:
            attributes |= self._said(answer.sent, completion)
        if answer.failed:
            attributes["error.type"] = answer.failed
        return agent.child(
            f"call {step.seq}",
            f"chat {model}",
            at,
            at + answer.seconds,
            attributes,
            calls_out=True,
            error=answer.failed or "",
        )

    def _said(self, sent: str, completion: JsonObject) -> Attributes:
        """The messages of a call, as OpenTelemetry's conventions write them: JSON text."""
        try:
            messages = read_messages(self.store, sent)
        except DamageError:
            messages = []  # retention may have deleted them
        asked = [_message(message) for message in messages]
        attributes: Attributes = {"gen_ai.input.messages": json.dumps(asked)}
        replied = completion.get("message")
        if isinstance(replied, dict):
            said = {**_message(replied), "finish_reason": completion.get("finish_reason")}
            attributes["gen_ai.output.messages"] = json.dumps([said])
        return attributes

    def _tool(self, agent: Span, number: int, line: ToolCall, at: float) -> Span:
        """A call of a tool. Tools look things up: what they take is not recorded."""
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": line.tool,
            "gen_ai.tool.type": "function",
        }
        if self.content:
            attributes["gen_ai.tool.call.arguments"] = json.dumps(line.arguments)
            attributes["gen_ai.tool.call.result"] = json.dumps(line.result)
        return agent.child(f"tool {number}", f"execute_tool {line.tool}", at, at, attributes)


def _message(message: JsonObject) -> JsonObject:
    """A chat message in parts.

    >>> _message({"role": "user", "content": "hello"})
    {'role': 'user', 'parts': [{'type': 'text', 'content': 'hello'}]}
    """
    parts: list[JsonValue] = []
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        part: JsonObject = {"type": "tool_call_response", "response": content}
        parts.append({**part, "id": message.get("tool_call_id")})
    elif content:
        parts.append({"type": "text", "content": content})
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and isinstance(function, dict):
            named = {"id": call.get("id"), "name": function.get("name")}
            parts.append({"type": "tool_call", **named, "arguments": function.get("arguments")})
    return {"role": role, "parts": parts}
