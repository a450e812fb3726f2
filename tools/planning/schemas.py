"""What a model may say to the tools, as pydantic models, and the tool definitions made of them.

The shape of a plan is made for one observation: every data set, bucket and objective is a named field of a closed
object, so that a grammar can hold a model to the names that exist. Rationale stands first, then the plan, then the
expected effect: the order in which a model should think, and in which a grammar makes it write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from mosaic.core.types.base import LABEL
from mosaic.core.types.data import Focus
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Filter

# A model's sum of decimals is a little off; more than this is a mistake that it has to see.
ROUNDING = 0.02
MAX_LABELS = 24
CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-4, le=4)]


class _Arguments(BaseModel):
    model_config = CLOSED


class DiagnoseSlice(_Arguments):
    """Mean, 95 % interval, failure rate, gap to target, reliability, breakdown and past means of one slice."""

    objective: str = Field(max_length=200)
    slice: str = Field(max_length=200)


class ShowExamples(_Arguments):
    """Labels and scores of some answers of a slice, worst first."""

    objective: str = Field(max_length=200)
    slice: str = Field(max_length=200)
    filter: Filter
    n: int = Field(ge=1, le=20)


class PoolStock(_Arguments):
    """Rows and tokens that each bucket of a data set can give."""

    dataset: str = Field(max_length=200)


class PastRounds(_Arguments):
    """Every past round: its plan, its means on the selection suites, whether it was accepted, forecast and outcome."""


LOOKING: dict[str, type[_Arguments]] = {
    "diagnose_slice": DiagnoseSlice,
    "show_examples": ShowExamples,
    "pool_stock": PoolStock,
    "past_rounds": PastRounds,
}
Kind = Literal["draft", "plan"]


def plan_model(observation: Observation, kind: Kind) -> type[BaseModel]:
    """The shape of a draft (shares only) or of a whole plan, for the names of one observation."""
    buckets = tuple(
        (dataset, tuple(per)) for dataset, per in observation.bucket_proportions.items()
    )
    labels = label_values(observation)
    attributes = tuple(sorted({a for per in labels.values() for a in per}))
    objectives = tuple(o.name for o in observation.objectives)
    return _plan_model(
        kind, tuple(observation.stock), buckets, tuple(labels), attributes, objectives
    )


@lru_cache(maxsize=16)
def _plan_model(
    kind: Kind,
    datasets: tuple[str, ...],
    buckets: tuple[tuple[str, tuple[str, ...]], ...],
    labelled: tuple[str, ...],
    attributes: tuple[str, ...],
    objectives: tuple[str, ...],
) -> type[BaseModel]:
    """Making models takes tens of milliseconds, and the names stay the same through a run."""
    weights = {
        dataset: (_named(f"Buckets{i}", names, Share), ...)
        for i, (dataset, names) in enumerate(buckets)
    }
    parts: dict[str, Any] = {
        "ratios": (_named("Ratios", datasets, Share), Field(description="sum 1")),
        "bucket_weights": (
            _fields("BucketWeights", weights),
            Field(description="sum 1 within each data set"),
        ),
    }
    if labelled:
        fields: dict[str, Any] = {
            "dataset": (_one_of(labelled), ...),
            "attribute": (_one_of(attributes), ...),
            "values": (
                Annotated[
                    list[Annotated[str, Field(max_length=40)]], Field(min_length=1, max_length=8)
                ],
                ...,
            ),
            "rows": (Literal["prefer", "leave_out"], ...),
        }
        criterion = create_model("Criterion", __config__=CLOSED, **fields)
        parts["focus"] = (GenericAlias(list, criterion), Field(max_length=8))
    if kind == "draft":
        return create_model("Draft", __config__=CLOSED, **parts)
    rationale = (str, Field(min_length=1, max_length=2000, description="why, in a few sentences"))
    expected = _named("Expected", objectives, Change)
    text = "expected change of each objective's selection mean against the plan executed last"
    parts = {"rationale": rationale, **parts, "expected": (expected, Field(description=text))}
    return create_model("Plan", __config__=CLOSED, **parts)


def definitions(observation: Observation, only_submit: bool = False) -> list[dict[str, Any]]:
    """The tools in the form that chat completions take."""
    tools: list[tuple[str, str, type[BaseModel]]] = [] if only_submit else [
        (name, (model.__doc__ or "").strip(), model) for name, model in LOOKING.items()
    ]  # fmt: skip
    if not only_submit:
        text = "Cost in tokens and violations of a draft plan; nothing is executed."
        tools.append(("check_plan", text, plan_model(observation, "draft")))
    tools.append(
        (
            "submit_plan",
            "Submit the plan of this round; ends the planning.",
            plan_model(observation, "plan"),
        )
    )
    return [
        {
            "type": "function",
            "function": {"name": name, "description": text, "parameters": schema_of(model)},
        }
        for name, text, model in tools
    ]


@lru_cache(maxsize=64)
def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model, without the titles and docstrings that cost tokens and say nothing. Shared between
    callers: to be read only."""
    cleaned = _untitled(model.model_json_schema())
    assert isinstance(cleaned, dict)
    cleaned.pop("description", None)
    return cleaned


