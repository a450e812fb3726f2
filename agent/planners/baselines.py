"""Planners to compare with: the pools' own proportions, random draws around them, and need."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from agent.constraints import refused_plans
from agent.feasible import feasible_plan
from agent.methods import with_methods_of
from agent.planners.base import Planner, PlannerSettings, require_one_plan
from agent.planners.siblings import spread_around, with_siblings
from agent.weights import perturb
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox


class StaticPlanner:
    """The pools' own proportions, every round: what one gets by concatenating the data."""

    kind = "static"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        toolbox.conclude("the pools' own proportions")
        plan = ActionPlan(
            rationale="The pools' own proportions.",
            ratios=observation.proportions,
            bucket_weights=observation.bucket_proportions,
            expected=dict.fromkeys(observation.names, 0.0),
        )
        return [with_methods_of(plan, observation.last_plan)]


class StaticPlannerConfig(PlannerSettings):
    """The pools' own proportions, every round."""

    kind: Literal["static"] = "static"

    def build(self) -> Planner:
        return StaticPlanner()


class RandomPlanner:
    """Log-normal draws around the pools' proportions, each moved back inside the limits.

    `spread` is the standard deviation of a log-ratio.
    """

    kind = "random"

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        seed = [observation.seed, observation.round]
        # After a refusal the round needs another draw.
        refused = len(refused_plans(observation))
        if refused:
            seed.append(refused)
        generator = np.random.default_rng(seed)

        def draw() -> ActionPlan:
            ratios = perturb(observation.proportions, self.spread, generator)
            buckets = {}
            for dataset, weights in sorted(observation.bucket_proportions.items()):
                buckets[dataset] = perturb(weights, self.spread, generator)
            rationale = "A random draw around the pools' proportions."
            return feasible_plan(rationale, ratios, buckets, observation)

        toolbox.conclude(
            f"a draw around the pools' proportions with spread {self.spread} in log-ratios"
        )
        return with_siblings(self.kind, draw(), n, draw, observation, toolbox)


class RandomPlannerConfig(PlannerSettings):
    """Draws around the pools' proportions. `spread` is the standard deviation of a log-ratio."""

    kind: Literal["random"] = "random"
    spread: float = Field(default=1.0, gt=0, le=5)

    def build(self) -> Planner:
        return RandomPlanner(self.spread)


class NeedPlanner:
    """Budget in proportion to need, in two levels: objective, then slice (methods 1b).

    Further plans of a round are draws around that one.

    A slice's need is its number of scored prompts, times 6 less its mean score, times the mean
    weight of its prompts in the suite: 30 prompts of weight 3 with a mean of 4.5 need
    30 * (6 - 4.5) * 3 = 135.
    """

    kind = "need"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        ratios: dict[str, float] = dict.fromkeys(observation.stock, 0.0)
        buckets: dict[str, dict[str, float]] = {}
        for objective in observation.objectives:
            need = needs(observation, objective.name)
            total = math.fsum(need.values())
            for dataset in objective.datasets:
                in_stock = observation.bucket_proportions.get(dataset, {})
                share = {bucket: need[bucket] for bucket in in_stock if bucket in need}
                # Buckets that are not slices share the objective's need as the pool has them.
                own = math.fsum(share.values()) if share else total
                ratios[dataset] += own / len(objective.datasets)
                if share:
                    buckets[dataset] = share
            toolbox.conclude(f"{objective.name}: need {total:.0f}")
        rationale = "No slice is scored: no need is known, and nothing is moved."
        if any(ratios.values()):
            keep_general_share(ratios, observation)
            rationale = "Budget in proportion to need."
        else:
            ratios, buckets = {}, {}
        first = feasible_plan(rationale, ratios, buckets, observation)
        return spread_around(self.kind, first, n, observation, toolbox)


class NeedPlannerConfig(PlannerSettings):
    """Splits the budget in proportion to need = valid x (6 - score) x weight (methods 1b)."""

    kind: Literal["need"] = "need"

    def build(self) -> Planner:
        return NeedPlanner()


def keep_general_share(ratios: dict[str, float], observation: Observation) -> None:
    """Give data sets that no objective names the share that the pool has of them.

    Nothing measures a need for general data: with needs of 30 and 10 and a fifth of the pool
    general, it gets 10 of then 50.
    """
    named: set[str] = set()
    for objective in observation.objectives:
        named |= set(objective.datasets)
    general = {d: p for d, p in observation.proportions.items() if d not in named}
    share = math.fsum(general.values())
    if not 0 < share < 1:
        return
    needed = math.fsum(ratios.values())
    for dataset, proportion in general.items():
        ratios[dataset] = needed * proportion / (1 - share)


def needs(observation: Observation, objective: str) -> dict[str, float]:
    """Slice -> need, for the scored slices of an objective."""
    need = {}
    for profile in observation.profile.of(objective):
        if profile.score.mean is not None:
            valid, gap = profile.score.n_scored, 6 - profile.score.mean
            need[profile.slice] = valid * gap * profile.weight
    return need
