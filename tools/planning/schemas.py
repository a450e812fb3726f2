"""What a model may say to the tools, as pydantic models, and the tool definitions made of them.

The shape of a plan is made for one observation: every data set, bucket and objective is a named
field of a closed object, so that a grammar can hold a model to the names that exist. Rationale
stands first, then the plan, then the expected effect: the order in which a model should think, and
in which a grammar makes it write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import GenericAlias
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from mosaic.core.types.base import LABEL, JsonObject
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
# Field name -> (type, default), as `pydantic.create_model` takes it.
FieldDefinitions = dict[str, Any]


METHOD_SHARES = (
    "sum 1: the share of the round's tokens that each method takes. The first trains on the mixture; "
    "dpo then draws answers to practice prompts from what came of it, and trains on pairs of answers "
    "of which one is better. The L1 distance from the last plan's is at most max_method_step"
)
PRACTICE_WEIGHTS = "sum 1: which practice prompts are drawn, by objective/slice"

# -- the arguments of tools that only look; their docstrings are what the model reads --------------


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


class EstimateInfluence(_Arguments):
    """How much the steering loss of each objective falls per percent of the round's tokens that a bucket gets more.

    It was estimated from gradients around the adapter trained last. Positive helps. An effect that is not clear
    cannot be told from zero.
    """

    dataset: str = Field(max_length=200)


class Bound(_Arguments):
    """A bound on a data set's share."""

    dataset: str = Field(max_length=200)
    at_least: float = Field(ge=0, le=1)
    at_most: float = Field(ge=0, le=1)


class Suggest(_Arguments):
    """Mixtures that a surrogate, fitted to the rounds of this run, expects to gain most, with what it predicts.

    Each is inside the limits, and chosen as if those before it were being tried. `bounds` limit the shares of data
    sets; an empty list leaves them free.
    """

    n: int = Field(ge=1, le=5)
    bounds: list[Bound] = Field(max_length=20)


ARGUMENTS: dict[str, type[_Arguments]] = {
    "diagnose_slice": DiagnoseSlice,
    "show_examples": ShowExamples,
    "pool_stock": PoolStock,
    "past_rounds": PastRounds,
    "suggest": Suggest,
    "estimate_influence": EstimateInfluence,
}


def offered(observation: Observation) -> dict[str, type[_Arguments]]:
    """The tools that only look, by name: `estimate_influence` only if there is one to read.

    `suggest` only where the mixture is all that a plan decides: the surrogate sees nothing else.
    """
    names = dict(ARGUMENTS)
    if observation.methods:
        del names["suggest"]
    if observation.influence is None:
        del names["estimate_influence"]
    return names


def definitions(observation: Observation, only_submit: bool = False) -> list[JsonObject]:
    """The tools in the form that chat completions take.

    `only_submit` leaves out all but `submit_plan`.
    """
    tools = []
    if not only_submit:
        for name, arguments in offered(observation).items():
            tools.append(_definition(name, (arguments.__doc__ or "").strip(), arguments))
        if not observation.methods:
            text = (
                "Predicted selection means of a draft plan with 90 % intervals, and whether it is "
                "clearly worse than the best suggestion."
            )
            tools.append(_definition("predict", text, plan_model(observation, "draft")))
        text = "Cost in tokens and violations of a draft plan; nothing is executed."
        tools.append(_definition("check_plan", text, plan_model(observation, "draft")))
    text = "Submit the plan of this round; ends the planning."
    tools.append(_definition("submit_plan", text, plan_model(observation, "plan")))
    return tools


def _definition(name: str, description: str, arguments: type[BaseModel]) -> JsonObject:
    parameters = schema_of(arguments)
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


# -- the shape of a plan --------------------------------------------------------------------------

PlanKind = Literal["draft", "plan"]


def plan_model(observation: Observation, kind: PlanKind) -> type[BaseModel]:
    """The shape of a draft (shares only) or of a whole plan, for the names of one observation."""
    buckets = []
    for dataset, per_bucket in observation.bucket_proportions.items():
        buckets.append((dataset, tuple(per_bucket)))
    labels = label_values(observation)
    attributes: set[str] = set()
    for per_attribute in labels.values():
        attributes.update(per_attribute)
    return _plan_model(
        kind,
        datasets=tuple(observation.stock),
        buckets=tuple(buckets),
        labelled=tuple(labels),
        attributes=tuple(sorted(attributes)),
        objectives=tuple(observation.names),
        methods=tuple(observation.methods),
        practice=tuple(observation.practice),
    )


# Making models takes tens of milliseconds, and the names stay the same through a run.
@lru_cache(maxsize=16)
def _plan_model(
    kind: PlanKind,
    datasets: tuple[str, ...],
    buckets: tuple[tuple[str, tuple[str, ...]], ...],
    labelled: tuple[str, ...],
    attributes: tuple[str, ...],
    objectives: tuple[str, ...],
    methods: tuple[str, ...],
    practice: tuple[str, ...],
) -> type[BaseModel]:
    weights = {}
    for number, (dataset, names) in enumerate(buckets):
        weights[dataset] = _closed_object(f"Buckets{number}", dict.fromkeys(names, Share))
    ratios = _closed_object("Ratios", dict.fromkeys(datasets, Share))
    bucket_weights = _closed_object("BucketWeights", weights)
    shares: FieldDefinitions = {
        "ratios": (ratios, Field(description="sum 1")),
        "bucket_weights": (bucket_weights, Field(description="sum 1 within each data set")),
    }
    if labelled:
        criterion = _criterion(labelled, attributes)
        shares["focus"] = (GenericAlias(list, criterion), Field(max_length=8))
    if methods:
        described = _closed_object("MethodShares", dict.fromkeys(methods, Share))
        shares["method_shares"] = (described, Field(description=METHOD_SHARES))
        described = _closed_object("PracticeWeights", dict.fromkeys(practice, Share))
        shares["practice_weights"] = (described, Field(description=PRACTICE_WEIGHTS))
    if kind == "draft":
        return create_model("Draft", __config__=CLOSED, **shares)
    expected = _closed_object("Expected", dict.fromkeys(objectives, Change))
    text = "expected change of each objective's selection mean against the plan executed last"
    rationale = Field(min_length=1, max_length=2000, description="why, in a few sentences")
    parts: FieldDefinitions = {
        "rationale": (str, rationale),
        **shares,
        "expected": (expected, Field(description=text)),
    }
    return create_model("Plan", __config__=CLOSED, **parts)