def action_plan(said: BaseModel) -> tuple[ActionPlan | None, list[Violation]]:
    """The plan that a model's words name: decimals that miss a sum of 1 by rounding are scaled, anything else is a
    violation."""
    data = said.model_dump(by_alias=True)
    found: list[Violation] = []
    ratios = _scaled("ratios", data["ratios"], found)
    buckets = {
        d: _scaled(f"bucket_weights.{d}", per, found) for d, per in data["bucket_weights"].items()
    }
    focus: dict[str, dict[str, Any]] = {}
    for item in data.get("focus", []):
        side = "include" if item["rows"] == "prefer" else "exclude"
        focus.setdefault(item["dataset"], {"include": {}, "exclude": {}})[side][
            item["attribute"]
        ] = item["values"]
    if found:
        return None, found
    plan = ActionPlan(
        rationale=data.get("rationale", "A draft."),
        ratios=ratios,
        bucket_weights=buckets,
        focus={d: Focus.model_validate(f) for d, f in focus.items()},
        expected=data.get("expected", {}),
    )
    return plan, []


def label_values(observation: Observation) -> dict[str, dict[str, list[str]]]:
    """Data set -> attribute -> values that read as labels. An attribute with any free text, or too many, is not shown:
    values come from rows, and rows may hold anything."""
    out: dict[str, dict[str, list[str]]] = {}
    for dataset, attributes in observation.attributes.items():
        for name, values in attributes.items():
            texts = [v for v in values if isinstance(v, str) and LABEL.fullmatch(v)]
            if LABEL.fullmatch(name) and texts and len(texts) == len(values) <= MAX_LABELS:
                out.setdefault(dataset, {})[name] = texts
    return out


def _named(title: str, names: Iterable[str], kind: Any) -> type[BaseModel]:
    return _fields(title, dict.fromkeys(names, (kind, ...)))


def _fields(title: str, fields: Mapping[str, tuple[Any, Any]]) -> type[BaseModel]:
    """A closed object whose keys may be any text: the key is an alias, since a field of Python must be a name."""
    made: dict[str, Any] = {
        f"f{i}": (kind, Field(alias=name)) for i, (name, (kind, _)) in enumerate(fields.items())
    }
    return create_model(title, __config__=CLOSED, **made)


def _one_of(names: Iterable[str]) -> Any:
    return Literal[tuple(names)]


def _scaled(path: str, weights: dict[str, float], found: list[Violation]) -> dict[str, float]:
    total = math.fsum(weights.values())
    if abs(total - 1) > ROUNDING:
        hint = "the shares of one object sum to 1"
        found.append(Violation(path=path, rule="sum", value=round(total, 4), limit=1, hint=hint))
        return weights
    return {name: weight / total for name, weight in weights.items()}


def _untitled(value: Any) -> Any:
    """Drop `title` and the `description` of objects made by code; keys of `properties` are names and stay."""
    if isinstance(value, list):
        return [_untitled(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k != "title" or not isinstance(v, str)}
    return {
        k: {name: _untitled(v) for name, v in inner.items()}
        if k in ("properties", "$defs")
        else _untitled(inner)
        for k, inner in kept.items()
    }
