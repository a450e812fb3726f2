"""The form by which a person decides: the plan as edited in it, and what was typed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from mosaic.app.files import parse_plan, read_json
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, ProposedPlan

# What the fields of one of several plans begin with.
PLAN = re.compile(r"^plan\.\d+\.")
SHARES = ("ratios.", "bucket_weights.", "method_shares.", "focus.")
# Fields are rounded to tenths of a percent, so each may be off by half of that, and a bit.
SLACK = 0.051
Form = Mapping[str, str]


def prefix_of(asked: ApprovalRequest, number: int) -> str:
    """What the names of a plan's fields begin with; nothing if the question has one plan."""
    return f"plan.{number}." if len(asked.plans) > 1 else ""


def ticked(asked: ApprovalRequest, form: Form) -> list[int]:
    """Numbers of the plans that are to run: one that stands alone, or those with `plan.N.run`.

    Raises UsageError if none is.
    """
    count = len(asked.plans)
    found = [n for n in range(1, count + 1) if count == 1 or f"plan.{n}.run" in form]
    if not found:
        raise UsageError("no plan is ticked; tick those that are to run, or reject them all")
    return found


def edited_plans(asked: ApprovalRequest, form: Form) -> dict[int, ActionPlan]:
    """The plans that are to run and in which something was typed, by their numbers."""
    found = {}
    for number in ticked(asked, form):
        plan = edited_plan(asked, form, number)
        shown = asked.plans[number - 1].plan
        typed = plan.model_copy(update={"rationale": shown.rationale}) != shown
        if typed or len(asked.plans) == 1:
            found[number] = plan
    return found


def edited_plan(asked: ApprovalRequest, form: Form, number: int = 1) -> ActionPlan:
    """A plan that was asked about with the form's percentages and focus.

    Fields are `ratios.D`, `bucket_weights.D.B` and `method_shares.M`, in percent with a point or a
    comma, and `focus.D` as JSON, empty for none. A group with a missing field stays as it is.
    Raises UsageError if a field is not a number, or if a group does not sum to 100.
    """
    shown, prefix = asked.plans[number - 1], prefix_of(asked, number)
    form = {name.removeprefix(prefix): form[name] for name in form if name.startswith(prefix)}
    data = shown.plan.json_data()
    ratios: dict[str, float] = data["ratios"]
    buckets: dict[str, dict[str, float]] = data["bucket_weights"]
    _add_missing(shown, form, ratios, buckets)
    _take(form, "ratios", ratios)
    for dataset, weights in buckets.items():
        _take(form, f"bucket_weights.{dataset}", weights)
    _take_methods(shown, form, data)
    _take_focus(shown, form, data["focus"])
    data["rationale"] = f"Edited by a person. {shown.plan.rationale}"[:8000]
    return parse_plan(json.dumps(data), "the edited plan")


def _take_methods(shown: ProposedPlan, form: Form, data: JsonObject) -> None:
    """Put the form's method shares into a plan; one that named none may go on naming none."""
    methods = {}
    for change in shown.changes:
        group, _, name = change.path.partition(".")
        if group == "method_shares" and isinstance(change.after, float):
            methods[name] = change.after
    if not methods:
        return
    before = dict(methods)
    _take(form, "method_shares", methods)
    if methods != before:
        data["method_shares"] = {**methods}


def _take_focus(shown: ProposedPlan, form: Form, focus: JsonObject) -> None:
    """Put the focus of each data set as it was typed into a plan."""
    for dataset in dict.fromkeys(demand.dataset for demand in shown.stock):
        field = f"focus.{dataset}"
        if field not in form:
            continue
        text = form[field].strip()
        if not text:
            focus.pop(dataset, None)
            continue
        focus[dataset] = read_json(text, field)


def focus_text(plan: ActionPlan, dataset: str) -> str:
    """The focus of a data set as a field of the form shows it."""
    found = plan.focus.get(dataset)
    return json.dumps(found.json_data()) if found is not None else ""


def _add_missing(
    shown: ProposedPlan, form: Form, ratios: dict[str, float], buckets: dict[str, dict[str, float]]
) -> None:
    """Add a share of 0 for what the form names and the plan leaves out."""
    for demand in shown.stock:
        if f"ratios.{demand.dataset}" in form:
            ratios.setdefault(demand.dataset, 0.0)
        if f"bucket_weights.{demand.dataset}.{demand.bucket}" in form:
            buckets.setdefault(demand.dataset, {}).setdefault(demand.bucket, 0.0)


def _take(form: Form, path: str, weights: dict[str, float]) -> None:
    """Replace a group of weights by the form's percentages, if the form has all of them.

    What a person typed is rounded to tenths of a percent: the group is scaled to sum to exactly 1.
    A group in which nothing was typed keeps its own digits.
    """
    percents: dict[str, float] = {}
    for name in weights:
        value = _percent(form, f"{path}.{name}")
        if value is None:
            return
        percents[name] = value
    total = sum(percents.values())
    if abs(total - 100) > SLACK * len(percents):
        raise UsageError(f"{path}: the shares sum to {total:.1f} %, not to 100 %")
    for name, weight in weights.items():
        if abs(percents[name] - round(100 * weight, 1)) >= 1e-9:
            weights.update({name: percent / total for name, percent in percents.items()})
            return


def _percent(form: Form, field: str) -> float | None:
    if field not in form:
        return None
    try:
        value = float(form[field].strip().replace(",", "."))
    except ValueError:
        raise UsageError(f"{field}: {form[field][:40]!r} is not a number") from None
    if not 0 <= value <= 100:
        raise UsageError(f"{field}: {value:g} is not between 0 and 100")
    return value


def typed_shares(form: Form) -> list[tuple[str, str]]:
    """The shares in a form as they were typed: (path, text)."""
    found = []
    for field, text in form.items():
        if PLAN.sub("", field).startswith(SHARES):
            found.append((field, text))
    return found
