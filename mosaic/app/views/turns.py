"""A planner's conversation, turn by turn: what it asked, was told, thought, drafted and concluded.

A turn of a model stands in the trace with its first two thousand characters and in the journal in
full, with what was sent; both are told together. Planners without a model have turns too: each
question to a tool, each conclusion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue, ValidationError

from eval.chat.metering import Tokens
from eval.chat.prices import Prices, money_text
from eval.chat.reply import Attempt
from eval.chat.strict_json import NotStrict, strict_json
from mosaic.app.runs import config_of
from mosaic.app.views.parts import (
    changes,
    count,
    plain,
    read_plan,
)
from mosaic.app.views.story import (
    Entry,
    Messages,
    Part,
    PlanChange,
    Raw,
    Said,
    Table,
    Words,
)
from mosaic.app.views.tool_turns import (
    TOLD,
    Conversation,
    last_weights,
    name_of,
    other_tool,
    turn,
)
from mosaic.core.errors import MosaicError
from mosaic.core.journal import Journal
from mosaic.core.rows import Step
from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.events import Conclusion, ToolCall, TraceEntry
from mosaic.core.types.records import AskPlanner
from tools.effects.transcripts import read_messages

# Characters of a model's name, which its server says.
MAX_NAME = 80


class Turns:
    """Tells conversations of one run."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._calls: dict[int, dict[tuple[str, int], list[Step[AskPlanner]]]] = {}
        self._prices = getattr(config_of(journal).planner, "prices", None)

    def of(self, lines: Sequence[TraceEntry], where: Conversation) -> list[Entry]:
        """The turns of one event."""
        turns = []
        for number, line in enumerate(lines, start=1):
            told = self._turn(line, where)
            place = {"id": f"{where.seq}.{number}", "round": where.round}
            turns.append(told.model_copy(update=place))
        return turns

    def _turn(self, line: TraceEntry, where: Conversation) -> Entry:
        if isinstance(line, Conclusion):
            words = Words(by="the planner", label="", text=line.conclusion)
            return turn("conclusion", "concluded", parts=[words])
        if line.tool == "model":
            return self._model(line, where)
        tell = TOLD.get(line.tool)
        made = other_tool(line)
        if tell is not None:
            try:
                made = tell(line, where)
            except (LookupError, TypeError, ValueError, AttributeError):
                # Another release's, or a planner's of somebody's own, under the same name.
                made = other_tool(line)
        raw = Raw(title="the call as JSON", data=line.json_data())
        return made.model_copy(update={"parts": [*made.parts, raw]})

    # -- a model's turn ---------------------------------------------------------------------------

    def _step(self, line: ToolCall, where: Conversation) -> Step[AskPlanner] | None:
        """The call that a line of the trace is about; None for an outage, which left no answer.

        A planner that gave up and was asked again has calls of the same number: the line's own has
        its seconds and its tokens.
        """
        if where.round not in self._calls:
            by_call: dict[tuple[str, int], list[Step[AskPlanner]]] = {}
            for step in self._journal.steps(AskPlanner, where.round):
                key = (step.inputs.conversation, step.inputs.call)
                by_call.setdefault(key, []).append(step)
            self._calls[where.round] = by_call
        number = line.arguments.get("call")
        if not isinstance(number, int):
            return None
        key = (str(line.arguments.get("prompt")), number - 1)
        told = line.result if isinstance(line.result, dict) else {}
        for step in reversed(self._calls[where.round].get(key, [])):
            answer = step.result
            if (answer.seconds, answer.charged) == (told.get("seconds"), told.get("charged")):
                return step
        return None

    def _model(self, line: ToolCall, where: Conversation) -> Entry:
        result = line.result if isinstance(line.result, dict) else {}
        step = self._step(line, where)
        said = _full(step) or result
        failed = result.get("failed")
        calls = _called(said)
        parts: list[Part] = []
        if step is not None:
            parts += self._sent(step, where)
        if said.get("reasoning"):
            text = str(said["reasoning"])
            parts.append(Words(by="the model", label="thought", text=text))
        if said.get("text"):
            parts.append(Words(by="the model", label="said", text=str(said["text"])))
        if failed:
            reason = str(result.get("reason") or "")
            parts.append(Words(by="MOSAIC", label="why", text=reason))
        parts += _drafts(calls, said, where)
        attempts = _attempts(result.get("attempts"))
        if len(attempts) > 1:
            parts.append(_attempt_table(attempts))
        parts.append(Raw(title="the reply as JSON", data=_record(step, line)))
        return turn(
            "model",
            _model_title(line, calls, failed),
            facts=self._facts(result, attempts),
            failed=bool(failed),
            parts=parts,
        )

    def _sent(self, step: Step[AskPlanner], where: Conversation) -> list[Part]:
        """What was sent that no earlier turn has shown; nothing in journals of earlier releases."""
        if not step.result.sent:
            return []
        try:
            messages = read_messages(self._store, step.result.sent)
            offered = self._store.get_json(step.result.offered)
        except (MosaicError, ValueError):
            return []
        earlier = where.told.get(step.inputs.conversation, 0)
        where.told[step.inputs.conversation] = len(messages)
        new = messages[earlier:]
        told = step.result.told or (_full(step).get("told") or [])
        title = f"what the model was sent: {count(len(new), 'new message')}"
        if earlier:
            title += f" after {earlier}"
        parts: list[Part] = [
            Messages(title=title, earlier=earlier, messages=said_messages([*new, *told]))
        ]
        if not earlier:
            parts.append(_offered(offered))
        return parts

    def _facts(self, result: Mapping[str, JsonValue], attempts: Sequence[Attempt]) -> list[str]:
        """Model, tokens, seconds, attempts and money of a call, as far as they are known."""
        facts = []
        if result.get("model"):
            facts.append(str(result["model"])[:MAX_NAME])
        usage = result.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("prompt"), int):
            facts.append(f"{usage['prompt']:,} tokens read")
            facts.append(f"{usage.get('completion') or 0:,} written")
        elif isinstance(result.get("charged"), int):
            facts.append(f"{result['charged']:,} tokens charged")
        if isinstance(result.get("seconds"), int | float):
            facts.append(f"{result['seconds']:.1f} s")
        if len(attempts) > 1:
            facts.append(count(len(attempts), "attempt"))
        money = money_of(attempts, self._prices)
        if money is not None:
            facts.append(f"cost {money_text(money)}")
        return facts


