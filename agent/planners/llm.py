"""A language model as planner: a bounded conversation over the tools that ends with a plan inside the limits.

Whatever the model says, only a plan without violations leaves this module; the `check` node holds it against the limits
once more. Two kinds of failure are counted apart. A reply that no sense can be made of is asked for again inside one
call (`eval.chat.client`, at most 8 attempts). A reply that is well formed but wrong goes back with field paths (at most 3
repairs). When either is used up, or the round's limit on calls, tokens or seconds, the planner gives up: BoundaryError,
upon which the node puts another planner in, or PausedError where the config says `pause`. An endpoint that is down
pauses the run in any case. The limits are the round's: a conversation begins with what earlier ones of the round have
used, and an outage counts as what its requests have cost.

Every call goes through `ask`, which files the answer: an interrupted conversation is replayed, not repeated.
"""

from __future__ import annotations

import json
import time
from typing import Any

from agent.planners.base import LlmPlannerConfig, require_one_plan
from agent.planners.llm_prompt import (
    MAX_PROBLEMS,
    enveloped,
    numbers,
    plain,
    problems_of,
    prompts,
    refusals,
)
from eval.chat.client import BadReply, ChatModel, ChatUnavailable, Completion, ToolCall
from eval.chat.reply import sent
from eval.chat.strict_json import Invalid, NotStrict, parse_strict
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.types.base import canonical_json, digest_of
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from prompts.envelope import delimiter
from tools.effects.model_calls import CALL, GAVE_UP, Ask, uncached
from tools.planning.schemas import ARGUMENTS, action_plan, definitions, plan_model, schema_of
from tools.planning.toolbox import Toolbox

MAX_CALLS_AT_ONCE = 8
MAX_TRACE_TEXT = 2000


class LlmPlanner:
    """Plans by a chat model with tools. `ask` files each answer in the journal; by default nothing is filed."""

    kind = "llm"

    def __init__(
        self, config: LlmPlannerConfig, chat: ChatModel | None = None, ask: Ask = uncached
    ) -> None:
        self.config = config
        self.chat = chat or ChatModel(config.chat)
        self._ask = ask

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        """One plan without violations. BoundaryError or PausedError where the limits of the round are used up."""
        require_one_plan(self.kind, n)
        talk = _Talk(self, observation, toolbox)
        try:
            return [talk.run()]
        except _GaveUp as error:
            toolbox.record("gave_up", {"reason": str(error)}, talk.spent())
            reason = f"round {observation.round}: the model found no plan: {error}"
            if self.config.on_failure == "pause":
                self._ask(
                    GAVE_UP, {"reason": str(error), "spent": talk.spent()}, lambda: {"paused": True}
                )
                raise PausedError(
                    f"{reason}; see `trace`, change planner settings or the model, then resume"
                ) from None
            raise BoundaryError(reason) from None


class _GaveUp(Exception):
    """The conversation is over without a plan."""


