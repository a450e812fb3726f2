"""What the scripted model says: a planning conversation, a plan, or a value of a JSON schema.

Like a model, it reads nothing but the request: the numbers in the task, the answers of the tools,
and what was wrong with its last plan. It keeps no state, so the same request gets the same answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from pydantic import JsonValue

from mosaic.core.types.base import JsonObject

# How many of the worst slices the planner looks at, and names in its rationale.
LOOKS = 2
# How far toward its wish the first draft goes. Each correction halves it.
FIRST_STEP = 0.9
# What a bucket needs if nothing is known about it, on the scale of `5.2 - mean score`.
UNKNOWN_NEED = 0.2

Weights = Mapping[str, float]
Schema = dict[str, Any]  # a JSON schema, as pydantic writes it


class Function(TypedDict):
    """A tool that is offered (with `parameters`) or that was called (with `arguments`)."""

    name: str
    parameters: NotRequired[Schema]
    arguments: NotRequired[str]


class Call(TypedDict):
    """A tool, or a call of one."""

    id: NotRequired[str]
    type: NotRequired[str]
    function: Function


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    content: str | None
    tool_calls: NotRequired[list[Call] | None]


class ChatRequest(TypedDict):
    """The parts of a chat completions request that the script reads."""

    model: str
    messages: list[Message]
    tools: NotRequired[list[Call] | None]
    response_format: NotRequired[dict[str, Schema] | None]


class Slice(TypedDict):
    """A slice as the planner is told of it: its mean score, or None if nothing was scored."""

    objective: str
    slice: str
    mean: float | None
    reliability: str


class Objective(TypedDict):
    """An objective and the data sets that serve it."""

    name: str
    datasets: list[str]


class LastPlan(TypedDict):
    """The shares of the last plan."""

    ratios: dict[str, float]
    bucket_weights: dict[str, dict[str, float]]


class Limits(TypedDict):
    """How far shares may lie from those of the last plan, as the sum of absolute differences."""

    max_ratio_step: float | None
    max_bucket_step: float | None


class Task(TypedDict):
    """The parts of the planner's task that the script reads. `slices` come worst first."""

    objectives: list[Objective]
    slices: list[Slice]
    last_plan: LastPlan
    limits: Limits
    below_floor: list[str]
    pool_tokens: dict[str, JsonValue]
    labels: NotRequired[JsonValue]


Script = Callable[[ChatRequest], Message]


def reply(request: ChatRequest) -> Message:
    """The assistant's message that answers a chat completions request: content, or tool calls."""
    offered = {tool["function"]["name"] for tool in request.get("tools") or []}
    if "submit_plan" in offered:
        return _planning(request, offered)
    response_format = request.get("response_format") or {}
    schema = (response_format.get("json_schema") or {}).get("schema")
    if schema is None:
        return _says("Understood.")
    task = _task(request)
    if task and "ratios" in schema.get("properties", {}):
        return _says(json.dumps(_plan(task, _step(request))))
    return _says(json.dumps(conforming(schema, _digest(request))))


def _says(text: str) -> Message:
    return {"role": "assistant", "content": text}


# -- planning -------------------------------------------------------------------------------------


def _planning(request: ChatRequest, offered: Collection[str]) -> Message:
    """Look at the past and the worst slices, then at the pool; check a draft, then submit it."""
    task = _task(request)
    done = _called(request)
    if task is None:
        parameters = _parameters(request, "submit_plan")
        return _calls([("submit_plan", conforming(parameters, _digest(request)))], len(done))
    plan = _plan(task, _step(request))
    if "check_plan" not in offered or "check_plan" in done:
        return _calls([("submit_plan", plan)], len(done))
    if "past_rounds" not in done:
        return _calls([("past_rounds", {}), *_looks(task)], len(done))
    if "pool_stock" not in done:
        datasets = list(task["pool_tokens"])[:4]
        stocks = [("pool_stock", {"dataset": dataset}) for dataset in datasets]
        return _calls(stocks, len(done))
    draft = {name: part for name, part in plan.items() if name not in ("rationale", "expected")}
    return _calls([("check_plan", draft)], len(done))


def _called(request: ChatRequest) -> list[str]:
    """The names of the tools that were called so far, in order."""
    names = []
    for message in request["messages"]:
        for call in message.get("tool_calls") or []:
            names.append(call["function"]["name"])
    return names


def _looks(task: Task) -> list[tuple[str, JsonValue]]:
    """Calls that diagnose the worst slices that were scored."""
    scored = [each for each in task["slices"] if each["mean"] is not None]
    looks: list[tuple[str, JsonValue]] = []
    for worst in scored[:LOOKS]:
        arguments: JsonValue = {"objective": worst["objective"], "slice": worst["slice"]}
        looks.append(("diagnose_slice", arguments))
    return looks