def money_of(attempts: Sequence[Attempt], prices: Prices | None) -> int | None:
    """What attempts cost in millionths; None without prices, or where it is not known."""
    if prices is None or not attempts:
        return None
    total = 0
    for attempt in attempts:
        if attempt.written is None:
            return None
        read = max(0, attempt.charged - attempt.written)
        total += prices.cost(Tokens(read, attempt.written))
    return total


def said_messages(messages: Sequence[JsonObject]) -> list[Said]:
    """Messages as people read them: who, what, and which tools were called."""
    return [_said(message) for message in messages]


def _said(message: JsonObject) -> Said:
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else plain(content)
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        text = f"(thought) {thought}\n\n{text}"
    calls = []
    items = message.get("tool_calls")
    for call in items if isinstance(items, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            calls.append(f"{function.get('name')} {function.get('arguments')}")
    return Said(role=str(message.get("role") or ""), text=text, calls=calls)


def _offered(offered: JsonValue) -> Table:
    """The tools that the model might call, or the schema of its answer."""
    tools = offered.get("tools") if isinstance(offered, dict) else None
    rows = []
    if isinstance(tools, list):
        for tool in tools:
            function = tool.get("function", {}) if isinstance(tool, dict) else {}
            assert isinstance(function, dict)
            rows.append([str(function.get("name")), str(function.get("description") or "")])
        return Table(title="the tools it was offered", header=["tool", "what for"], rows=rows)
    return Table(
        title="the shape its answer was to have",
        header=["JSON schema"],
        rows=[[json.dumps(offered, indent=1)]],
    )


def _full(step: Step[AskPlanner] | None) -> Mapping[str, Any]:
    """The completion as it was filed; empty if there is none."""
    return (step.result.completion or {}) if step else {}


def _record(step: Step[AskPlanner] | None, line: ToolCall) -> JsonValue:
    return step.result.json_data() if step else line.json_data()


def _called(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(tool, arguments as JSON text) of a reply."""
    calls = []
    for call in said.get("tool_calls") or []:
        if isinstance(call, dict):
            calls.append((str(call.get("name")), str(call.get("arguments") or "")))
    return calls


def _model_title(line: ToolCall, calls: Sequence[tuple[str, str]], failed: object) -> str:
    number = line.arguments.get("call")
    who = f"the model, call {number}," if isinstance(number, int) else "the model"
    if failed:
        return f"{who} gave no usable reply ({name_of(str(failed))})"
    if not calls:
        return f"{who} answered"
    names = list(dict.fromkeys(name_of(name) for name, _ in calls))
    if names == ["submit_plan"]:
        return f"{who} submitted a plan"
    return f"{who} called {', '.join(names)}"


def _drafts(
    calls: Sequence[tuple[str, str]], said: Mapping[str, Any], where: Conversation
) -> list[Part]:
    """What was submitted, as a change; other calls as a table."""
    parts: list[Part] = []
    rows = []
    submitted = [text for name, text in calls if name == "submit_plan"]
    if not calls and said.get("text"):
        submitted = [str(said["text"])]
    for name, text in calls:
        if name != "submit_plan":
            rows.append([name_of(name), text])
    if rows:
        parts.append(Table(title="the calls", header=["tool", "arguments"], rows=rows, texts=[1]))
    for text in submitted:
        try:
            data = strict_json(text)
        except NotStrict:
            continue
        where.drafted = read_plan(data)
        if where.drafted:
            parts.append(_against_last(where.drafted, where))
        rationale = data.get("rationale") if isinstance(data, dict) else None
        if isinstance(rationale, str):
            parts.append(Words(by="the model", label="why", text=rationale))
    return parts


def _against_last(after: Mapping[str, float], where: Conversation) -> PlanChange:
    """What a model submitted; buckets of a data set that it says nothing about are left out."""
    given = {_dataset(path) for path in after}
    before = {}
    for path, weight in last_weights(where).items():
        if path.startswith("ratios.") or _dataset(path) in given:
            before[path] = weight
    return changes("the plan against the one executed last", before, after)


def _dataset(path: str) -> str:
    """`bucket_weights.a` of `bucket_weights.a.x`."""
    return path.rpartition(".")[0]


def _attempts(value: JsonValue) -> list[Attempt]:
    found = []
    for item in value if isinstance(value, list) else []:
        try:
            found.append(Attempt.model_validate(item))
        except ValidationError:
            continue
    return found


def _attempt_table(attempts: Sequence[Attempt]) -> Table:
    rows = []
    for attempt in attempts:
        rows.append(
            [
                attempt.error or "accepted",
                f"{attempt.seconds:.1f}",
                f"{attempt.charged:,}",
                f"{attempt.max_tokens:,}",
            ]
        )
    header = ["outcome", "seconds", "tokens charged", "cap"]
    return Table(title="every attempt of this call", header=header, rows=rows)
