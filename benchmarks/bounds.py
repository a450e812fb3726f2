"""The bounds of a plan, written a second time, in exact fractions and from the documents alone.

Nothing here comes from `agent.constraints`: this is what the hostile benchmark believes instead.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

SUM, EDGE, ACTED = Fraction(1, 10**6), Fraction(1, 10**8), Fraction(1, 100)


def broken(plan: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Names of the bounds that a plan (as JSON data) breaks in an observation (as JSON data)."""
    stock, proportions, limits, last = (
        seen["stock"],
        seen["bucket_proportions"],
        seen["limits"],
        seen["last_plan"],
    )
    found: set[str] = set()
    if set(plan) != {"rationale", "ratios", "bucket_weights", "focus", "expected"}:
        found.add("fields")
    if not isinstance(plan["rationale"], str) or len(plan["rationale"]) > 8000:
        found.add("rationale")
    named = {*plan["ratios"], *plan["bucket_weights"], *plan["focus"]}
    if not named <= set(stock) or not set(plan["expected"]) <= {
        o["name"] for o in seen["objectives"]
    }:
        return ["names"]
    for weights in (plan["ratios"], *plan["bucket_weights"].values()):
        exact = [_exact(w) for w in weights.values()]
        if any(w is None or w < 0 for w in exact) or abs(sum(w or 0 for w in exact) - 1) > SUM:
            return ["weights"]
    for dataset, weights in plan["bucket_weights"].items():
        if not set(weights) <= set(proportions.get(dataset, {})):
            return ["names"]

    def buckets(of: dict[str, Any], dataset: str) -> dict[str, Fraction]:
        given = of["bucket_weights"].get(dataset) or proportions.get(dataset, {})
        return {b: Fraction(w) for b, w in given.items()}

    ratios, before = _fractions(plan["ratios"]), _fractions(last["ratios"])
    if (
        limits["max_ratio_step"] is not None
        and _apart(ratios, before) > Fraction(limits["max_ratio_step"]) + EDGE
    ):
        found.add("ratio step")
    cells, spent = {}, Fraction(0)
    for dataset in {*ratios, *plan["bucket_weights"]}:
        now, then = buckets(plan, dataset), buckets(last, dataset)
        if (
            limits["max_bucket_step"] is not None
            and _apart(now, then) > Fraction(limits["max_bucket_step"]) + EDGE
        ):
            found.add("bucket step")
    for dataset in ratios:
        for bucket, weight in buckets(plan, dataset).items():
            cells[dataset, bucket] = ratios[dataset] * weight
            tokens = cells[dataset, bucket] * seen["budget_per_round"]
            spent += tokens
            if (
                int(tokens)
                > stock[dataset].get(bucket, {"tokens": 0})["tokens"] * limits["max_repeat"]
            ):
                found.add("stock")
    if (
        spent > seen["budget_per_round"] * (1 + 2 * SUM)
        or seen["budget_per_round"] > seen["budget_left"]
    ):
        found.add("budget")
    for objective in seen["objectives"]:
        sure = {
            s["slice"]
            for s in seen["profile"]["slices"]
            if s["objective"] == objective["name"] and s["reliability"] not in ("unknown", "low")
        }
        for dataset in objective["datasets"]:
            now, then = buckets(plan, dataset), buckets(last, dataset)
            if any(w > then.get(b, 0) + ACTED + EDGE for b, w in now.items() if b not in sure):
                found.add("reliability")
        if objective["name"] in seen["below_floor"]:
            share = sum(ratios.get(d, Fraction(0)) for d in objective["datasets"])
            if share < sum(before.get(d, Fraction(0)) for d in objective["datasets"]) - 11 * SUM:
                found.add("floor")
    for past in seen["history"]:
        trials = {trial["id"]: trial for trial in past["trials"]}
        tried = trials.get(past["counts"], past["trials"][0])["spec"]["plan"]
        if tried and past["dominated"] and tried["focus"] == plan["focus"]:
            old = {
                (d, b): Fraction(r) * w
                for d, r in tried["ratios"].items()
                for b, w in buckets(tried, d).items()
            }
            if _apart(cells, old) < Fraction(limits["near_repeat"]) - EDGE:
                found.add("near repeat")
    for dataset, focus in plan["focus"].items():
        known = seen["attributes"].get(dataset, {})
        if not {*focus["include"], *focus["exclude"]} <= set(known) or not 0 <= focus["share"] <= 1:
            found.add("focus")
    return sorted(found)


def _exact(value: Any) -> Fraction | None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value
        or abs(value) > 1e9
    ):
        return None
    return Fraction(value)


def _fractions(weights: dict[str, float]) -> dict[str, Fraction]:
    return {name: Fraction(w) for name, w in weights.items()}


def _apart(a: dict[Any, Fraction], b: dict[Any, Fraction]) -> Fraction:
    return sum((abs(a.get(n, Fraction(0)) - b.get(n, Fraction(0))) for n in {*a, *b}), Fraction(0))