def _calls(calls: Sequence[tuple[str, object]], before: int) -> Message:
    """A message of tool calls, numbered from those that were made before."""
    made: list[Call] = []
    for number, (name, arguments) in enumerate(calls, start=before):
        function: Function = {"name": name, "arguments": json.dumps(arguments)}
        made.append({"id": f"call_{number}", "type": "function", "function": function})
    return {"role": "assistant", "content": None, "tool_calls": made}


def _task(request: ChatRequest) -> Task | None:
    """The task that stands in a user message, if there is one."""
    for message in request["messages"]:
        text = message.get("content")
        if message.get("role") == "user" and isinstance(text, str) and '{"round"' in text:
            value, _ = json.JSONDecoder().raw_decode(text[text.index('{"round"') :])
            task: Task = value
            return task
    return None


def _step(request: ChatRequest) -> float:
    """How far to go: half as far for each plan or draft that was turned down, or taken before."""
    refused = 0
    for message in request["messages"]:
        text, role = message.get("content") or "", message.get("role")
        draft = role == "tool" and '"violations":[{' in text
        plan = role in ("tool", "user") and "was not accepted" in text
        earlier = role == "user" and "was turned down" in text
        sibling = role in ("tool", "user") and "is taken. Submit the next" in text
        refused += draft or plan or earlier or sibling
    return FIRST_STEP * 0.5**refused


def _plan(task: Task, step: float) -> JsonObject:
    """A plan that moves budget toward the slices that fail, as far as the limits allow."""
    last, limits = task["last_plan"], task["limits"]
    need = _need(task)
    weak = {each["slice"] for each in task["slices"] if each["reliability"] in ("unknown", "low")}
    buckets: dict[str, dict[str, float]] = {}
    pulls: dict[str, float] = {}
    for dataset, before in last["bucket_weights"].items():
        pull = {}
        for bucket, weight in before.items():
            pull[bucket] = need.get(dataset, {}).get(bucket, UNKNOWN_NEED) * weight
        pulls[dataset] = math.fsum(pull.values())
        # A slice that cannot be trusted may not draw more budget to its bucket.
        held = {}
        for bucket, weight in _normal(pull).items():
            held[bucket] = min(weight, before[bucket]) if bucket in weak else weight
        # What that frees goes to the others; without others nothing moves.
        wish = before if weak.issuperset(before) else _keeping(held, weak)
        buckets[dataset] = _toward(before, wish, limits["max_bucket_step"], step)
    worst = [f"{each['objective']} {each['slice']}" for each in task["slices"][:LOOKS]]
    rationale = f"The weakest slices are {', '.join(worst)}; their buckets get more of the budget."
    plan: JsonObject = {
        "rationale": rationale,
        "ratios": {**_ratios(task, pulls, step)},
        "bucket_weights": {dataset: {**weights} for dataset, weights in buckets.items()},
    }
    if "labels" in task:
        plan["focus"] = []
    plan["expected"] = {objective["name"]: 0.05 for objective in task["objectives"]}
    return plan


def _need(task: Task) -> dict[str, dict[str, float]]:
    """How much each bucket of each data set needs: 5.2 less its mean score, 1 if that is not known.

    A mean of 5 needs 0.2, one of 3 needs 2.2, one of 1.5 needs 3.7.
    """
    need: dict[str, dict[str, float]] = {}
    for objective in task["objectives"]:
        means: dict[str, float | None] = {}
        for each in task["slices"]:
            if each["objective"] == objective["name"]:
                means[each["slice"]] = each["mean"]
        for dataset in objective["datasets"]:
            for bucket in task["last_plan"]["bucket_weights"].get(dataset, {}):
                mean = means.get(bucket)
                need.setdefault(dataset, {})[bucket] = 1.0 if mean is None else 5.2 - mean
    return need


def _ratios(task: Task, pulls: Weights, step: float) -> dict[str, float]:
    """Shares of the data sets, moved toward need.

    Data sets of an objective below its floor lose nothing.
    """
    before = task["last_plan"]["ratios"]
    pulled = {}
    for dataset, share in before.items():
        pulled[dataset] = pulls.get(dataset, UNKNOWN_NEED) * share + 1e-6
    wish = _normal(pulled)
    kept: set[str] = set()
    for objective in task["objectives"]:
        if objective["name"] in task["below_floor"]:
            kept |= set(objective["datasets"])
    if kept:
        raised = {}
        for dataset, share in wish.items():
            raised[dataset] = max(share, before[dataset]) if dataset in kept else share
        wish = _keeping(raised, kept)
    return _toward(before, wish, task["limits"]["max_ratio_step"], step)


