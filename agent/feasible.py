"""The space that all planners move in: distributions over cells, drawn back inside the limits.

Every planner gets this same space and the same limits. `project` moves a wish toward the plan
executed last until steps, floors, stock and reliability allow it. The plan executed last is always
allowed, so a baseline's draw becomes legal by construction.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from agent.constraints import check_amounts, unreliable_cells
from agent.methods import kept_mixture_tokens, with_methods_of
from agent.weights import (
    BucketWeights,
    Cell,
    Weights,
    bucket_weights,
    fill,
    interpolate,
    normalize,
    share_of,
    step_toward,
    weights_of,
)
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation

BISECTIONS = 8


class FeasibleSpace:
    """The plans that one observation allows. Made once where many wishes are projected."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        last, proportions = observation.last_plan, observation.bucket_proportions
        self._held = unreliable_cells(observation)
        self._room = _room_of_datasets(observation)
        before = {name: bucket_weights(last, name, proportions) for name in proportions}
        self._start = Weights(dict(last.ratios), before)

    def project(self, ratios: Mapping[str, float], buckets: BucketWeights) -> Weights:
        """Ratios and bucket weights as near to the wish as steps, floors, reliability and stock allow.

        Where nothing is wished for, of all data sets or of the buckets of one, the weights of the
        last executed plan stand in.
        """
        observation, start, held = self.observation, self._start, self._held
        limits = observation.limits
        wish = normalize(_wished_ratios(ratios, observation))
        affordable = _affordable(wish, self._room, observation)
        legal_ratios = step_toward(start.ratios, affordable, limits.max_ratio_step)
        legal: dict[str, dict[str, float]] = {}
        for dataset, before in start.buckets.items():
            wished = normalize(buckets.get(dataset) or before)
            wished = _hold_unreliable(dataset, wished, before, held)
            legal[dataset] = step_toward(before, wished, limits.max_bucket_step)
        return _within_stock(Weights(legal_ratios, legal), start, held, observation)


def project(
    ratios: Mapping[str, float], buckets: BucketWeights, observation: Observation
) -> Weights:
    """One wish as near as the limits allow. See `FeasibleSpace.project`."""
    return FeasibleSpace(observation).project(ratios, buckets)


def feasible_plan(
    rationale: str,
    ratios: Mapping[str, float],
    buckets: BucketWeights,
    observation: Observation,
) -> ActionPlan:
    """A plan as near to the wish as the limits allow."""
    legal = project(ratios, buckets, observation)
    plan = ActionPlan(rationale=rationale, ratios=legal.ratios, bucket_weights=legal.buckets)
    return with_methods_of(plan, observation.last_plan)


# -- ratios: floors and the stock of whole data sets -----------------------------------------------


def _wished_ratios(ratios: Mapping[str, float], observation: Observation) -> dict[str, float]:
    proportions = observation.bucket_proportions
    wish = {dataset: max(0.0, ratios.get(dataset, 0.0)) for dataset in proportions}
    if any(wish.values()):
        return wish
    return weights_of(observation.last_plan, proportions).ratios


def _affordable(
    wish: Mapping[str, float], room: Mapping[str, float], observation: Observation
) -> dict[str, float]:
    """The wish within what the data sets hold, with the floors kept.

    Every objective below its floor keeps at least the share that its data sets had.
    """
    before = _shares_to_keep(wish, observation)
    raised: dict[tuple[str, ...], float] = {}
    while True:
        kept: dict[str, float] = {}
        for group, share in raised.items():
            kept |= fill(share, {dataset: wish[dataset] for dataset in group}, room)
        others = {dataset: weight for dataset, weight in wish.items() if dataset not in kept}
        kept |= fill(1 - math.fsum(kept.values()), others, room)
        # Whoever gives to a raised group may fall below its own floor, and is then raised too.
        # This ends with all of them raised, since before they all had their shares at once.
        fallen = {}
        for group, share in before.items():
            if group not in raised and share_of(kept, group) < share:
                fallen[group] = share
        if not fallen:
            break
        raised |= fallen
    # What the groups could not hold of their shares goes wherever there is room.
    left = {dataset: room[dataset] - weight for dataset, weight in kept.items()}
    for dataset, more in fill(1 - math.fsum(kept.values()), left, left).items():
        kept[dataset] += more
    return normalize(kept)


