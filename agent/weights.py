"""Arithmetic on weight vectors, shared by constraints, projection and planners. Pure.

A weight vector maps names to shares that sum to 1: the data sets of a mixture (its ratios), or the
buckets within one data set. A cell is one bucket of one data set. Its share of the tokens is the
product of the two:

    share(data set, bucket) = ratio(data set) * weight(bucket)        0.15 = 0.6 * 0.25
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mosaic.core.types.data import Stock
from mosaic.core.types.plans import ActionPlan

Cell = tuple[str, str]
Name = TypeVar("Name")
Floats = npt.NDArray[np.float64]
# Data set -> bucket -> weight, as plans and the pool's proportions have it.
BucketWeights = Mapping[str, Mapping[str, float]]

# Weights are written in millionths.
DECIMALS = 6
# Projections stay this far inside a limit on steps, so that rounding cannot carry them over it.
STEP_SLACK = 1e-4


class Weights(NamedTuple):
    """The shares of a plan without its words: of data sets, and of buckets within each."""

    ratios: dict[str, float]
    buckets: dict[str, dict[str, float]]


# -- one weight vector ----------------------------------------------------------------------------


def normalize(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights scaled to sum to exactly 1 in millionths, by the largest remainder.

    Raises ValueError if all weights are zero.

    >>> normalize({"a": 1, "b": 1, "c": 1})
    {'a': 0.333334, 'b': 0.333333, 'c': 0.333333}
    """
    total = math.fsum(weights.values())
    if not total > 0:
        raise ValueError("weights are all zero")
    unit = 10**DECIMALS
    whole: dict[str, int] = {}
    remainders: list[tuple[float, str]] = []
    for name, weight in weights.items():
        exact = weight / total * unit
        whole[name] = math.floor(exact)
        remainders.append((whole[name] - exact, name))
    rest = unit - sum(whole.values())
    if rest > 0:
        remainders.sort()
        for _, name in remainders[:rest]:
            whole[name] += 1
    return {name: millionths / unit for name, millionths in whole.items()}


def share_of(weights: Mapping[str, float], names: Iterable[str]) -> float:
    """What some names weigh together. A missing name weighs 0.

    >>> share_of({"a": 0.5, "b": 0.25, "c": 0.25}, ["a", "c"])
    0.75
    """
    return math.fsum(weights.get(name, 0.0) for name in names)


def distance(a: Mapping[Name, float], b: Mapping[Name, float]) -> float:
    """L1 distance of two weight vectors, over names or over cells: 0-2. A missing one weighs 0.

    >>> distance({"a": 0.5, "b": 0.5}, {"a": 0.25, "c": 0.75})
    1.5
    """
    # The sum is exact, whatever the order of names.
    if a.keys() == b.keys():
        return math.fsum([abs(weight - b[name]) for name, weight in a.items()])
    return math.fsum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in a.keys() | b.keys())


def interpolate(
    start: Mapping[str, float], end: Mapping[str, float], share: float
) -> dict[str, float]:
    """The point at `share` (0-1) of the way from `start` to `end`, normalized.

    A weight a little below zero, which rounding can leave, counts as zero.

    >>> interpolate({"a": 1.0}, {"b": 1.0}, 0.25)
    {'a': 0.75, 'b': 0.25}
    """
    between = {}
    for name in sorted({*start, *end}):
        weight = (1 - share) * start.get(name, 0.0) + share * end.get(name, 0.0)
        between[name] = max(0.0, weight)
    return normalize(between)


def step_toward(
    start: Mapping[str, float], wish: Mapping[str, float], limit: float | None
) -> dict[str, float]:
    """The point on the way from `start` to `wish` at most `limit` (L1) from `start`.

    A limit of None lets the whole wish through. A step of 2 against a limit of 0.5 goes a quarter
    of the way, less a slack of 0.0001:

    >>> step_toward({"a": 1.0}, {"b": 1.0}, 0.5)
    {'a': 0.75005, 'b': 0.24995}
    """
    step = distance(start, wish)
    if limit is None or step <= limit - STEP_SLACK:
        return interpolate(start, wish, 1.0)
    return interpolate(start, wish, max(0.0, limit - STEP_SLACK) / step)


