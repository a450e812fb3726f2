"""Planners to be compared with: the pools' proportions, random draws around them, and need."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from agent.constraints import refused_plans
from agent.feasible import feasible_plan
from agent.planners.base import require_one_plan
from agent.weights import complexity_of
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox


class StaticPlanner:
    """The pools' own proportions, every round: what one gets by concatenating the data."""

    kind = "static"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        toolbox.conclude("the pools' own proportions")
        proportions = observation.bucket_proportions
        plan = ActionPlan(
            rationale="The pools' own proportions.",
            ratios=observation.proportions,
            bucket_weights=proportions,
            expected={o.name: 0.0 for o in observation.objectives},
        )
        return [plan]


class RandomPlanner:
    """Log-normal draws around the pools' proportions, each moved back inside the limits."""

    kind = "random"

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        refused = len(refused_plans(observation))
        generator = np.random.default_rng(
            [observation.seed, observation.round, *([refused] if refused else [])]
        )

        def draw(weights: Mapping[str, float]) -> dict[str, float]:
            return {
                n: w * math.exp(self.spread * generator.standard_normal())
                for n, w in sorted(weights.items())
            }

        ratios = draw(observation.proportions)
        buckets = {
            dataset: draw(weights)
            for dataset, weights in sorted(observation.bucket_proportions.items())
        }
        toolbox.conclude(
            f"a draw around the pools' proportions with spread {self.spread} in log-ratios"
        )
        plan = feasible_plan(
            "A random draw around the pools' proportions.", ratios, buckets, observation
        )
        return [plan]


class NeedPlanner:
    """Budget in proportion to need, in two levels: objective, then slice (methods 1b).

    A slice's mean need is (6 - mean score) times its complexity, read from the slice's name.
    """

    kind = "need"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        ratios: dict[str, float] = dict.fromkeys(observation.stock, 0.0)
        buckets: dict[str, dict[str, float]] = {}
        for objective in observation.objectives:
            need = {}
            for profile in observation.profile.of(objective.name):
                if profile.score.mean is not None:
                    need[profile.slice] = (
                        profile.score.n_scored
                        * (6 - profile.score.mean)
                        * complexity_of(profile.slice)
                    )
            for dataset in objective.datasets:
                share = {
                    b: need[b] for b in observation.bucket_proportions.get(dataset, {}) if b in need
                }
                ratios[dataset] += math.fsum(share.values()) / len(objective.datasets)
                if share:
                    buckets[dataset] = share
            toolbox.conclude(f"{objective.name}: need {math.fsum(need.values()):.0f}")
        if any(ratios.values()):
            return [feasible_plan("Budget in proportion to need.", ratios, buckets, observation)]
        unmoved = feasible_plan(
            "No slice is scored: no need is known, and nothing is moved.", {}, {}, observation
        )
        return [unmoved]
