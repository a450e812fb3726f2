"""The space all planners move in: distributions over (data set, bucket) cells, drawn back inside the limits.

Every planner gets this same space and the same limits. `project` moves a wish toward the last executed plan until
steps, stock and reliability allow it, so that a baseline's draw is legal by construction.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from agent.constraints import amounts, bucket_weights, distance, unreliable
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation

Cell = tuple[str, str]
Weights = tuple[dict[str, float], dict[str, dict[str, float]]]

DECIMALS = 6
BISECTIONS = 8


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


def toward(
    start: Mapping[str, float], wish: Mapping[str, float], limit: float | None
) -> dict[str, float]:
    """The point on the way from `start` to `wish` that lies at most `limit` (L1) from `start`."""
    names = sorted({*start, *wish})
    step = distance(start, wish)
    slack = 1e-4
    share = 1.0 if limit is None or step <= limit - slack else max(0.0, limit - slack) / step
    return normal(
        {n: max(0.0, (1 - share) * start.get(n, 0.0) + share * wish.get(n, 0.0)) for n in names}
    )


def project(
    ratios: Mapping[str, float],
    buckets: Mapping[str, Mapping[str, float]],
    observation: Observation,
) -> Weights:
    """Ratios and bucket weights as near to the wish as steps, floors, reliability and stock allow.

    No wish for any data set, or for any bucket of one, keeps what the last executed plan had.
    """
    last, proportions, limits = (
        observation.last_plan,
        observation.bucket_proportions,
        observation.limits,
    )
    wish = {d: max(0.0, ratios.get(d, 0.0)) for d in proportions}
    if not any(wish.values()):
        wish = {d: last.ratios.get(d, 0.0) for d in proportions}
    legal_ratios = toward(
        last.ratios, _affordable(normal(wish), observation), limits.max_ratio_step
    )
    frozen = unreliable(observation)
    start: dict[str, dict[str, float]] = {}
    legal: dict[str, dict[str, float]] = {}
    for dataset in proportions:
        before = start[dataset] = bucket_weights(last, dataset, proportions)
        wanted = dict(normal(buckets.get(dataset) or before))
        held = {b for b in before if (dataset, b) in frozen}
        if held:
            fixed = {b: min(wanted.get(b, 0.0), before[b]) for b in sorted(held)}
            free = {b: w for b, w in wanted.items() if (dataset, b) not in frozen}
            room, total = 1 - math.fsum(fixed.values()), math.fsum(free.values())
            wanted = (
                before
                if total <= 0
                else {**fixed, **{b: w / total * room for b, w in free.items()}}
            )
        legal[dataset] = toward(before, wanted, limits.max_bucket_step)
    return _stocked((legal_ratios, legal), (dict(last.ratios), start), frozen, observation)


def _affordable(wish: dict[str, float], observation: Observation) -> dict[str, float]:
    """The wish within what the data sets hold, every objective below its floor keeping at least the share it had."""
    budget, repeat, last = (
        observation.budget_per_round,
        observation.limits.max_repeat,
        observation.last_plan.ratios,
    )
    room = {
        d: math.fsum(s.tokens for s in observation.stock[d].values()) * repeat / budget
        for d in wish
    }
    before = {
        tuple(d for d in o.datasets if d in wish): math.fsum(last.get(d, 0.0) for d in o.datasets)
        for o in observation.objectives
        if o.name in observation.below_floor and o.datasets
    }
    raised: dict[tuple[str, ...], float] = {}
    while True:
        kept: dict[str, float] = {}
        for group, share in raised.items():
            kept |= _filled(share, {d: wish[d] for d in group}, room)
        others = {d: w for d, w in wish.items() if d not in kept}
        kept |= _filled(1 - math.fsum(kept.values()), others, room)
        # What gives to one may thereby fall below its own floor: then it is raised too. All had their share at once before.
        low = {
            g: b for g, b in before.items() if g not in raised and math.fsum(kept[d] for d in g) < b
        }
        if not low:
            left = {d: room[d] - w for d, w in kept.items()}
            more = _filled(1 - math.fsum(kept.values()), left, left)
            return normal({d: w + more[d] for d, w in kept.items()})
        raised |= low


def _filled(
    amount: float, weights: Mapping[str, float], room: Mapping[str, float]
) -> dict[str, float]:
    """Spread an amount in proportion to weights, nobody getting more than its room (cut to whole millionths, so that
    rounding lifts nothing above it); what the weights cannot take goes where there is room."""
    cap = {n: math.floor(room[n] * 10**DECIMALS) / 10**DECIMALS for n in weights}
    got = dict.fromkeys(weights, 0.0)
    while (left := amount - math.fsum(got.values())) > 1e-12:
        share = {n: w for n, w in weights.items() if w > 0 and got[n] < cap[n]}
        share = share or {n: cap[n] - w for n, w in got.items() if w < cap[n]}
        base = math.fsum(share.values())
        if not base > 0:
            break
        got |= {n: min(cap[n], got[n] + left * w / base) for n, w in share.items()}
    return got


def _stocked(
    wish: Weights, last: Weights, held: Container[Cell], observation: Observation
) -> Weights:
    """Cap each bucket at its stock. Where that breaks another limit, go back toward the last executed plan, which is
    always allowed, as far as it takes."""

    def at(share: float) -> Weights:
        """The point at this share of the way to the wish, its buckets capped."""
        (ratios, buckets), (start, before) = wish, last
        if share < 1:
            ratios = _between(start, ratios, share)
            buckets = {d: _between(before[d], w, share) for d, w in buckets.items()}
        budget, repeat = observation.budget_per_round, observation.limits.max_repeat
        capped = {}
        for dataset, weights in buckets.items():
            part = ratios.get(dataset, 0.0) * budget
            stock = observation.stock[dataset]
            room = (
                {b: stock[b].tokens * repeat / part if b in stock else 0.0 for b in weights}
                if part > 0
                else weights
            )
            if all(w <= room[b] for b, w in weights.items()):
                capped[dataset] = weights
                continue
            room = {
                b: min(room[b], w) if (dataset, b) in held else room[b] for b, w in weights.items()
            }
            filled = _filled(1.0, weights, room)
            capped[dataset] = normal(filled) if any(filled.values()) else weights
        return ratios, capped

    found = at(1.0)
    if not amounts(_plan(found), observation):
        return found
    reached, low, high = last, 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        found = at(share)
        if amounts(_plan(found), observation):
            high = share
        else:
            reached, low = found, share
    return reached


def _between(
    start: Mapping[str, float], end: Mapping[str, float], share: float
) -> dict[str, float]:
    return normal(
        {
            n: (1 - share) * start.get(n, 0.0) + share * end.get(n, 0.0)
            for n in sorted({*start, *end})
        }
    )


def _plan(point: Weights) -> ActionPlan:
    return ActionPlan(rationale="a draft", ratios=point[0], bucket_weights=point[1])


def feasible_plan(
    rationale: str,
    ratios: Mapping[str, float],
    buckets: Mapping[str, Mapping[str, float]],
    observation: Observation,
    expected: Mapping[str, float] | None = None,
) -> ActionPlan:
    """A plan as near to the wish as the limits allow."""
    legal_ratios, legal_buckets = project(ratios, buckets, observation)
    return ActionPlan(
        rationale=rationale,
        ratios=legal_ratios,
        bucket_weights=legal_buckets,
        expected=dict(expected or {}),
    )
