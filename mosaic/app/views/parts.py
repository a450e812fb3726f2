"""Parts of entries that several events share: bars of slices, changes of plans, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from agent.weights import bucket_weights
from mosaic.app.views.story import Bar, Move, PlanChange, Table
from mosaic.core.types.base import LABEL
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import ActionPlan, Forecast, Violation
from mosaic.core.types.runs import Observation

# A share that moved by less is told as unchanged: it reads the same in percent with one digit.
MOVED = 0.0005
# No share is larger; what a model wrote beyond it is shown in its own words alone.
LARGEST = 1e6


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "slice"), count(1200, "row")
    ('1 slice', '1,200 rows')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def figure(value: object) -> str:
    """A number with two digits, or a dash if there is none."""
    return f"{value:.2f}" if isinstance(value, int | float) else "-"


def signed(value: object) -> str:
    """A difference with its sign and two digits, or a dash if there is none; what rounds to 0 is +0.00."""
    return f"{value:+z.2f}" if isinstance(value, int | float) else "-"


def percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def plain(value: object) -> str:
    """A value in a cell: numbers and names as they are, other plain data as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


# -- slices ---------------------------------------------------------------------------------------


def slice_bars(seen: Observation) -> list[Bar]:
    """Every slice that was scored, worst first, with how many failed and how sure that is."""
    targets = {objective.name: objective.target for objective in seen.objectives}
    bars = []
    for slice_ in seen.profile.slices:
        score = slice_.score
        bars.append(
            Bar(
                label=f"{slice_.objective} {slice_.slice}",
                mean=score.mean,
                low=score.low,
                high=score.high,
                target=targets.get(slice_.objective),
                note=slice_note(slice_),
            )
        )
    return bars


def slice_note(slice_: SliceProfile) -> str:
    """What stands beside a slice's bar: failures, a believable change, little reliability."""
    notes = []
    if slice_.failure_rate is not None:
        notes.append(f"{100 * slice_.failure_rate:.0f} % fail")
    if slice_.significant and slice_.change is not None:
        notes.append(f"{slice_.change:+z.2f} since the last round")
    if slice_.reliability != "high":
        notes.append(f"reliability {slice_.reliability}")
    return ", ".join(notes)


def outcome_table(forecast: Sequence[Forecast]) -> Table:
    """What was expected of each objective beside what was measured."""
    rows = []
    for line in forecast:
        missed = None if line.actual is None else line.actual - line.expected
        rows.append([line.objective, signed(line.expected), signed(line.actual), signed(missed)])
    return Table(
        title="outcome beside the forecast, change of the selection mean",
        header=["objective", "expected", "measured", "difference"],
        rows=rows,
        folded=False,
    )


# -- plans ----------------------------------------------------------------------------------------


def paths_of(
    plan: ActionPlan, proportions: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, float]:
    """Every weight of a plan by its path; buckets that it leaves open get the pools' proportions."""
    found = {f"ratios.{name}": share for name, share in plan.ratios.items()}
    for dataset in dict.fromkeys([*plan.ratios, *plan.bucket_weights]):
        weights: Mapping[str, float] = plan.bucket_weights.get(dataset, {})
        if proportions and dataset in proportions:
            weights = bucket_weights(plan, dataset, proportions)
        for bucket, weight in weights.items():
            found[f"bucket_weights.{dataset}.{bucket}"] = weight
    for method, share in plan.method_shares.items():
        found[f"method_shares.{method}"] = share
    for slice_, weight in plan.practice_weights.items():
        found[f"practice_weights.{slice_}"] = weight
    return found


def plan_change(
    title: str,
    plan: ActionPlan,
    seen: Observation | None,
    violations: Sequence[Violation] = (),
) -> PlanChange:
    """A plan against the one executed last, with what is wrong beside the field it names."""
    proportions = seen.bucket_proportions if seen else None
    after = paths_of(plan, proportions)
    before = paths_of(seen.last_plan, proportions) if seen else {}
    return changes(title, before, after, violations)


def changes(
    title: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    violations: Sequence[Violation] = (),
) -> PlanChange:
    """Weights by path, before and after.

    A violation of a path other than a weight stands in a row of its own; one of the plan as a whole
    (`plan`, `ratios`) beside none.
    """
    problems: dict[str, list[str]] = {}
    for violation in violations:
        problems.setdefault(violation.path, []).append(problem_of(violation))
    moves: list[Move] = []
    unchanged = 0
    for path in dict.fromkeys([*after, *before]):
        old, new = before.get(path), after.get(path)
        wrong = problems.pop(path, [])
        still = old is not None and new is not None and abs(new - old) < MOVED
        if still and not wrong and not path.startswith("ratios."):
            unchanged += 1
        else:
            moves.append(Move(path=path, before=old, after=new, problems=wrong))
    whole = problems.pop("plan", [])
    for path, wrong in problems.items():
        moves.append(Move(path=path, before=None, after=None, problems=wrong))
    return PlanChange(title=title, moves=moves, unchanged=unchanged, problems=whole)


def problem_of(violation: Violation) -> str:
    """Why a field may not be so, in numbers and our own words: nothing that others wrote."""
    value, limit = _number(violation.value), _number(violation.limit)
    text = violation.rule.replace("_", " ")
    if value:
        text += f": {value}"
    if limit:
        text += f", allowed is {limit}"
    if violation.hint and violation.rule != "rejected":
        text += f"; {violation.hint}"
    return text


def _number(value: object) -> str:
    """A number or a name as it is shown; nothing for what a model or a person may have written."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) and LABEL.fullmatch(value) else ""


def read_plan(data: object) -> dict[str, float]:
    """Weights by path in what a model submitted, as far as they are numbers.

    >>> read_plan({"ratios": {"a": 0.5, "b": "much"}, "bucket_weights": {"a": {"x": 1}}})
    {'ratios.a': 0.5, 'bucket_weights.a.x': 1.0}
    """
    found: dict[str, float] = {}
    if not isinstance(data, dict):
        return found
    for group in ("ratios", "method_shares", "practice_weights"):
        for name, weight in _items(data.get(group)):
            if _is_weight(weight):
                found[f"{group}.{name}"] = float(weight)
    for dataset, weights in _items(data.get("bucket_weights")):
        for bucket, weight in _items(weights):
            if _is_weight(weight):
                found[f"bucket_weights.{dataset}.{bucket}"] = float(weight)
    return found


def _is_weight(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a weight could be: a model may write one of any length."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _items(value: object) -> list[tuple[str, object]]:
    return [(str(name), item) for name, item in value.items()] if isinstance(value, dict) else []
