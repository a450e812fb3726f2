"""What the scripted model says: a whole planning conversation, a plan at once, or a value of any closed JSON schema.

It reads nothing but the request, like a model: the numbers in the task, the answers of the tools, and what was wrong
with the last plan. It keeps no state, so the same request gets the same answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

Script = Callable[[dict[str, Any]], dict[str, Any]]
LOOKS = 2
# How far toward the wish the first draft goes; each correction halves it.
FIRST_STEP = 0.9


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """The assistant's message for a chat completions request: content, or tool calls."""
    names = {t["function"]["name"] for t in request.get("tools") or []}
    if "submit_plan" in names:
        return _planning(request, names)
    schema = ((request.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if schema is None:
        return {"role": "assistant", "content": "Understood."}
    task = _task(request)
    if task and "ratios" in schema.get("properties", {}):
        return {"role": "assistant", "content": json.dumps(_plan(task, _step(request)))}
    return {"role": "assistant", "content": json.dumps(conforming(schema, _digest(request)))}


def _planning(request: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Look at the past and the worst slices, then at the pool, then check a draft, then submit."""
    task = _task(request)
    done = [c["function"]["name"] for m in request["messages"] for c in m.get("tool_calls") or []]
    if task is None:
        return _calls(
            [("submit_plan", conforming(_parameters(request, "submit_plan"), _digest(request)))],
            len(done),
        )
    plan = _plan(task, _step(request))
    if "check_plan" not in names or "check_plan" in done:
        return _calls([("submit_plan", plan)], len(done))
    if "past_rounds" not in done:
        worst = [s for s in task["slices"] if s["mean"] is not None][:LOOKS]
        looks = [
            ("diagnose_slice", {"objective": s["objective"], "slice": s["slice"]}) for s in worst
        ]
        return _calls([("past_rounds", {}), *looks], len(done))
    if "pool_stock" not in done:
        return _calls(
            [("pool_stock", {"dataset": d}) for d in list(task["pool_tokens"])[:4]], len(done)
        )
    draft = {k: v for k, v in plan.items() if k not in ("rationale", "expected")}
    return _calls([("check_plan", draft)], len(done))


def _calls(calls: list[tuple[str, dict[str, Any]]], before: int) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{before + i}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for i, (name, arguments) in enumerate(calls)
        ],
    }


def _task(request: dict[str, Any]) -> dict[str, Any] | None:
    """The observation that stands in a user message."""
    for message in request["messages"]:
        text = message.get("content")
        if message.get("role") == "user" and isinstance(text, str) and '{"round"' in text:
            value, _ = json.JSONDecoder().raw_decode(text[text.index('{"round"') :])
            return dict(value)
    return None


def _step(request: dict[str, Any]) -> float:
    """How far to go: half as far for each plan or draft that was turned down."""
    refused = 0
    for message in request["messages"]:
        text, role = message.get("content") or "", message.get("role")
        draft = role == "tool" and '"violations":[{' in text
        plan = role in ("tool", "user") and "was not accepted" in text
        earlier = role == "user" and "was turned down" in text
        refused += draft or plan or earlier
    return FIRST_STEP * 0.5**refused


def _plan(task: dict[str, Any], step: float) -> dict[str, Any]:
    """Budget moved toward need: what fails, weighted by how much its slice can be trusted, as far as the limits go."""
    last, limits = task["last_plan"], task["limits"]
    need: dict[str, dict[str, float]] = {}
    for objective in task["objectives"]:
        slices = {s["slice"]: s for s in task["slices"] if s["objective"] == objective["name"]}
        for dataset in objective["datasets"]:
            for bucket in last["bucket_weights"].get(dataset, {}):
                mean = (slices.get(bucket) or {}).get("mean")
                need.setdefault(dataset, {})[bucket] = 1.0 if mean is None else 5.2 - mean
    buckets, wish = {}, {}
    for dataset, before in last["bucket_weights"].items():
        wanted = _normal({b: need.get(dataset, {}).get(b, 0.2) * before[b] for b in before})
        weak = {s["slice"] for s in task["slices"] if s["reliability"] in ("unknown", "low")}
        held = {b: min(w, before[b]) if b in weak else w for b, w in wanted.items()}
        buckets[dataset] = _toward(before, _normal(held), limits["max_bucket_step"], step)
        wish[dataset] = math.fsum(need.get(dataset, {}).get(b, 0.2) * w for b, w in before.items())
    before = last["ratios"]
    wanted = _normal({d: wish.get(d, 0.2) * before[d] + 1e-6 for d in before})
    low = {d for o in task["objectives"] if o["name"] in task["below_floor"] for d in o["datasets"]}
    floored = {d: max(w, before[d]) if d in low else w for d, w in wanted.items()}
    ratios = _toward(
        before, floored if not low else _keeping(floored, low), limits["max_ratio_step"], step
    )
    worst = [f"{s['objective']} {s['slice']}" for s in task["slices"][:LOOKS]]
    plan: dict[str, Any] = {
        "rationale": f"The weakest slices are {', '.join(worst)}; their buckets get more of the budget.",
        "ratios": ratios,
        "bucket_weights": buckets,
    }
    if "labels" in task:
        plan["focus"] = []
    return {**plan, "expected": {o["name"]: 0.05 for o in task["objectives"]}}


def _keeping(weights: dict[str, float], kept: set[str]) -> dict[str, float]:
    """Weights that sum to 1 without lowering those that must be kept."""
    fixed = math.fsum(w for d, w in weights.items() if d in kept)
    rest = math.fsum(w for d, w in weights.items() if d not in kept)
    return {
        d: w if d in kept else w * max(0.0, 1 - fixed) / (rest or 1.0) for d, w in weights.items()
    }


def _normal(weights: dict[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return (
        {n: w / total for n, w in weights.items()}
        if total > 0
        else dict.fromkeys(weights, 1 / len(weights))
    )


def _toward(
    start: dict[str, float], wish: dict[str, float], limit: float | None, step: float
) -> dict[str, float]:
    length = math.fsum(abs(wish[n] - start[n]) for n in start)
    share = step * min(1.0, 1.0 if not limit or length <= 0 else limit / length)
    return {n: round((1 - share) * start[n] + share * wish[n], 5) for n in start}


def _parameters(request: dict[str, Any], name: str) -> dict[str, Any]:
    return next(
        t["function"]["parameters"] for t in request["tools"] if t["function"]["name"] == name
    )


def _digest(request: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).digest()


def conforming(schema: dict[str, Any], seed: bytes) -> Any:
    """A value of the schema; choices and numbers follow from `seed`. Knows what pydantic writes, no more."""

    def dice() -> Iterator[int]:
        block = seed
        while True:
            block = hashlib.sha256(block).digest()
            yield from block

    return _value(schema, schema.get("$defs", {}), dice())


def _value(schema: dict[str, Any], defs: dict[str, Any], dice: Iterator[int]) -> Any:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rsplit("/", 1)[-1]], defs, dice)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][next(dice) % len(schema["enum"])]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _value(schema[key][next(dice) % len(schema[key])], defs, dice)
    kind = schema.get("type", "object")
    if kind == "object":
        return {
            name: _value(inner, defs, dice) for name, inner in schema.get("properties", {}).items()
        }
    if kind == "array":
        least = schema.get("minItems", 0)
        return [_value(schema.get("items", {"type": "string"}), defs, dice) for _ in range(least)]
    if kind == "boolean":
        return next(dice) % 2 == 1
    if kind == "null":
        return None
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1))
        if kind == "integer":
            return int(low) + next(dice) % max(1, int(high) - int(low) + 1)
        return low + (high - low) * next(dice) / 255
    text = "scripted reply " * (1 + schema.get("minLength", 0) // 15)
    return text[: min(schema.get("maxLength", 60), max(15, schema.get("minLength", 0)))].ljust(
        schema.get("minLength", 0)
    )
