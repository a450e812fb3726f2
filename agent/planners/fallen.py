"""Objectives that training made worse than the base, and the share that their data keep.

A mixture trains all data at once, and a run tries a handful of mixtures. Where over-refusal falls,
the fit cannot tell whether safety data made the model refuse or borderline data did, and what it
takes for the culprit it cuts to nothing, for good: with a share near zero it never learns better.
So an objective that stands below the base, and short of its target if it has one, is not left with
less of its own data than the pools' proportions gave it, or the mixture that it fell under: the search
aims for a little more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.prediction import last_means
from agent.weights import share_of
from mosaic.core.types.evaluation import Score
from mosaic.core.types.runs import Observation

# The share aimed for, as a multiple of the larger of the pools' own and the last.
MORE = 1.05
# What an objective can be given at most, so that something is left for the others.
MAX_SHARE = 0.9


class NeededShare(NamedTuple):
    """Data sets of one objective, and the share of the tokens that they should have together."""

    datasets: tuple[str, ...]
    share: float


def falls(observation: Observation) -> dict[str, float]:
    """Objective -> points that its selection mean lies below the base's, if it does.

    What counts is the mixture executed last: the latest round that was measured, or else the mean
    of the calibration. Objectives that are unscored, have no data, or reach their target are left
    out.
    """
    names = observation.traded
    base = _base_means(observation)
    now = last_means(observation)
    targets = {o.name: o.target for o in observation.objectives}
    found = {}
    for name in names:
        if name not in base or name not in now:
            continue
        target = targets[name]
        reached = target is not None and now[name] >= target
        if now[name] < base[name] and not reached:
            found[name] = base[name] - now[name]
    return found


def shares_to_reach(observation: Observation) -> list[NeededShare]:
    """What the data of each objective that fell should have, the one that fell most first.

    If all fell, somebody has to give: the one that fell least does.
    """
    fallen = falls(observation)
    order = sorted(fallen, key=lambda name: (-fallen[name], name))
    if len(order) > 1 and len(order) == len(observation.traded):
        order.pop()
    datasets = {o.name: tuple(o.datasets) for o in observation.objectives}
    executed = _last_ratios(observation)
    needed = []
    for name in order:
        held = tuple(d for d in datasets[name] if d in observation.proportions)
        own = max(share_of(observation.proportions, held), share_of(executed, held))
        needed.append(NeededShare(held, min(MORE * own, max(own, MAX_SHARE))))
    return needed


def missing_share(ratios: Mapping[str, float], needed: list[NeededShare]) -> float:
    """How much of the tokens is missing to what objectives that fell should have.

    The one that fell most comes first and counts whole, the next half, and so on: where a step is
    too short for all of them, it is served before the others.

    >>> needed = [NeededShare(("borderline",), 0.25), NeededShare(("rules",), 0.25)]
    >>> missing_share({"guard": 0.75, "borderline": 0.125, "rules": 0.125}, needed)
    0.1875
    """
    missing = 0.0
    for rank, (datasets, share) in enumerate(needed, start=1):
        missing += max(0.0, share - share_of(ratios, datasets)) / rank
    return missing


def raised_ratios(ratios: Mapping[str, float], needed: list[NeededShare]) -> dict[str, float]:
    """Ratios with what is missing added to the data of objectives that fell; the others give it.

    Where such an objective has several data sets, they grow alike.

    >>> needed = [NeededShare(("borderline",), 0.5)]
    >>> raised_ratios({"guard": 0.5, "borderline": 0.25, "rules": 0.25}, needed)
    {'guard': 0.3333333333333333, 'borderline': 0.5, 'rules': 0.16666666666666666}
    """
    kept: dict[str, float] = {}
    for datasets, share in needed:
        had = share_of(ratios, datasets)
        for dataset in datasets:
            part = ratios[dataset] / had if had > 0 else 1 / len(datasets)
            kept[dataset] = max(ratios[dataset], share * part, kept.get(dataset, 0.0))
    left = max(0.0, 1 - sum(kept.values()))
    others = sum(ratio for dataset, ratio in ratios.items() if dataset not in kept)
    raised = {}
    for dataset, ratio in ratios.items():
        raised[dataset] = kept[dataset] if dataset in kept else ratio * left / (others or 1.0)
    return raised


def _last_ratios(observation: Observation) -> Mapping[str, float]:
    """The data sets' shares of the mixture that was executed last; none before the first round."""
    for past in reversed(observation.history):
        if past.plan is not None and not past.failure:
            return past.plan.ratios
    return {}


def _base_means(observation: Observation) -> dict[str, float]:
    """Selection means of the base, of those objectives that it is scored on."""
    for past in observation.history:
        if past.plan is None and not past.failure:
            return _means(past.scores)
    return {}


def _means(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    found = {}
    for name, roles in scores.items():
        mean = roles["selection"].mean
        if mean is not None:
            found[name] = mean
    return found