def _criterion(datasets: tuple[str, ...], attributes: tuple[str, ...]) -> type[BaseModel]:
    """One line of a focus: rows of a data set with these labels are preferred or left out."""
    value = Annotated[str, Field(max_length=40)]
    fields: FieldDefinitions = {
        "dataset": (_one_of(datasets), ...),
        "attribute": (_one_of(attributes), ...),
        "values": (Annotated[list[value], Field(min_length=1, max_length=8)], ...),
        "rows": (Literal["prefer", "leave_out"], ...),
    }
    return create_model("Criterion", __config__=CLOSED, **fields)


def _closed_object(title: str, types: Mapping[str, object]) -> type[BaseModel]:
    """A closed object with a required field for each key, which may be any text.

    The key is an alias, since a field of Python must be an identifier.
    """
    fields: FieldDefinitions = {}
    for number, (name, type_) in enumerate(types.items()):
        fields[f"f{number}"] = (type_, Field(alias=name))
    return create_model(title, __config__=CLOSED, **fields)


def _one_of(names: Iterable[str]) -> object:
    return Literal[tuple(names)]


def label_values(observation: Observation) -> dict[str, dict[str, list[str]]]:
    """Data set -> attribute -> values that read as labels.

    An attribute with any free text, or with too many values, is not shown: values come from rows,
    and rows may hold anything.
    """
    labels: dict[str, dict[str, list[str]]] = {}
    for dataset, attributes in observation.attributes.items():
        for name, values in attributes.items():
            texts = [v for v in values if isinstance(v, str) and LABEL.fullmatch(v)]
            if LABEL.fullmatch(name) and texts and len(texts) == len(values) <= MAX_LABELS:
                labels.setdefault(dataset, {})[name] = texts
    return labels


# -- the JSON Schema of a shape -------------------------------------------------------------------


@lru_cache(maxsize=64)
def schema_of(model: type[BaseModel]) -> JsonObject:
    """The JSON Schema of a model, without titles and docstrings that cost tokens and say nothing.

    It is shared between callers and must not be changed.
    """
    schema = _untitled(model.model_json_schema())
    assert isinstance(schema, dict)
    schema.pop("description", None)
    return schema


def _untitled(value: JsonValue) -> JsonValue:
    """Drop every `title`, except properties and definitions of that name."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept: JsonObject = {}
    for key, inner in value.items():
        if key == "title" and isinstance(inner, str):
            continue
        if key in ("properties", "$defs"):
            named = cast(JsonObject, inner)
            kept[key] = {name: _untitled(schema) for name, schema in named.items()}
        else:
            kept[key] = _untitled(inner)
    return kept


# -- from the model's words to a plan -------------------------------------------------------------


def action_plan(reply: BaseModel) -> tuple[ActionPlan | None, list[Violation]]:
    """The plan that a model's reply names, or why it is none.

    Decimals that miss a sum of 1 by rounding are scaled; anything further off is a violation.
    """
    data = reply.model_dump(by_alias=True)
    violations: list[Violation] = []
    ratios = _scaled("ratios", data["ratios"], violations)
    buckets = {}
    for dataset, weights in data["bucket_weights"].items():
        buckets[dataset] = _scaled(f"bucket_weights.{dataset}", weights, violations)
    if violations:
        return None, violations
    others: dict[str, Any] = {}
    for name in ("method_shares", "practice_weights"):
        if name in data:
            others[name] = _scaled(name, data[name], violations)
    if violations:
        return None, violations
    criteria: dict[str, dict[str, JsonObject]] = {}
    for item in data.get("focus", []):
        sides = criteria.setdefault(item["dataset"], {"include": {}, "exclude": {}})
        side = "include" if item["rows"] == "prefer" else "exclude"
        sides[side][item["attribute"]] = item["values"]
    focus = {dataset: Focus.model_validate(sides) for dataset, sides in criteria.items()}
    plan = ActionPlan(
        rationale=data.get("rationale", "A draft."),
        ratios=ratios,
        bucket_weights=buckets,
        focus=focus,
        expected=data.get("expected", {}),
        **others,
    )
    return plan, []


def _scaled(path: str, weights: dict[str, float], violations: list[Violation]) -> dict[str, float]:
    """Weights divided by their sum. A sum that is off by more than rounding becomes a violation."""
    total = math.fsum(weights.values())
    if abs(total - 1) > ROUNDING:
        hint = "the shares of one object sum to 1"
        violations.append(
            Violation(path=path, rule="sum", value=round(total, 4), limit=1, hint=hint)
        )
        return weights
    return {name: weight / total for name, weight in weights.items()}