class _Wrong(Exception):
    """A well-formed reply that cannot be accepted; `problems` go back to the model."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Talk:
    """One conversation about one round."""

    def __init__(self, planner: LlmPlanner, observation: Observation, toolbox: Toolbox) -> None:
        self.config = planner.config
        self.chat = planner.chat
        self.observation = observation
        self.toolbox = toolbox
        self.words = prompts()
        self.model = plan_model(observation, "plan")
        self.draft = plan_model(observation, "draft")
        self.answers = self.repairs = 0
        self.calls = self.retries = self.tokens = 0
        self.seconds = 0.0
        self._file = planner._ask
        self._mark: str | None = None
        # What the answers depend on beside the messages: the model, its sampling, the words and the shapes.
        self.identity = {
            "model": self.config.chat.model_dump(
                exclude={"base_url", "api_key_env", "timeout_seconds"}
            ),
            "observation": observation.content_digest,
            "prompts": {name: prompt.digest for name, prompt in self.words.items()},
            "shapes": digest_of([schema_of(self.model), sorted(ARGUMENTS)]),
        }
        self.digest = digest_of(self.identity)
        for filed in self._file.earlier(self.digest):
            self._count(filed)

    def spent(self) -> dict[str, Any]:
        """What the round has cost so far; `calls` are requests and `tokens` charged tokens, failed attempts included."""
        return {
            "calls": self.calls,
            "retries": self.retries,
            "repairs": self.repairs,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }

    def run(self) -> ActionPlan:
        messages = self._opening()
        while True:
            completion = self._call(messages)
            messages.append(_as_message(completion))
            try:
                plan = self._read(completion, messages)
            except _Wrong as wrong:
                self._repair(wrong, completion, messages)
                continue
            if plan is not None:
                return plan

    # -- one call -------------------------------------------------------------------------------------------------

    def _call(self, messages: list[dict[str, Any]]) -> Completion:
        """The next reply, charged. Gives up where a limit is reached or the retries are used up."""
        limits = self.config
        # Decided before an outage of this very call is counted: its inputs must be the same once the endpoint is back.
        closing = self.calls >= limits.max_calls - limits.max_repairs - 1
        for charge in self._file.charges(self.digest, self.answers):
            self._count(charge)
        if self.calls >= limits.max_calls:
            raise _GaveUp(f"max_calls: {self.calls} of {limits.max_calls} calls are used")
        if self.seconds >= limits.max_seconds:
            raise _GaveUp(f"max_seconds: {self.seconds:.0f} of {limits.max_seconds:.0f} s are used")
        tools = definitions(self.observation, only_submit=closing) if limits.tool_calls else None
        schema = None if limits.tool_calls else schema_of(self.model)
        left = limits.max_seconds - self.seconds

        def effect() -> dict[str, Any]:
            started = time.monotonic()
            try:
                got = self.chat.complete(
                    messages,
                    schema=schema,
                    tools=tools,
                    deadline=left,
                    allowance=limits.max_tokens - self.tokens,
                    most_attempts=limits.max_calls - self.calls,
                )
                answer: dict[str, Any] = {
                    "completion": got.json_data(),
                    "attempts": sent(got.attempts),
                }
                answer["charged"] = got.charged
            except BadReply as error:
                # Filed like an answer: on resume the same round must fail in the same way, not ask again.
                answer = {
                    "failed": error.kind,
                    "reason": str(error),
                    "attempts": sent(error.attempts),
                }
                answer["charged"] = sum(a.charged for a in error.attempts)
                answer["records"] = [a.json_data() for a in error.attempts]
            return {**answer, "seconds": round(time.monotonic() - started, 4)}

        inputs = {
            **self.identity,
            "conversation": self.digest,
            "call": self.answers,
            "closing": closing,
        }
        try:
            answer = self._file(CALL, {**inputs, "messages": digest_of(messages)}, effect)
        except ChatUnavailable as error:
            said = {
                "failed": "unavailable",
                "reason": str(error),
                "attempts": [a.json_data() for a in error.attempts],
            }
            self.toolbox.record("model", {"call": self.answers + 1, "prompt": self.digest}, said)
            raise
        self.answers += 1
        self._count(answer)
        self.retries += max(0, int(answer["attempts"]) - 1)
        self._record(answer)
        if "failed" in answer:
            raise _GaveUp(f"{answer['failed']}: {answer['reason']}")
        return Completion.model_validate(answer["completion"])

    def _count(self, filed: dict[str, Any]) -> None:
        """Charge an answer, or an outage, against the limits."""
        self.calls += int(filed["attempts"])
        self.tokens += int(filed["charged"])
        self.seconds += float(filed["seconds"])

    def _record(self, answer: dict[str, Any]) -> None:
        """One line of the trace per message of the model."""
        said: dict[str, Any] = {
            "seconds": answer["seconds"],
            "charged": answer["charged"],
            "retries": max(0, int(answer["attempts"]) - 1),
        }
        if "failed" in answer:
            said |= {
                "failed": answer["failed"],
                "reason": answer["reason"],
                "attempts": answer["records"],
            }
        else:
            got = answer["completion"]
            said |= {
                "text": got["text"][:MAX_TRACE_TEXT],
                "tool_calls": [
                    {"name": c["name"], "arguments": c["arguments"][:MAX_TRACE_TEXT]}
                    for c in got["tool_calls"]
                ],
                **(
                    {"reasoning": got["reasoning"][:MAX_TRACE_TEXT]} if got.get("reasoning") else {}
                ),
                "usage": got["usage"],
                "attempts": got["attempts"],
                "model": got["model"],
            }
        self.toolbox.record("model", {"call": self.answers, "prompt": self.digest}, said)

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, completion: Completion, messages: list[dict[str, Any]]) -> ActionPlan | None:
        """Carry out what the reply asks for: a plan where it submits one, None where it looks closer."""
        if not self.config.tool_calls:
            return self._submitted(completion.text)
        calls = completion.tool_calls
        if not calls:
            raise _Wrong(["(whole): no tool was called; call submit_plan with your plan"])
        if len(calls) > MAX_CALLS_AT_ONCE:
            raise _Wrong(
                [
                    f"(whole): {len(calls)} tool calls at once, at most {MAX_CALLS_AT_ONCE} are answered"
                ]
            )
        for call in calls:
            if call.name == "submit_plan":
                return self._submitted(call.arguments)
        answers = [(call, self._answer(call)) for call in calls]
        messages += [_tool_message(call, text) for call, text in answers]
        return None

    def _answer(self, call: ToolCall) -> str:
        """What a looking tool says, as JSON."""
        try:
            if call.name == "check_plan":
                draft, violations = action_plan(parse_strict(call.arguments, self.draft))
                if draft is None:
                    return canonical_json({"violations": [v.json_data() for v in violations]})
                return canonical_json(self.toolbox.check_plan(draft))
            if call.name not in ARGUMENTS:
                known = ", ".join([*ARGUMENTS, "check_plan", "submit_plan"])
                raise _Wrong([f"(whole): no tool {call.name!r}; there are {known}"])
            arguments = parse_strict(call.arguments, ARGUMENTS[call.name]).model_dump()
            if call.name == "show_examples":
                return self._examples(arguments)
            return canonical_json(self.toolbox.call(call.name, arguments))
        except Invalid as error:
            raise _Wrong([f"{call.name}.{p}" for p in error.problems]) from None
        except (NotStrict, UsageError) as error:
            raise _Wrong([f"{call.name}: {error}"]) from None

    def _examples(self, arguments: dict[str, Any]) -> str:
        shown = self.toolbox.show_examples(**arguments, text=self.config.show_text)
        lines = [
            canonical_json(plain({k: v for k, v in item.items() if k != "answer"}))
            for item in shown
        ]
        if self.config.show_text:
            texts = [enveloped(str(item.get("answer", "")), self.mark, "answer") for item in shown]
            lines = [part for pair in zip(lines, texts, strict=True) for part in pair]
        return "\n".join(lines) or "no such examples"

    def _submitted(self, text: str) -> ActionPlan:
        """The plan in these words. Wrong where it breaks its shape or a limit."""
        try:
            plan, violations = action_plan(parse_strict(text, self.model))
        except Invalid as error:
            raise _Wrong(error.problems) from None
        except NotStrict as error:
            raise _Wrong([f"(whole): {error}"]) from None
        if plan is not None:
            self.toolbox.check_plan(plan)
            violations = self.toolbox.violations(plan)
        if plan is None or violations:
            raise _Wrong(problems_of(violations))
        return plan

    def _repair(
        self, wrong: _Wrong, completion: Completion, messages: list[dict[str, Any]]
    ) -> None:
        """Send back what was wrong. Gives up where no repair is left."""
        self.toolbox.record("repair", {"number": self.repairs + 1}, {"problems": wrong.problems})
        if self.repairs >= self.config.max_repairs:
            raise _GaveUp(
                f"max_repairs: {self.repairs} repairs are used; still wrong: {wrong.problems[0]}"
            )
        self.repairs += 1
        text = self.words["planner_repair"].fill(
            problems="\n".join(wrong.problems), left=str(self.config.max_repairs - self.repairs)
        )
        if completion.tool_calls:
            # Every tool call wants an answer, or the server refuses the conversation.
            messages += [_tool_message(call, text) for call in completion.tool_calls]
        else:
            messages.append({"role": "user", "content": text})

    # -- the opening ----------------------------------------------------------------------------------------------

    def _opening(self) -> list[dict[str, Any]]:
        how = self.words[
            "planner_tools" if self.config.tool_calls else "planner_direct"
        ].text.strip()
        said = [v for v in self.observation.feedback if v.hint or v.rule]
        feedback = ""
        if said:
            feedback = self.words["planner_feedback"].fill(
                said="\n".join(refusals(said[-MAX_PROBLEMS:], self.mark))
            )
        task = self.words["planner_task"].fill(
            round=str(self.observation.round),
            rounds=str(self.observation.rounds),
            observation=json.dumps(numbers(self.observation), ensure_ascii=True),
            feedback=feedback,
        )
        return [
            {"role": "system", "content": self.words["planner"].fill(how=how)},
            {"role": "user", "content": task},
        ]

    @property
    def mark(self) -> str:
        """This conversation's random delimiter: filed, so that a replayed conversation has the same words."""
        if self._mark is None:
            inputs = {"observation": self.identity["observation"]}
            self._mark = str(self._file("plan_mark", inputs, lambda: {"mark": delimiter()})["mark"])
        return self._mark


def _as_message(completion: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text or None}
    if completion.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in completion.tool_calls
        ]
    return message


def _tool_message(call: ToolCall, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.id, "content": text}