def _room_of_datasets(observation: Observation) -> dict[str, float]:
    """The largest ratio that each data set's stock can serve; above 1 if it holds more."""
    room = {}
    # A mixture of no tokens is served by any stock.
    budget = max(1, kept_mixture_tokens(observation))
    for dataset in observation.bucket_proportions:
        tokens = math.fsum(stock.tokens for stock in observation.stock[dataset].values())
        room[dataset] = tokens * observation.limits.max_repeat / budget
    return room


def _shares_to_keep(
    wish: Mapping[str, float], observation: Observation
) -> dict[tuple[str, ...], float]:
    """Data sets of each objective below its floor -> the share that they had together."""
    before = {}
    for objective in observation.objectives:
        if objective.name in observation.below_floor and objective.datasets:
            group = tuple(dataset for dataset in objective.datasets if dataset in wish)
            before[group] = share_of(observation.last_plan.ratios, objective.datasets)
    return before


# -- buckets: reliability and stock ----------------------------------------------------------------


def _hold_unreliable(
    dataset: str, wish: dict[str, float], before: dict[str, float], held: Collection[Cell]
) -> dict[str, float]:
    """The wish without more weight for buckets that are not measured well.

    Such a bucket may lose weight but not gain any; the others share what it leaves.
    """
    fixed = {}
    for bucket in sorted(before):
        if (dataset, bucket) in held:
            fixed[bucket] = min(wish.get(bucket, 0.0), before[bucket])
    if not fixed:
        return wish
    free = {bucket: weight for bucket, weight in wish.items() if (dataset, bucket) not in held}
    room, total = 1 - math.fsum(fixed.values()), math.fsum(free.values())
    if total <= 0:
        return before
    for bucket, weight in free.items():
        fixed[bucket] = weight / total * room
    return fixed


def _within_stock(
    wish: Weights, last: Weights, held: Mapping[Cell, str], observation: Observation
) -> Weights:
    """The wish with each bucket capped at its stock.

    If that breaks another limit, go back toward the plan executed last as far as it takes, to the
    nearest 1/256 of the way.
    """
    reached = _capped(wish, held, observation)
    if _is_allowed(reached, held, observation):
        return reached
    reached, low, high = last, 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        point = _capped(_between(last, wish, share), held, observation)
        if _is_allowed(point, held, observation):
            reached, low = point, share
        else:
            high = share
    return reached


def _between(start: Weights, end: Weights, share: float) -> Weights:
    buckets = {}
    for dataset, weights in end.buckets.items():
        buckets[dataset] = interpolate(start.buckets[dataset], weights, share)
    return Weights(interpolate(start.ratios, end.ratios, share), buckets)


def _is_allowed(point: Weights, held: Mapping[Cell, str], observation: Observation) -> bool:
    # Normalized weights need no validation, which would take as long as the check.
    last = observation.last_plan
    draft = ActionPlan.model_construct(
        rationale="a draft",
        ratios=point.ratios,
        bucket_weights=point.buckets,
        method_shares=last.method_shares,
        practice_weights=last.practice_weights,
    )
    return not check_amounts(draft, observation, held=held)


def _capped(point: Weights, held: Collection[Cell], observation: Observation) -> Weights:
    """The point with each bucket's weight at most what its stock allows."""
    capped = {}
    for dataset, weights in point.buckets.items():
        tokens = point.ratios.get(dataset, 0.0) * kept_mixture_tokens(observation)
        capped[dataset] = _capped_buckets(dataset, weights, tokens, held, observation)
    return Weights(point.ratios, capped)


def _capped_buckets(
    dataset: str,
    weights: dict[str, float],
    tokens: float,
    held: Collection[Cell],
    observation: Observation,
) -> dict[str, float]:
    """Bucket weights within the stock, where the data set is asked for so many tokens.

    What a scarce bucket cannot give is asked of the others, except those that are held.
    """
    if not tokens > 0:
        return weights
    stock, repeat = observation.stock[dataset], observation.limits.max_repeat
    room = {}
    for bucket in weights:
        room[bucket] = stock[bucket].tokens * repeat / tokens if bucket in stock else 0.0
    if all(weight <= room[bucket] for bucket, weight in weights.items()):
        return weights
    for bucket, weight in weights.items():
        if (dataset, bucket) in held:
            room[bucket] = min(room[bucket], weight)
    filled = fill(1.0, weights, room)
    return normalize(filled) if any(filled.values()) else weights
