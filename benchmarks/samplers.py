"""Optimisers of libraries as planners: Optuna's samplers, and BoTorch's qNEHVI.

They search one space, log-ratios around the pools' proportions, and are told the same: the
calibration and every round. The base is trained on nothing, so it has no place in the space, and
its scores cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from agent.feasible import feasible_plan
from agent.planners.base import require_one_plan
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

# Log-ratios lie between -FURTHEST and FURTHEST.
FURTHEST = 3.0
# What is added to shares before their logarithm is taken.
MIN_SHARE = 1e-4


class OptunaPlanner:
    """An Optuna sampler: `tpe`, `gp` or `nsga2`."""

    def __init__(self, sampler: str) -> None:
        self.kind = f"optuna_{sampler}"
        self.sampler = sampler

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        import optuna

        require_one_plan(self.kind, n)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler: BaseSampler
        if self.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(
                seed=observation.seed, n_startup_trials=2, multivariate=True
            )
        elif self.sampler == "nsga2":
            sampler = optuna.samplers.NSGAIISampler(seed=observation.seed, population_size=4)
        else:
            sampler = optuna.samplers.GPSampler(seed=observation.seed, n_startup_trials=2)
        directions = ["maximize"] * len(observation.names)
        study = optuna.create_study(directions=directions, sampler=sampler)
        space = dict.fromkeys(
            _center(observation), optuna.distributions.FloatDistribution(-FURTHEST, FURTHEST)
        )
        # NSGA-II breeds from trials of a generation; what was measured is the first.
        attributes = {"NSGAIISampler:generation": 0} if self.sampler == "nsga2" else {}
        for params, values in _told(observation):
            made = optuna.trial.create_trial(
                params=params, distributions=space, values=values, system_attrs=attributes
            )
            study.add_trial(made)
        asked = study.ask(space).params
        toolbox.conclude(f"asked {self.kind}")
        return [_plan_at(asked, self.kind, observation)]


class QnehviPlanner:
    """BoTorch's noisy expected hypervolume improvement over 1 in every objective."""

    kind = "botorch_qnehvi"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        from benchmarks.qnehvi import best_by_qnehvi

        require_one_plan(self.kind, n)
        center = _center(observation)
        points, results = [], []
        for params, values in _told(observation):
            points.append([params[name] for name in center])
            results.append(values)
        # The group of data sets, then the buckets of each.
        group_of = [name.partition("/")[0] if "/" in name else "" for name in center]
        groups = [[float(of == group) for of in group_of] for group in dict.fromkeys(group_of)]
        asked = best_by_qnehvi(
            np.array(points),
            np.array(results),
            np.array(list(center.values())),
            np.array(groups),
            FURTHEST,
            seed=1000 * observation.seed + observation.round,
        )
        toolbox.conclude(f"asked {self.kind}")
        chosen = dict(zip(center, asked.tolist(), strict=True))
        return [_plan_at(chosen, self.kind, observation)]


def _told(observation: Observation) -> list[tuple[dict[str, float], list[float]]]:
    """What was measured: log-ratios, and the selection mean of each objective."""
    told = []
    calibration = observation.calibration
    for scores in calibration.scores if calibration else ():
        values = [float(scores[name]["selection"].mean or 1.0) for name in observation.names]
        told.append((dict.fromkeys(_center(observation), 0.0), values))
    for past in observation.history:
        point = past.point(observation.names)
        if past.plan and point:
            told.append((_log_ratios(past.plan, observation), list(point)))
    return told


def _plan_at(asked: Mapping[str, float], kind: str, observation: Observation) -> ActionPlan:
    """The plan at these log-ratios, moved inside the limits."""
    ratios: dict[str, float] = {}
    buckets: dict[str, dict[str, float]] = {}
    for dataset, share in observation.proportions.items():
        ratios[dataset] = share * float(np.exp(asked[dataset]))
    for dataset, weights in observation.bucket_proportions.items():
        buckets[dataset] = {}
        for bucket, weight in weights.items():
            buckets[dataset][bucket] = weight * float(np.exp(asked[f"{dataset}/{bucket}"]))
    return feasible_plan(f"Proposed by {kind}.", ratios, buckets, observation)


def _center(observation: Observation) -> dict[str, float]:
    """The pools' own proportions: a share for each data set, a weight for each `dataset/bucket`."""
    center = dict(observation.proportions)
    for dataset, weights in observation.bucket_proportions.items():
        for bucket, weight in weights.items():
            center[f"{dataset}/{bucket}"] = weight
    return center


def _log_ratios(plan: ActionPlan, observation: Observation) -> dict[str, float]:
    """Where a plan lies in the space: logarithms of its shares over the pools' own.

    A share of 0.2 where the pool has 0.1 is at log 2, about 0.69; one of 0 where it has 0.1 is at
    -3, the edge.
    """
    shares = dict(plan.ratios)
    for dataset, weights in plan.bucket_weights.items():
        for bucket, weight in weights.items():
            shares[f"{dataset}/{bucket}"] = weight
    ratios = {}
    for name, own in _center(observation).items():
        ratio = (shares.get(name, 0.0) + MIN_SHARE) / (own + MIN_SHARE)
        ratios[name] = float(np.clip(np.log(ratio), -FURTHEST, FURTHEST))
    return ratios
