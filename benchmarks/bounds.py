"""The bounds of a plan, written a second time, in exact fractions and from the documents alone.

Nothing here comes from `agent.constraints`: this is what the hostile benchmark believes instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from pydantic import JsonValue

from mosaic.core.types.base import JsonObject

# What sums may be off by, what a limit may be passed by, and the least change of a weight that
# counts as one.
SUM, EDGE, ACTED = Fraction(1, 10**6), Fraction(1, 10**8), Fraction(1, 100)
FIELDS = {"rationale", "ratios", "bucket_weights", "focus", "expected"}

Weights = dict[str, Fraction]


def broken(plan: JsonObject, seen: JsonObject) -> list[str]:
    """The names of the bounds that a plan breaks in an observation, both as plain JSON data.

    Without sound names and weights the others cannot be computed, so those two are told alone.
    """
    if not _names_are_known(plan, seen):
        return ["names"]
    if not _weights_are_sound(plan):
        return ["weights"]
    if not _buckets_are_known(plan, seen):
        return ["names"]
    found: set[str] = set()
    if set(plan) != FIELDS:
        found.add("fields")
    if not isinstance(plan["rationale"], str) or len(plan["rationale"]) > 8000:
        found.add("rationale")
    found |= _steps(plan, seen)
    found |= _stock_and_budget(plan, seen)
    for objective in seen["objectives"]:
        found |= _of_objective(objective, plan, seen)
    for past in seen["history"]:
        trials = {trial["id"]: trial for trial in past["trials"]}
        tried = trials.get(past["counts"], past["trials"][0])["spec"]["plan"]
        if tried and past["dominated"] and tried["focus"] == plan["focus"]:
            distance = _apart(_cells(plan, seen), _cells(tried, seen))
            if distance < Fraction(seen["limits"]["near_repeat"]) - EDGE:
                found.add("near repeat")
    for dataset, focus in plan["focus"].items():
        attributes = seen["attributes"].get(dataset, {})
        named = {*focus["include"], *focus["exclude"]}
        if not named <= set(attributes) or not 0 <= focus["share"] <= 1:
            found.add("focus")
    return sorted(found)


def _names_are_known(plan: JsonObject, seen: JsonObject) -> bool:
    """Whether data sets and objectives are those of the observation."""
    datasets = {*plan["ratios"], *plan["bucket_weights"], *plan["focus"]}
    objectives = {objective["name"] for objective in seen["objectives"]}
    return datasets <= set(seen["stock"]) and set(plan["expected"]) <= objectives


def _buckets_are_known(plan: JsonObject, seen: JsonObject) -> bool:
    for dataset, weights in plan["bucket_weights"].items():
        if not set(weights) <= set(seen["bucket_proportions"].get(dataset, {})):
            return False
    return True


def _weights_are_sound(plan: JsonObject) -> bool:
    """Whether every set of weights consists of finite numbers of at least 0 that sum to 1."""
    for weights in (plan["ratios"], *plan["bucket_weights"].values()):
        exact = [_exact(weight) for weight in weights.values()]
        if any(weight is None or weight < 0 for weight in exact):
            return False
        if abs(sum(exact) - 1) > SUM:
            return False
    return True


def _steps(plan: JsonObject, seen: JsonObject) -> set[str]:
    """Whether ratios and buckets lie too far from those of the last plan."""
    found, limits, last = set(), seen["limits"], seen["last_plan"]
    ratio_step = _apart(_fractions(plan["ratios"]), _fractions(last["ratios"]))
    if _passes(ratio_step, limits["max_ratio_step"]):
        found.add("ratio step")
    for dataset in {*plan["ratios"], *plan["bucket_weights"]}:
        bucket_step = _apart(_buckets(plan, dataset, seen), _buckets(last, dataset, seen))
        if _passes(bucket_step, limits["max_bucket_step"]):
            found.add("bucket step")
    return found


def _passes(step: Fraction, limit: float | None) -> bool:
    return limit is not None and step > Fraction(limit) + EDGE


def _stock_and_budget(plan: JsonObject, seen: JsonObject) -> set[str]:
    """Whether a bucket is asked for more than its stock, or the round for more than its budget."""
    found, spent = set(), Fraction(0)
    for (dataset, bucket), share in _cells(plan, seen).items():
        tokens = share * seen["budget_per_round"]
        spent += tokens
        stock = seen["stock"][dataset].get(bucket, {"tokens": 0})["tokens"]
        if int(tokens) > stock * seen["limits"]["max_repeat"]:
            found.add("stock")
    if spent > seen["budget_per_round"] * (1 + 2 * SUM):
        found.add("budget")
    if seen["budget_per_round"] > seen["budget_left"]:
        found.add("budget")
    return found


def _of_objective(objective: JsonObject, plan: JsonObject, seen: JsonObject) -> set[str]:
    """Whether budget follows a slice not to be trusted, or leaves an objective below its floor."""
    found = set()
    sure = set()
    for profile in seen["profile"]["slices"]:
        known = profile["reliability"] not in ("unknown", "low")
        if profile["objective"] == objective["name"] and known:
            sure.add(profile["slice"])
    for dataset in objective["datasets"]:
        then = _buckets(seen["last_plan"], dataset, seen)
        for bucket, weight in _buckets(plan, dataset, seen).items():
            if bucket not in sure and weight > then.get(bucket, 0) + ACTED + EDGE:
                found.add("reliability")
    if objective["name"] in seen["below_floor"]:
        now = _share(plan["ratios"], objective["datasets"])
        if now < _share(seen["last_plan"]["ratios"], objective["datasets"]) - 11 * SUM:
            found.add("floor")
    return found


def _buckets(plan: JsonObject, dataset: str, seen: JsonObject) -> Weights:
    """The bucket weights of a data set: the plan's, or the pool's where the plan has none."""
    proportions = seen["bucket_proportions"].get(dataset, {})
    return _fractions(plan["bucket_weights"].get(dataset) or proportions)


def _cells(plan: JsonObject, seen: JsonObject) -> dict[tuple[str, str], Fraction]:
    """The share of the budget of each data set and bucket."""
    cells = {}
    for dataset, ratio in _fractions(plan["ratios"]).items():
        for bucket, weight in _buckets(plan, dataset, seen).items():
            cells[dataset, bucket] = ratio * weight
    return cells


def _share(ratios: Mapping[str, float], datasets: Iterable[str]) -> Fraction:
    exact = _fractions(ratios)
    return sum((exact.get(dataset, Fraction(0)) for dataset in datasets), Fraction(0))


def _exact(value: JsonValue) -> Fraction | None:
    """The number as a fraction; None if it is not a finite number of a sensible size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or abs(value) > 1e9:
        return None
    return Fraction(value)


def _fractions(weights: Mapping[str, float]) -> Weights:
    return {name: Fraction(weight) for name, weight in weights.items()}


def _apart(one: Mapping[object, Fraction], other: Mapping[object, Fraction]) -> Fraction:
    """The sum of absolute differences; what stands on one side only counts as 0 on the other."""
    total = Fraction(0)
    for name in {*one, *other}:
        total += abs(one.get(name, Fraction(0)) - other.get(name, Fraction(0)))
    return total
