"""Cheap looks at mixtures: what a config says of them, and the corners that experts are trained at.

A look of kind `fraction` trains a mixture on fewer tokens, which are a prefix of those that a round
would take. Looks of kind `experts` train nothing of their own: one adapter, the expert, is trained
at each corner, where one objective's data have most of the tokens, and a mixture is looked at
through the sum of the experts' updates whose weights give its shares:

    shares of the mixture = sum of weight_i * shares of corner_i,   sum of weights = 1

What experts say is of data sets alone: within each, buckets are in the pool's proportions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agent.weights import normalize, share_of
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import ObjectiveSpec

TWO_THIRDS = 0.6667


class ExpertsConfig(FrozenModel):
    """Looks through adapters that are added up. They cost an evaluation on steering each.

    One expert is trained after the calibration for each group of data sets that serve the same
    objectives. `corner` is the share of its group in an expert's tokens, of those that serve any
    objective; the others share the rest. `fraction` is the part of a round's tokens that an expert
    is trained on; by default three take as many as two repeats of the calibration. `looks` mixtures
    are looked at before each round is planned.
    """

    kind: Literal["experts"] = "experts"
    looks: int = Field(default=6, ge=0, le=64)
    fraction: float = Field(default=TWO_THIRDS, gt=0, le=1)
    corner: float = Field(default=0.7, gt=0, lt=1)


class FractionConfig(FrozenModel):
    """Looks that are trained on a `fraction` of a round's tokens, `looks` before each round."""

    kind: Literal["fraction"] = "fraction"
    looks: int = Field(default=2, ge=1, le=64)
    fraction: float = Field(default=0.25, gt=0, lt=1)


FidelityConfig = Annotated[ExpertsConfig | FractionConfig, Field(discriminator="kind")]

Group = tuple[str, ...]
"""Data sets that serve the same objectives."""


def groups(objectives: Sequence[ObjectiveSpec]) -> list[Group]:
    """Declared data sets that serve the same objectives, together.

    >>> guard = ObjectiveSpec(name="safety", datasets=["guard", "both"])
    >>> tasks = ObjectiveSpec(name="instructions", datasets=["tasks", "both"])
    >>> groups([guard, tasks])
    [('guard',), ('both',), ('tasks',)]
    """
    serves: dict[str, list[str]] = {}
    for objective in objectives:
        for dataset in objective.datasets:
            serves.setdefault(dataset, []).append(objective.name)
    found: dict[tuple[str, ...], list[str]] = {}
    for dataset, names in serves.items():
        found.setdefault(tuple(names), []).append(dataset)
    return [tuple(datasets) for datasets in found.values()]


def corners(
    corner: float, grouped: Sequence[Group], proportions: Mapping[str, float]
) -> list[dict[str, float]]:
    """The ratios that each expert is trained on, one for each group.

    Data sets that serve no objective keep their own proportion. Within a group data sets keep their
    proportions to each other.

    >>> own = {"guard": 0.4, "tasks": 0.4, "talk": 0.2}
    >>> corners(0.75, [("guard",), ("tasks",)], own)[0]
    {'guard': 0.6, 'tasks': 0.2, 'talk': 0.2}
    """
    declared = [dataset for group in grouped for dataset in group]
    served = share_of(proportions, declared)
    rest = (1 - corner) / (len(grouped) - 1)
    found = []
    for place in range(len(grouped)):
        shares = [corner if place == other else rest for other in range(len(grouped))]
        found.append(_ratios(shares, served, grouped, proportions))
    return found


def _ratios(
    shares: Sequence[float],
    served: float,
    grouped: Sequence[Group],
    proportions: Mapping[str, float],
) -> dict[str, float]:
    """Ratios of all data sets if the groups have these shares of the tokens that are `served`."""
    ratios = dict(proportions)
    for group, share in zip(grouped, shares, strict=True):
        own = share_of(proportions, group)
        for dataset in group:
            part = proportions[dataset] / own if own > 0 else 1 / len(group)
            ratios[dataset] = served * share * part
    return normalize(ratios)


def looked_ratios(
    ratios: Mapping[str, float], grouped: Sequence[Group], proportions: Mapping[str, float]
) -> dict[str, float]:
    """What experts can say of a mixture: its shares of the groups, all else as in the pool.

    >>> own = {"guard": 0.5, "tasks": 0.25, "talk": 0.25}
    >>> looked_ratios({"guard": 0.25, "tasks": 0.75}, [("guard",), ("tasks",)], own)
    {'guard': 0.1875, 'tasks': 0.5625, 'talk': 0.25}
    """
    declared = [dataset for group in grouped for dataset in group]
    shares = group_shares(ratios, grouped)
    return _ratios(shares, share_of(proportions, declared), grouped, proportions)


def affine_weights(
    ratios: Mapping[str, float], points: Sequence[Mapping[str, float]], grouped: Sequence[Group]
) -> list[float]:
    """The weights of the corners that give a mixture's shares of the groups; they sum to 1.

    A mixture beyond the corners has weights below 0. Only shares of what serves an objective count.

    >>> points = [{"guard": 0.75, "tasks": 0.25}, {"guard": 0.25, "tasks": 0.75}]
    >>> [round(w, 6) for w in affine_weights({"guard": 0.6, "tasks": 0.4}, points, [("guard",), ("tasks",)])]
    [0.7, 0.3]
    """
    corner = np.array([group_shares(point, grouped) for point in points])
    wanted = np.array(group_shares(ratios, grouped))
    # Where a scarce data set makes two corners one, there are many such weights: the smallest do.
    found, *_ = np.linalg.lstsq(corner.T, wanted, rcond=None)
    return [round(float(weight), 6) for weight in found / math.fsum(found)]


def group_shares(ratios: Mapping[str, float], grouped: Sequence[Group]) -> list[float]:
    """Each group's share of the tokens that serve an objective; even if none does."""
    shares = [share_of(ratios, group) for group in grouped]
    total = math.fsum(shares)
    if not total > 0:
        return [1 / len(grouped)] * len(grouped)
    return [share / total for share in shares]
