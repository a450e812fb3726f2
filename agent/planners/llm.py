"""A language model as planner: a bounded conversation over the tools that ends with a legal plan.

Whatever the model says, only a plan without violations leaves this module; the `check` node holds
it against the limits once more. Two kinds of failure are counted apart. A reply that cannot be
read at all is asked for again inside one call (`eval.chat.client`, at most 8 attempts). A reply
that is well formed but wrong goes back with field paths (at most 3 repairs).

When either is used up, or the round's limit on calls, tokens or seconds, the planner gives up: with
BoundaryError, upon which the node puts another planner in, or with PausedError if the config says
`pause`. An endpoint that is down pauses the run in any case.

Every call goes through `ask`, which files the answer: an interrupted conversation is replayed, not
repeated.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import cast

from agent.planners.base import LlmPlannerConfig
from agent.planners.llm_calls import GaveUp, PlannerCalls
from agent.planners.llm_prompt import (
    MAX_PROBLEMS,
    enveloped,
    labels_only,
    load_prompts,
    numbers,
    problem_lines,
    refusal_lines,
)
from agent.planners.track_record import track_record
from eval.chat.client import ChatModel, Completion, ToolCall
from eval.chat.strict_json import Invalid, NotStrict
from eval.chat.unwrap import parse_unwrapped
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.types.base import JsonObject, canonical_json
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.records import ChooseMark, GiveUp
from mosaic.core.types.runs import Observation, each_trial
from prompts.envelope import delimiter
from tools.effects.model_calls import Ask, uncached
from tools.planning.schemas import ShowExamples, action_plan, offered, plan_model
from tools.planning.toolbox import Toolbox

MAX_CALLS_AT_ONCE = 8
# What a model is shown of its earlier rationales, each.
MAX_RATIONALE = 1000
# A whole note, and the name of who gave it.
MAX_NOTE = 4300
# What binary fractions may take from a share of rounds.
ROUNDING = 1e-9


class LlmPlanner:
    """Plans by a chat model with tools. `ask` files each answer; by default nothing is filed."""

    kind = "llm"

    def __init__(
        self, config: LlmPlannerConfig, chat: ChatModel | None = None, ask: Ask = uncached
    ) -> None:
        self.config = config
        self.chat = chat or ChatModel(config.chat)
        self._ask = ask

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        """`n` plans without violations that differ, all of one conversation.

        Raises BoundaryError or PausedError if the model does not find them within the limits of the
        round.
        """
        conversation = Conversation(self.config, self.chat, self._ask, observation, toolbox, n)
        try:
            return conversation.run()
        except GaveUp as error:
            spent = conversation.spent()
            toolbox.record("gave_up", {"reason": str(error)}, spent)
            reason = f"round {observation.round}: the model found no plan: {error}"
            if self.config.on_failure == "pause":
                gave_up = GiveUp(reason=str(error), spent=spent)
                self._ask.at(observation.round).give_up(gave_up)
                raise PausedError(
                    f"{reason}; see `trace`, change planner settings or the model, then resume"
                ) from None
            raise BoundaryError(reason) from None


class _WrongReply(Exception):
    """A well-formed reply that cannot be accepted. `problems` go back to the model, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Conversation:
    """One conversation about one round."""

    def __init__(
        self,
        config: LlmPlannerConfig,
        chat: ChatModel,
        ask: Ask,
        observation: Observation,
        toolbox: Toolbox,
        wanted: int = 1,
    ) -> None:
        self.config = config
        self.observation = observation
        self.toolbox = toolbox
        self.wanted = wanted
        self.plans: list[ActionPlan] = []
        self.prompts = load_prompts(several=wanted > 1)
        self.tools = offered(observation)
        self.plan_shape = plan_model(observation, "plan")
        self.draft_shape = plan_model(observation, "draft")
        self.repairs = 0
        self._ask = ask.at(observation.round)
        self._mark: str | None = None
        self.calls = PlannerCalls(
            config, chat, self._ask, observation, self.plan_shape, self.prompts, toolbox
        )

    def run(self) -> list[ActionPlan]:
        """Talk until the model has submitted the plans that are wanted, none with violations.

        Raises GaveUp at a limit.
        """
        messages = self._opening()
        while True:
            completion = self.calls.next_reply(messages)
            messages.append(_assistant_message(completion))
            before = len(self.plans)
            try:
                self._read(completion, messages)
            except _WrongReply as wrong:
                self._send_back(wrong, completion, messages)
                continue
            if len(self.plans) == self.wanted:
                return self.plans
            if len(self.plans) > before:
                self._ask_for_another(completion, messages)

    def spent(self) -> JsonObject:
        """What the round has cost so far, for the trace."""
        totals = self.calls.totals
        return {
            "calls": totals.calls,
            "retries": totals.retries,
            "repairs": self.repairs,
            "tokens": totals.tokens,
            "seconds": round(totals.seconds, 3),
        }

    # -- the opening ------------------------------------------------------------------------------

    def _opening(self) -> list[JsonObject]:
        how = self.prompts["planner_tools" if self.config.tool_calls else "planner_direct"]
        task = self.prompts["planner_task"].fill(
            round=str(self.observation.round),
            rounds=str(self.observation.rounds),
            observation=json.dumps(numbers(self.observation), ensure_ascii=True),
            feedback=self._feedback(),
            earlier=self._earlier(),
            notes=self._notes(),
        )
        if self.wanted > 1:
            task += "\n" + self.prompts["planner_several"].fill(wanted=str(self.wanted))
        return [
            {"role": "system", "content": self.prompts["planner"].fill(how=how.text.strip())},
            {"role": "user", "content": task},
        ]

    def _notes(self) -> str:
        """What people asked of the planner, each in an envelope; empty if nobody did."""
        if not self.observation.notes:
            return ""
        lines = []
        for note in self.observation.notes:
            text = f"{note.by}: {note.text}"
            lines.append(enveloped(text, self.mark, "note", MAX_NOTE))
        return self.prompts["planner_notes"].fill(lines="\n".join(lines))

    def _earlier(self) -> str:
        """What earlier plans said of their rounds, and who was right; empty before the first."""
        scored = track_record(self.observation)
        if not scored:
            return ""
        lines: list[str] = []
        told: list[JsonObject] = []
        for one in scored:
            figures = cast(JsonObject, asdict(one))
            rationale = str(figures.pop("rationale"))
            told.append(figures)
            lines.append(canonical_json(figures))
            lines.append(enveloped(rationale, self.mark, "rationale", MAX_RATIONALE))
        self.toolbox.record("who_was_right", {}, told)
        return self.prompts["planner_earlier"].fill(lines="\n".join(lines))

    def _feedback(self) -> str:
        """What was said about earlier plans of the round; empty if nothing was."""
        violations = [v for v in self.observation.feedback if v.hint or v.rule]
        if not violations:
            return ""
        lines = refusal_lines(violations[-MAX_PROBLEMS:], self.mark)
        return self.prompts["planner_feedback"].fill(said="\n".join(lines))

    @property
    def mark(self) -> str:
        """This conversation's random delimiter, filed so that a replay has the same words."""
        if self._mark is None:
            inputs = ChooseMark(observation=self.observation.content_digest)
            self._mark = self._ask.mark(inputs, delimiter)
        return self._mark

    # -- reading a reply --------------------------------------------------------------------------

    def _read(self, completion: Completion, messages: list[JsonObject]) -> None:
        """Do what the reply asks for: take the plans that it submits, or answer what it looks at."""
        if not self.config.tool_calls:
            self.plans.append(self._submitted(completion.text))
            return
        calls = completion.tool_calls
        if not calls:
            raise _WrongReply(["(whole): no tool was called; call submit_plan with your plan"])
        if len(calls) > MAX_CALLS_AT_ONCE:
            at_most = f"at most {MAX_CALLS_AT_ONCE} are answered"
            raise _WrongReply([f"(whole): {len(calls)} tool calls at once, {at_most}"])
        submitted = [call.arguments for call in calls if call.name == "submit_plan"]
        if submitted:
            self._take(submitted[: self.wanted - len(self.plans)])
            return
        # All are answered before any answer is sent: one that is wrong is the answer to all.
        answers = [_tool_message(call, self._answer(call)) for call in calls]
        messages += answers

    def _take(self, submitted: list[str]) -> None:
        """Take plans in their order, up to one that is wrong: its problems say how many were taken."""
        for place, text in enumerate(submitted):
            try:
                self.plans.append(self._submitted(text))
            except _WrongReply as wrong:
                taken = (
                    f"(whole): {len(self.plans)} of {self.wanted} plans are taken, this is the next"
                )
                raise _WrongReply([taken, *wrong.problems] if place else wrong.problems) from None

    def _answer(self, call: ToolCall) -> str:
        """What a tool that only looks says, as JSON."""
        try:
            if call.name == "check_plan":
                return self._checked_draft(call.arguments)
            if call.name == "predict" and not self.observation.methods:
                return self._predicted_draft(call.arguments)
            if call.name not in self.tools:
                known = ", ".join([*self.tools, "predict", "check_plan", "submit_plan"])
                raise _WrongReply([f"(whole): no tool {call.name!r}; there are {known}"])
            arguments = parse_unwrapped(call.arguments, self.tools[call.name])
            if isinstance(arguments, ShowExamples):
                return self._examples(arguments)
            return canonical_json(self.toolbox.call(call.name, arguments.model_dump()))
        except Invalid as error:
            raise _WrongReply([f"{call.name}.{problem}" for problem in error.problems]) from None
        except (NotStrict, UsageError) as error:
            raise _WrongReply([f"{call.name}: {error}"]) from None

    def _checked_draft(self, text: str) -> str:
        draft, violations = action_plan(parse_unwrapped(text, self.draft_shape))
        if draft is None:
            return canonical_json({"violations": [v.json_data() for v in violations]})
        return canonical_json(self.toolbox.check_plan(draft))

    def _predicted_draft(self, text: str) -> str:
        draft, violations = action_plan(parse_unwrapped(text, self.draft_shape))
        if draft is None:
            return canonical_json({"violations": [v.json_data() for v in violations]})
        return canonical_json(self.toolbox.predict(draft))

    def _examples(self, wanted: ShowExamples) -> str:
        """The labels of each example, and its text in an envelope if the config shows it."""
        shown = self.toolbox.show_examples(
            wanted.objective, wanted.slice, wanted.filter, wanted.n, text=self.config.show_text
        )
        lines = []
        for item in shown:
            labels = dict(item)
            answer = str(labels.pop("answer", ""))
            lines.append(canonical_json(labels_only(labels)))
            if self.config.show_text:
                lines.append(enveloped(answer, self.mark, "answer"))
        return "\n".join(lines) or "no such examples"

    def _submitted(self, text: str) -> ActionPlan:
        """The plan in this text. Raises _WrongReply if it breaks its shape or a limit."""
        try:
            plan, violations = action_plan(parse_unwrapped(text, self.plan_shape))
        except Invalid as error:
            raise _WrongReply(error.problems) from None
        except NotStrict as error:
            raise _WrongReply([f"(whole): {error}"]) from None
        if plan is not None:
            self.toolbox.check_plan(plan, self.plans)
            violations = self.toolbox.violations(plan, self.plans)
        if plan is None or violations:
            raise _WrongReply(problem_lines(violations))
        return self._marked(plan)

    def _marked(self, plan: ActionPlan) -> ActionPlan:
        """The plan, marked if the surrogate predicts it clearly worse than its own best.

        Raises _WrongReply if no further round of the run may explore so.
        """
        if self.observation.methods or not self.toolbox.has_surrogate:
            return plan
        told = self.toolbox.predict(plan)
        if not told["explores"]:
            return plan
        history = each_trial(self.observation.history)
        used = sum(past.plan.explores for past in history if past.plan)
        used += sum(sibling.explores for sibling in self.plans)
        trials = self.observation.rounds * self.wanted
        most = math.floor(self.config.explore_share * trials + ROUNDING)
        if used < most:
            return plan.model_copy(update={"explores": True})
        hint = "take a suggestion, or come nearer to one; predict says how much worse a draft is"
        violation = Violation(path="plan", rule="explore", value=used + 1, limit=most, hint=hint)
        raise _WrongReply(problem_lines([violation]))

    def _ask_for_another(self, completion: Completion, messages: list[JsonObject]) -> None:
        """Tell the model that its plan was taken, and how many more are wanted."""
        text = self.prompts["planner_another"].fill(
            accepted=str(len(self.plans)), wanted=str(self.wanted)
        )
        self._answer_all(completion, messages, text)

    def _send_back(
        self, wrong: _WrongReply, completion: Completion, messages: list[JsonObject]
    ) -> None:
        """Tell the model what was wrong. Raises GaveUp if no repair is left."""
        self.toolbox.record("repair", {"number": self.repairs + 1}, {"problems": wrong.problems})
        if self.repairs >= self.config.max_repairs:
            raise GaveUp(
                f"max_repairs: {self.repairs} repairs are used; still wrong: {wrong.problems[0]}"
            )
        self.repairs += 1
        text = self.prompts["planner_repair"].fill(
            problems="\n".join(wrong.problems), left=str(self.config.max_repairs - self.repairs)
        )
        self._answer_all(completion, messages, text)

    def _answer_all(self, completion: Completion, messages: list[JsonObject], text: str) -> None:
        """Answer a reply that called tools, or did not, with one text."""
        if completion.tool_calls:
            # Every tool call wants an answer, or the server refuses the conversation.
            messages += [_tool_message(call, text) for call in completion.tool_calls]
        else:
            messages.append({"role": "user", "content": text})


# -- messages as chat completions take them -------------------------------------------------------


def _assistant_message(completion: Completion) -> JsonObject:
    """What the model said, as it came: servers look for their own fields in it."""
    if completion.message is not None:
        return completion.message
    message: JsonObject = {"role": "assistant", "content": completion.text or None}
    if completion.tool_calls:
        message["tool_calls"] = [_sent_call(call) for call in completion.tool_calls]
    return message


def _sent_call(call: ToolCall) -> JsonObject:
    function: JsonObject = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool_message(call: ToolCall, text: str) -> JsonObject:
    return {"role": "tool", "tool_call_id": call.id, "content": text}