def _keeping(weights: Weights, kept: Collection[str]) -> dict[str, float]:
    """Weights that sum to 1 without lowering those that must be kept.

    >>> _keeping({"a": 0.6, "b": 0.3, "c": 0.3}, {"a"})
    {'a': 0.6, 'b': 0.2, 'c': 0.2}
    """
    fixed = math.fsum(weight for name, weight in weights.items() if name in kept)
    rest = math.fsum(weight for name, weight in weights.items() if name not in kept)
    scaled = {}
    for name, weight in weights.items():
        scaled[name] = weight if name in kept else weight * max(0.0, 1 - fixed) / (rest or 1.0)
    return scaled


def _normal(weights: Weights) -> dict[str, float]:
    """Weights over their sum; equal ones if the sum is not positive."""
    total = math.fsum(weights.values())
    if total <= 0:
        return dict.fromkeys(weights, 1 / len(weights))
    return {name: weight / total for name, weight in weights.items()}


def _toward(start: Weights, wish: Weights, limit: float | None, step: float) -> dict[str, float]:
    """A share `step` of the way from start to wish, or of the part of it that the limit allows.

    The way from (0.5, 0.5) to (0.9, 0.1) is 0.8 long. A limit of 0.4 allows half of it:

    >>> _toward({"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}, 0.4, 1.0)
    {'a': 0.7, 'b': 0.3}
    """
    length = math.fsum(abs(wish[name] - start[name]) for name in start)
    allowed = 1.0 if not limit or length <= 0 else limit / length
    share = step * min(1.0, allowed)
    moved = {}
    for name in start:
        moved[name] = round((1 - share) * start[name] + share * wish[name], 5)
    return moved


def _parameters(request: ChatRequest, name: str) -> Schema:
    """The schema of the arguments of a tool that is offered."""
    for tool in request.get("tools") or []:
        if tool["function"]["name"] == name:
            return tool["function"]["parameters"]
    raise KeyError(name)


def _digest(request: ChatRequest) -> bytes:
    return hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).digest()


# -- values of a schema ---------------------------------------------------------------------------


def conforming(schema: Schema, seed: bytes) -> JsonValue:
    """A value of the schema.

    Choices and numbers follow from `seed`. It knows what pydantic writes, and no more.
    """
    return _value(schema, schema.get("$defs", {}), _dice(seed))


def _dice(seed: bytes) -> Iterator[int]:
    """Numbers from 0 to 255 without end, the same for the same seed."""
    block = seed
    while True:
        block = hashlib.sha256(block).digest()
        yield from block


def _value(schema: Schema, defs: dict[str, Schema], dice: Iterator[int]) -> JsonValue:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rsplit("/", 1)[-1]], defs, dice)
    if "const" in schema:
        constant: JsonValue = schema["const"]
        return constant
    if "enum" in schema:
        choice: JsonValue = schema["enum"][next(dice) % len(schema["enum"])]
        return choice
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _value(schema[key][next(dice) % len(schema[key])], defs, dice)
    kind = schema.get("type", "object")
    if kind == "object":
        made = {}
        for name, inner in schema.get("properties", {}).items():
            made[name] = _value(inner, defs, dice)
        return made
    if kind == "array":
        items = schema.get("items", {"type": "string"})
        return [_value(items, defs, dice) for _ in range(schema.get("minItems", 0))]
    if kind == "boolean":
        return next(dice) % 2 == 1
    if kind == "null":
        return None
    if kind in ("integer", "number"):
        return _number(schema, kind, next(dice))
    return _text(schema.get("minLength", 0), schema.get("maxLength", 60))


def _number(schema: Schema, kind: str, drawn: int) -> int | float:
    """A number between the bounds of the schema; 0 to 1 if it has none."""
    low = _bound(schema, ("minimum", "exclusiveMinimum"), 0)
    high = _bound(schema, ("maximum", "exclusiveMaximum"), low + 1)
    if kind == "integer":
        return int(low) + drawn % max(1, int(high) - int(low) + 1)
    return low + (high - low) * drawn / 255


def _bound(schema: Schema, names: Sequence[str], default: float) -> float:
    """The first of these bounds that the schema has."""
    for name in names:
        if name in schema:
            bound: float = schema[name]
            return bound
    return default


def _text(least: int, most: int) -> str:
    """A text of at least and at most so many characters."""
    text = "scripted reply " * (1 + least // 15)
    return text[: min(most, max(15, least))].ljust(least)
