"""What a planner asked its tools and was told, as sentences with tables.

Each tool has a function here that tells one call of it; a tool that has none is shown as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    Move,
    Part,
    PlanChange,
    Table,
    Words,
)
from mosaic.core.types.base import LABEL
from mosaic.core.types.events import ToolCall
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation

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


def last_weights(where: Conversation) -> dict[str, float]:
    """The weights of the plan executed last, by path."""
    seen = where.seen
    return paths_of(seen.last_plan, seen.bucket_proportions) if seen else {}


def turn(
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


def name_of(text: str) -> str:
    """A name as it is; anything else stands among the details alone, since it may hold any text."""
    return text if LABEL.fullmatch(text) else "something without a proper name"


def other_tool(line: ToolCall) -> Entry:
    rows = [["arguments", plain(line.arguments)], ["result", plain(line.result)]]
    table = Table(title="what was asked and answered", header=["", ""], rows=rows, texts=[1])
    return turn("tool", f"asked {name_of(line.tool)}", parts=[table])


def _diagnosed(line: ToolCall, where: Conversation) -> Entry:
    asked, found = line.arguments, _object(line.result)
    objective, slice_ = name_of(str(asked["objective"])), name_of(str(asked["slice"]))
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
    return turn("tool", title, objectives=[objective], parts=parts)


def _target(where: Conversation, objective: str) -> float | None:
    for known in where.seen.objectives if where.seen else []:
        if known.name == objective:
            return known.target
    return None


def _examples(line: ToolCall, where: Conversation) -> Entry:
    asked, found = line.arguments, _list(line.result)
    objective, slice_ = name_of(str(asked["objective"])), name_of(str(asked["slice"]))
    which = name_of(str(asked.get("filter", "failed")))
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
    return turn("tool", title, objectives=[objective], parts=[table])


def _stock(line: ToolCall, where: Conversation) -> Entry:
    dataset, found = name_of(str(line.arguments["dataset"])), _object(line.result)
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
    return turn("tool", title, objectives=serving, parts=[table])


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
    return turn("tool", title, parts=[table])


def _influence(line: ToolCall, where: Conversation) -> Entry:
    dataset, found = name_of(str(line.arguments["dataset"])), _object(line.result)
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
    return turn("tool", title, parts=[Table(title="the estimates", header=header, rows=rows)])


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
    return turn("tool", title, facts=facts, failed=bool(violations), parts=parts)


def _repair(line: ToolCall, where: Conversation) -> Entry:
    problems = [str(problem) for problem in _list(_object(line.result)["problems"])]
    last = last_weights(where)
    by_path: dict[str, list[str]] = {}
    for problem in problems:
        path, _, text = problem.partition(": ")
        by_path.setdefault(path if text else "", []).append(text or problem)
    whole = [*by_path.pop("", []), *by_path.pop("(whole)", [])]
    moves = []
    for path, wrong in by_path.items():
        before, after = last.get(path), where.drafted.get(path)
        moves.append(Move(path=path, before=before, after=after, problems=wrong))
    title = (
        f"repair {int(str(line.arguments['number']))}: was told {count(len(problems), 'problem')}"
    )
    wrong_fields = PlanChange(
        title="what was wrong, beside the field", moves=moves, problems=whole, quoted=True
    )
    return turn("repair", title, failed=True, parts=[wrong_fields])


def _same(drafted: Mapping[str, float], weights: Mapping[str, float]) -> bool:
    """Whether two plans have the same weights, as far as they read the same in percent."""
    if drafted.keys() != weights.keys():
        return False
    return all(abs(drafted[path] - weight) < MOVED for path, weight in weights.items())


def _gave_up(line: ToolCall, where: Conversation) -> Entry:
    spent = _object(line.result)
    words = Words(by="MOSAIC", label="why", text=str(line.arguments["reason"]))
    facts = [f"{name} {value}" for name, value in spent.items()]
    return turn("repair", "gave up", facts=facts, failed=True, parts=[words])


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
    parts: list[Part] = [table]
    if "looks" in found:
        parts.append(_look_errors([_object(item) for item in _list(found["looks"])]))
        left_out = int(str(found.get("looks_left_out", 0)))
        title += f"; {count(left_out, 'older look')} left out" if left_out else ""
    return turn("tool", title, parts=parts)


def _look_errors(errors: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for error in errors:
        name = f"{error['objective']}, {error['kind']}"
        rows.append([name, signed(error["bias"]), figure(error["deviation"])])
    return Table(
        title="how looks differ from full trainings, as far as this run knows",
        header=["objective and kind of look", "all alike, points", "each by itself, points"],
        rows=rows,
    )


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
                f"{candidate['targets']:.3f}",
                f"{candidate['price']:.3f}",
                ", ".join(f"{name} {percent(ratios.get(name, 0.0))}" for name in datasets),
            ]
        )
    title = (
        f"searched {count(int(str(found['valued'])), 'mixture')}: "
        f"the best is worth {best[0]['value']:.3f}, the last plan {last['value']:.3f}"
    )
    table = Table(
        title="the best that differ from each other: value = gain in volume + nearer to targets - price",
        header=["", *names, "value", "gain in volume", "nearer to targets", "price", "mixture"],
        rows=rows,
        folded=False,
    )
    parts: list[Part] = [
        table,
        changes("the winner against the plan executed last", read_plan(last), read_plan(best[0])),
    ]
    return turn("tool", title, objectives=names, parts=parts)


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