def fill(
    amount: float, weights: Mapping[str, float], room: Mapping[str, float]
) -> dict[str, float]:
    """Spread an amount in proportion to weights, nobody getting more than its room.

    What the weighted names cannot take goes to the others, in proportion to their room. Room is
    cut to whole millionths, so that rounding lifts nothing above it. If there is too little room
    altogether, the result sums to less than the amount. Weights are as `normalize` leaves them,
    not so small that a product with them vanishes.

    >>> fill(1.0, {"a": 3, "b": 1, "c": 0}, {"a": 0.5, "b": 0.25, "c": 0.5})
    {'a': 0.5, 'b': 0.25, 'c': 0.25}
    """
    cap = {name: math.floor(room[name] * 10**DECIMALS) / 10**DECIMALS for name in weights}
    filled = dict.fromkeys(weights, 0.0)
    while (left := amount - math.fsum(filled.values())) > 1e-12:
        takers = {n: w for n, w in weights.items() if w > 0 and filled[n] < cap[n]}
        if not takers:
            takers = {n: cap[n] - got for n, got in filled.items() if got < cap[n]}
        total = math.fsum(takers.values())
        if not total > 0:
            break
        for name, weight in takers.items():
            filled[name] = min(cap[name], filled[name] + left * weight / total)
    return filled


def perturb(
    weights: Mapping[str, float], spread: float, generator: np.random.Generator, floor: float = 0.0
) -> dict[str, float]:
    """A log-normal move of every weight, in the order of names; not normalized.

    `spread` is the standard deviation of a log-ratio. `floor` is added first, so that a weight of
    zero can grow.
    """
    moved = {}
    draws = generator.standard_normal(len(weights)).tolist()
    for (name, weight), draw in zip(sorted(weights.items()), draws, strict=True):
        moved[name] = (weight + floor) * math.exp(spread * draw)
    return moved


# -- the weights of plans -------------------------------------------------------------------------


def bucket_weights(plan: ActionPlan, dataset: str, proportions: BucketWeights) -> dict[str, float]:
    """The weights a plan gives a data set's buckets, or the pool's proportions if it names none."""
    return dict(plan.bucket_weights.get(dataset) or proportions.get(dataset, {}))


def weights_of(plan: ActionPlan, proportions: BucketWeights) -> Weights:
    """Ratios and bucket weights of a plan, over the data sets that have proportions."""
    ratios, buckets = {}, {}
    for dataset in proportions:
        ratios[dataset] = plan.ratios.get(dataset, 0.0)
        buckets[dataset] = bucket_weights(plan, dataset, proportions)
    return Weights(ratios, buckets)


def cell_shares(ratios: Mapping[str, float], buckets: BucketWeights) -> dict[Cell, float]:
    """One distribution over cells: ratio times bucket weight.

    >>> cell_shares({"a": 0.5, "b": 0.5}, {"a": {"x": 0.25, "y": 0.75}, "b": {"x": 1.0}})
    {('a', 'x'): 0.125, ('a', 'y'): 0.375, ('b', 'x'): 0.5}
    """
    shares = {}
    for dataset, ratio in ratios.items():
        for bucket, weight in buckets.get(dataset, {}).items():
            shares[dataset, bucket] = ratio * weight
    return shares


def plan_shares(plan: ActionPlan, proportions: BucketWeights) -> dict[Cell, float]:
    """The plan as one distribution over cells."""
    buckets = {dataset: bucket_weights(plan, dataset, proportions) for dataset in plan.ratios}
    return cell_shares(plan.ratios, buckets)


def plan_distance(a: ActionPlan, b: ActionPlan, proportions: BucketWeights) -> float:
    """L1 distance of two plans over all cells, 0-2."""
    return distance(plan_shares(a, proportions), plan_shares(b, proportions))


def share_row(cells: Sequence[Cell], shares: Mapping[Cell, float]) -> Floats:
    """Cell shares as a row in the order of `cells`, shape (cells,)."""
    return np.array([shares.get(cell, 0.0) for cell in cells])


# -- the pool and its names -----------------------------------------------------------------------


def proportions(stock: Mapping[str, Mapping[str, Stock]]) -> Weights:
    """The pools' own proportions, in tokens. A data set without a token has no bucket weights."""
    ratios, buckets = {}, {}
    for dataset, per_bucket in stock.items():
        tokens = {bucket: float(held.tokens) for bucket, held in per_bucket.items()}
        ratios[dataset] = math.fsum(tokens.values())
        if ratios[dataset] > 0:
            buckets[dataset] = normalize(tokens)
    return Weights(normalize(ratios), buckets)
