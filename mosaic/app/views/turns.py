"""A planner's conversation, turn by turn: what it asked, was told, thought, drafted and concluded.

A turn of a model stands in the trace with its first two thousand characters and in the journal in
full, with what was sent; both are told together. Planners that are no model have turns too: each
question to a tool, each conclusion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue, ValidationError

from eval.chat.metering import Tokens
from eval.chat.prices import Prices, money_text
from eval.chat.reply import Attempt
from eval.chat.strict_json import NotStrict, strict_json
from mosaic.app.runs import config_of
from mosaic.app.views.parts import (
    MOVED,
    changes,
    count,
    figure,
    paths_of,
    percent,
    plain,
    plan_change,
    read_plan,
    signed,
)
from mosaic.app.views.story import (
    Bar,
    Bars,
    Entry,
    Messages,
    Move,
    Part,
    PlanChange,
    Raw,
    Said,
    Table,
    Words,
)
from mosaic.core.errors import MosaicError
from mosaic.core.journal import Journal
from mosaic.core.rows import Step
from mosaic.core.store import Store
from mosaic.core.types.base import LABEL, JsonObject
from mosaic.core.types.events import Conclusion, ToolCall, TraceEntry
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.records import AskPlanner
from mosaic.core.types.runs import Observation
from tools.effects.transcripts import read_messages

AGAINST = "the draft against the plan executed last"


@dataclass
class Conversation:
    """Where turns stand: the round, the event, and what the planner was told."""

    round: int
    seq: int
    seen: Observation | None
    # How many messages of each conversation with a model were told in earlier turns.
    told: dict[str, int] = field(default_factory=dict)
    # The weights that the model submitted last, by path.
    drafted: dict[str, float] = field(default_factory=dict)


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
            return _turn("conclusion", "concluded", parts=[words])
        if line.tool == "model":
            return self._model(line, where)
        tell = TOLD.get(line.tool)
        made = _other(line)
        if tell is not None:
            try:
                made = tell(line, where)
            except (KeyError, TypeError, ValueError, AttributeError):
                # Another release's, or a planner's of somebody's own, under the same name.
                made = _other(line)
        raw = Raw(title="the call as JSON", data=line.json_data())
        return made.model_copy(update={"parts": [*made.parts, raw]})

    # -- a model's turn ---------------------------------------------------------------------------

    def _step(self, line: ToolCall, where: Conversation) -> Step[AskPlanner] | None:
        """The call that a line of the trace is about: the newest of its conversation and number."""
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
        found = self._calls[where.round].get(key, [])
        return found[-1] if found else None

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
        return _turn(
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
            facts.append(str(result["model"]))
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
        return f"{who} gave no usable reply ({_name(str(failed))})"
    if not calls:
        return f"{who} answered"
    names = list(dict.fromkeys(_name(name) for name, _ in calls))
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
            rows.append([_name(name), text])
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
    for path, weight in _last(where).items():
        if path.startswith("ratios.") or _dataset(path) in given:
            before[path] = weight
    return changes("the plan against the one executed last", before, after)


def _last(where: Conversation) -> dict[str, float]:
    """The weights of the plan executed last, by path."""
    seen = where.seen
    return paths_of(seen.last_plan, seen.bucket_proportions) if seen else {}


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


# -- questions to tools, told as sentences ---------------------------------------------------------


def _turn(
    kind: str,
    title: str,
    *,
    facts: Sequence[str] = (),
    objectives: Sequence[str] = (),
    failed: bool = False,
    parts: Sequence[Part] = (),
) -> Entry:
    return Entry(
        id="0",
        kind=kind,
        round=0,
        title=title,
        facts=list(facts),
        objectives=list(objectives),
        failed=failed,
        parts=list(parts),
    )


def _name(text: str) -> str:
    """A name as it is; what is no name may hold anything, and stands among the details alone."""
    return text if LABEL.fullmatch(text) else "something without a proper name"


def _other(line: ToolCall) -> Entry:
    rows = [["arguments", plain(line.arguments)], ["result", plain(line.result)]]
    table = Table(title="what was asked and answered", header=["", ""], rows=rows, texts=[1])
    return _turn("tool", f"asked {_name(line.tool)}", parts=[table])


def _diagnosed(line: ToolCall, where: Conversation) -> Entry:
    asked, found = line.arguments, _object(line.result)
    objective, slice_ = str(asked["objective"]), str(asked["slice"])
    score = _object(found["score"])
    rate = found.get("failure_rate")
    fails = f", {100 * float(str(rate)):.0f} % fail" if rate is not None else ""
    title = f"looked at {objective}, {slice_}: {figure(score['mean'])}{fails}"
    bar = Bar(
        label=f"{objective} {slice_}",
        mean=_float(score["mean"]),
        low=_float(score["low"]),
        high=_float(score["high"]),
        target=_target(where, objective),
        note=f"{score['n_scored']} scored",
    )
    rows = [
        ["gap to the target", figure(found.get("gap_to_target"))],
        ["reliability", plain(found.get("reliability"))],
        ["change since the round before", signed(found.get("change"))],
    ]
    past = found.get("past_means")
    for number, mean in past if isinstance(past, list) else []:
        rows.append([f"mean in round {number}", figure(mean)])
    for dimension, counts in _object(found.get("breakdown") or {}).items():
        shown = ", ".join(f"{value}: {n}" for value, n in _object(counts).items())
        rows.append([dimension, shown])
    parts: list[Part] = [
        Bars(title="steering mean", bars=[bar]),
        Table(title="in numbers", header=["", ""], rows=rows),
    ]
    return _turn("tool", title, objectives=[objective], parts=parts)


def _target(where: Conversation, objective: str) -> float | None:
    for known in where.seen.objectives if where.seen else []:
        if known.name == objective:
            return known.target
    return None


def _examples(line: ToolCall, where: Conversation) -> Entry:
    asked, found = line.arguments, _list(line.result)
    objective, slice_ = str(asked["objective"]), str(asked["slice"])
    which = str(asked.get("filter", "failed"))
    title = f"read {count(len(found), f'{which} example')} of {objective}, {slice_}"
    rows = []
    with_text = any("answer" in _object(item) for item in found)
    for item in found:
        example = _object(item)
        labels = []
        for name, value in _object(example.get("label") or {}).items():
            if not isinstance(value, str) or LABEL.fullmatch(value):
                labels.append(f"{name} {plain(value)}")
        row = [
            figure(example.get("score")),
            "failed" if example.get("failed") else "passed",
            ", ".join(labels),
        ]
        if with_text:
            row.append(str(example.get("answer") or ""))
        rows.append(row)
    header = ["score", "", "labels"] + (["the answer's beginning"] if with_text else [])
    table = Table(title="the examples", header=header, rows=rows, texts=[3] if with_text else [])
    return _turn("tool", title, objectives=[objective], parts=[table])


def _stock(line: ToolCall, where: Conversation) -> Entry:
    dataset, found = str(line.arguments["dataset"]), _object(line.result)
    rows = []
    tokens = 0
    for bucket, held in found.items():
        stock = _object(held)
        tokens += int(str(stock["tokens"]))
        rows.append([bucket, f"{stock['rows']:,}", f"{stock['tokens']:,}"])
    title = f"counted the stock of {dataset}: {count(len(rows), 'bucket')}, {tokens:,} tokens"
    serving = []
    if where.seen is not None:
        serving = [o.name for o in where.seen.objectives if dataset in o.datasets]
    table = Table(title="the stock", header=["bucket", "rows", "tokens"], rows=rows)
    return _turn("tool", title, objectives=serving, parts=[table])


def _past(line: ToolCall, where: Conversation) -> Entry:
    found = [_object(item) for item in _list(line.result)]
    names: list[str] = []
    for past in found:
        names += [name for name in _object(past.get("selection") or {}) if name not in names]
    rows = []
    for past in found:
        means = _object(past.get("selection") or {})
        number = "base" if past["round"] == 0 else str(past["round"])
        verdict = "accepted" if past.get("accepted") else "not accepted"
        ratios = _object(past.get("ratios") or {})
        mixture = ", ".join(f"{name} {percent(share)}" for name, share in ratios.items())
        rows.append([number, *[figure(means.get(name)) for name in names], verdict, mixture])
    title = f"looked back at {count(len(found), 'round')}"
    header = ["round", *names, "", "mixture"]
    table = Table(title="the past, selection means", header=header, rows=rows)
    return _turn("tool", title, parts=[table])


def _influence(line: ToolCall, where: Conversation) -> Entry:
    dataset, found = str(line.arguments["dataset"]), _object(line.result)
    rows = []
    for bucket, effects in found.items():
        for objective, effect in _object(effects).items():
            if objective == "share":
                continue
            known = _object(effect)
            clear = "clear" if known.get("clear") else ""
            value = f"{float(str(known['effect'])):+.4f}"
            error = f"{float(str(known['standard_error'])):.4f}"
            rows.append([bucket, objective, value, error, clear])
    title = f"read the influence of {dataset}: {count(len(found), 'bucket')}"
    header = ["bucket", "on", "fall of the loss per percent", "standard error", ""]
    return _turn("tool", title, parts=[Table(title="the estimates", header=header, rows=rows)])


def _checked(line: ToolCall, where: Conversation) -> Entry:
    found = _object(line.result)
    violations = [Violation.model_validate(item) for item in _list(found["violations"])]
    plan = ActionPlan.model_validate(line.arguments["plan"])
    title = "checked a draft: it keeps every limit"
    if violations:
        title = f"checked a draft: it breaks {count(len(violations), 'limit')}"
    parts: list[Part] = []
    if where.drafted and _same(where.drafted, paths_of(plan)):
        title = title.replace("a draft", "the plan as submitted")
        if violations:
            parts.append(plan_change("what breaks a limit", plan, where.seen, violations))
    else:
        parts.append(plan_change(AGAINST, plan, where.seen, violations))
        parts.append(Words(by="the planner", label="why", text=plan.rationale))
    facts = [f"costs {found['tokens']:,} training tokens"]
    return _turn("tool", title, facts=facts, failed=bool(violations), parts=parts)


def _repair(line: ToolCall, where: Conversation) -> Entry:
    problems = [str(problem) for problem in _list(_object(line.result)["problems"])]
    last = _last(where)
    by_path: dict[str, list[str]] = {}
    for problem in problems:
        path, _, text = problem.partition(": ")
        by_path.setdefault(path if text else "", []).append(text or problem)
    whole = [*by_path.pop("", []), *by_path.pop("(whole)", [])]
    moves = []
    for path, wrong in by_path.items():
        before, after = last.get(path), where.drafted.get(path)
        moves.append(Move(path=path, before=before, after=after, problems=wrong))
    title = f"repair {line.arguments['number']}: was told {count(len(problems), 'problem')}"
    wrong_fields = PlanChange(
        title="what was wrong, beside the field", moves=moves, problems=whole, quoted=True
    )
    return _turn("repair", title, failed=True, parts=[wrong_fields])


def _same(drafted: Mapping[str, float], weights: Mapping[str, float]) -> bool:
    """Whether two plans have the same weights, as far as they read the same in percent."""
    if drafted.keys() != weights.keys():
        return False
    return all(abs(drafted[path] - weight) < MOVED for path, weight in weights.items())


def _gave_up(line: ToolCall, where: Conversation) -> Entry:
    spent = _object(line.result)
    words = Words(by="MOSAIC", label="why", text=str(line.arguments["reason"]))
    facts = [f"{name} {value}" for name, value in spent.items()]
    return _turn("repair", "gave up", facts=facts, failed=True, parts=[words])


def _fitted(line: ToolCall, where: Conversation) -> Entry:
    found = _object(line.result)
    slices = [_object(item) for item in _list(found["slices"])]
    rows = []
    for slice_ in slices:
        rows.append([f"{slice_['objective']} {slice_['slice']}", signed(slice_["doubling"])])
    title = (
        f"fitted how {count(len(slices), 'slice')} answered to tokens, "
        f"from {count(int(str(found['mixtures'])), 'measured mixture')}"
    )
    table = Table(
        title="what doubling an objective's tokens is believed to add",
        header=["slice", "points"],
        rows=rows,
    )
    return _turn("tool", title, parts=[table])


def _searched(line: ToolCall, where: Conversation) -> Entry:
    found = _object(line.result)
    best = [_object(item) for item in _list(found["best"])]
    last = _object(found["last"])
    names = list(_object(best[0]["predicted"]))
    datasets = list(_object(best[0]["ratios"]))
    rows = []
    for rank, candidate in [*enumerate(best, start=1), (0, last)]:
        predicted = _object(candidate["predicted"])
        ratios = _object(candidate["ratios"])
        rows.append(
            [
                str(rank) if rank else "last plan",
                *[figure(predicted[name]) for name in names],
                f"{candidate['value']:.3f}",
                f"{candidate['volume']:.3f}",
                f"{candidate['missed_targets']:.3f}",
                f"{candidate['price']:.3f}",
                ", ".join(f"{name} {percent(ratios.get(name, 0.0))}" for name in datasets),
            ]
        )
    title = (
        f"searched {count(int(str(found['valued'])), 'mixture')}: "
        f"the best is worth {best[0]['value']:.3f}, the last plan {last['value']:.3f}"
    )
    table = Table(
        title="the best that differ from each other: value = volume - missed targets - price",
        header=["", *names, "value", "volume", "missed targets", "price", "mixture"],
        rows=rows,
        folded=False,
    )
    parts: list[Part] = [
        table,
        changes("the winner against the plan executed last", read_plan(last), read_plan(best[0])),
    ]
    return _turn("tool", title, objectives=names, parts=parts)


TOLD: Mapping[str, Callable[[ToolCall, Conversation], Entry]] = {
    "diagnose_slice": _diagnosed,
    "show_examples": _examples,
    "pool_stock": _stock,
    "past_rounds": _past,
    "estimate_influence": _influence,
    "check_plan": _checked,
    "repair": _repair,
    "gave_up": _gave_up,
    "fit_responses": _fitted,
    "search_mixtures": _searched,
}


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object is wanted")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is wanted")
    return value


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
