"""What one planning costs in a long run over many buckets, on a landscape of logarithms."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from agent.planners.baselines import RandomPlanner
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import Cell
from benchmarks.drive import Drive, Means
from benchmarks.figures import Rows, figure
from mosaic.core.types.plans import ActionPlan, ObjectiveSpec
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

ROUNDS, DATASETS, BUCKETS, OBJECTIVES = 50, 10, 6, 5
POOL = 20.0


class LogLandscape:
    """Each slice answers to the logarithm of its own bucket's share; each objective has two data sets."""

    def __init__(self) -> None:
        names = [f"d{number}" for number in range(DATASETS)]
        self._buckets = {name: [f"{name}_b{place}" for place in range(BUCKETS)] for name in names}
        self.objectives = []
        for number in range(OBJECTIVES):
            own = names[2 * number : 2 * number + 2]
            self.objectives.append(ObjectiveSpec(name=f"o{number}", datasets=own, target=4.0))

    def pool(self, seed: int) -> dict[str, dict[str, float]]:
        draws = np.random.default_rng(seed)
        tokens = {}
        for name, buckets in self._buckets.items():
            drawn = POOL / (DATASETS * BUCKETS) * np.exp(draws.standard_normal(BUCKETS))
            tokens[name] = dict(zip(buckets, drawn.tolist(), strict=True))
        return tokens

    def means(self, shares: Mapping[Cell, float]) -> Means:
        found = {}
        for objective in self.objectives:
            for dataset in objective.datasets:
                for bucket in self._buckets[dataset]:
                    share = shares.get((dataset, bucket), 0.0)
                    mean = 3.5 + 0.6 * math.log(DATASETS * BUCKETS * share + 0.05)
                    found[objective.name, bucket] = min(5.0, max(1.0, mean))
        return found


class _Timed:
    """Random plans, and the surrogate's for the last round, whose processor time is kept."""

    kind = "timed"

    def __init__(self) -> None:
        self.seconds = 0.0

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        if observation.round < observation.rounds:
            return RandomPlanner().propose(observation, toolbox)
        before = time.process_time()
        plans = SurrogatePlanner().propose(observation, toolbox)
        self.seconds = time.process_time() - before
        return plans


def planning(quick: bool) -> Rows:
    """Processor seconds of one planning after 50 rounds, with 10 data sets and 60 buckets."""
    rounds = 10 if quick else ROUNDS
    planner = _Timed()
    Drive(LogLandscape(), seed=1).run(planner, rounds + 1)
    what = f"planning by profile after {rounds} rounds, {DATASETS * BUCKETS} buckets"
    return [figure(what, planner.seconds, "s of processor time", at_most=2)]
