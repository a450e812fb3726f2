"""The space all planners move in: distributions over (data set, bucket) cells, drawn back inside the limits.

Every planner gets this same space and the same limits. `inside` moves a wish toward the last executed plan until
steps, stock and reliability allow it, so that a baseline's draw is legal by construction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from agent.constraints import LOW_RELIABILITY, bucket_weights, distance
from mosaic.types import ActionPlan, Observation

DECIMALS = 6


def normal(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights scaled to sum to exactly 1 in decimals of 1e-6, largest remainder first; all zero is a ValueError."""
    total = math.fsum(weights.values())
    if not total > 0:
        raise ValueError("weights are all zero")
    unit = 10**DECIMALS
    exact = {name: weight / total * unit for name, weight in weights.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    rest = unit - sum(whole.values())
    for name in sorted(exact, key=lambda n: (whole[n] - exact[n], n))[:rest]:
        whole[name] += 1
    return {name: value / unit for name, value in whole.items()}


def level_of(name: str) -> int:
    """Complexity of a slice or bucket: the number 1-9 after its last underscore, 1 where there is none."""
    number = name.rsplit("_", 1)[-1]
    return int(number) if len(number) == 1 and number in "123456789" else 1


def toward(start: Mapping[str, float], wish: Mapping[str, float], limit: float | None) -> dict[str, float]:
    """The point on the way from `start` to `wish` that lies at most `limit` (L1) from `start`."""
    names = sorted({*start, *wish})
    step = distance(start, wish)
    slack = 1e-4
    share = 1.0 if limit is None or step <= limit - slack else max(0.0, limit - slack) / step
    return normal({n: max(0.0, (1 - share) * start.get(n, 0.0) + share * wish.get(n, 0.0)) for n in names})


def frozen_buckets(observation: Observation) -> dict[str, set[str]]:
    """Per data set, the buckets whose slice is too unreliable to be acted upon."""
    frozen: dict[str, set[str]] = {}
    for objective in observation.objectives:
        slices = {s.slice for s in observation.profile.of(objective.name) if s.reliability in LOW_RELIABILITY}
        for dataset in objective.datasets:
            frozen.setdefault(dataset, set()).update(slices)
    return frozen


def inside(
    ratios: Mapping[str, float], buckets: Mapping[str, Mapping[str, float]], observation: Observation
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Ratios and bucket weights as near to the wish as steps, floors, reliability and stock allow."""
    last, proportions, limits = observation.last_plan, observation.bucket_proportions, observation.limits
    wish = _floored(normal({d: max(0.0, ratios.get(d, 0.0)) for d in observation.stock}), observation)
    legal_ratios = toward(last.ratios, wish, limits.max_ratio_step)
    frozen = frozen_buckets(observation)
    legal: dict[str, dict[str, float]] = {}
    for dataset in observation.stock:
        before = bucket_weights(last, dataset, proportions)
        wanted = dict(normal(buckets.get(dataset) or before))
        held = frozen.get(dataset, set())
        if held:
            fixed = {b: min(wanted.get(b, 0.0), before.get(b, 0.0)) for b in held if b in before}
            free = {b: w for b, w in wanted.items() if b not in held}
            room, total = 1 - math.fsum(fixed.values()), math.fsum(free.values())
            wanted = before if total <= 0 else {**fixed, **{b: w / total * room for b, w in free.items()}}
        legal[dataset] = toward(before, wanted, limits.max_bucket_step)
    return _stocked(legal_ratios, legal, observation)


def _floored(wish: dict[str, float], observation: Observation) -> dict[str, float]:
    """Raise the share of data sets whose objective is below its floor to at least what it was."""
    kept = dict(wish)
    for objective in observation.objectives:
        if objective.name not in observation.below_floor or not objective.datasets:
            continue
        before = math.fsum(observation.last_plan.ratios.get(d, 0.0) for d in objective.datasets)
        now = math.fsum(kept.get(d, 0.0) for d in objective.datasets)
        if now < before and now < 1:
            scale = (1 - before) / (1 - now)
            for name in kept:
                kept[name] *= (before / now if now > 0 else 0.0) if name in objective.datasets else scale
            if now <= 0:
                kept.update({d: before / len(objective.datasets) for d in objective.datasets})
    return normal(kept)


def _stocked(
    ratios: dict[str, float], buckets: dict[str, dict[str, float]], observation: Observation
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Cap each bucket at its stock, spreading what is over inside its data set."""
    budget = observation.budget_per_round
    for dataset, weights in buckets.items():
        share = ratios.get(dataset, 0.0) * budget
        if share <= 0:
            continue
        stock = observation.stock[dataset]
        room = {b: stock[b].tokens * observation.limits.max_repeat / share if b in stock else 0.0 for b in weights}
        for _ in weights:
            over = {b: w - room[b] for b, w in weights.items() if w > room[b]}
            spare = {b: w for b, w in weights.items() if w < room[b] and w > 0}
            if not over or not spare:
                break
            extra, base = math.fsum(over.values()), math.fsum(spare.values())
            weights = {
                b: room[b] if b in over else w + (extra * w / base if b in spare else 0.0) for b, w in weights.items()
            }
        buckets[dataset] = normal(weights)
    return ratios, buckets


def plan_inside(
    rationale: str,
    ratios: Mapping[str, float],
    buckets: Mapping[str, Mapping[str, float]],
    observation: Observation,
    expected: Mapping[str, float] | None = None,
) -> ActionPlan:
    """A plan as near to the wish as the limits allow."""
    legal_ratios, legal_buckets = inside(ratios, buckets, observation)
    return ActionPlan(
        rationale=rationale, ratios=legal_ratios, bucket_weights=legal_buckets, expected=dict(expected or {})
    )
