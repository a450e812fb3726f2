"""Planning over many buckets, on a landscape of logarithms: what it costs, and how good it is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from agent.planners.baselines import NeedPlanner, RandomPlanner
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import Cell
from benchmarks.drive import Drive, Means
from benchmarks.figures import Rows, compared, figure
from mosaic.core.types.plans import ActionPlan, ObjectiveSpec
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

ROUNDS, DATASETS, BUCKETS, OBJECTIVES = 50, 10, 6, 5
POOL = 20.0
# Pools that `profile` and `need` are compared on; 101 to 104 were looked at while it was written.
POOLS = 10


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
        return _means(self.objectives, self._buckets, shares)


def _means(
    served: Sequence[ObjectiveSpec],
    buckets: Mapping[str, Sequence[str]],
    shares: Mapping[Cell, float],
) -> Means:
    found = {}
    for objective in served:
        for dataset in objective.datasets:
            for bucket in buckets[dataset]:
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


class Misdeclared(LogLandscape):
    """The same, each objective with the data sets that serve the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self._served = self.objectives
        declared = [*self._served[1:], self._served[0]]
        self.objectives = [
            one.model_copy(update={"datasets": other.datasets})
            for one, other in zip(self._served, declared, strict=True)
        ]

    def means(self, shares: Mapping[Cell, float]) -> Means:
        return _means(self._served, self._buckets, shares)


def _ahead_of_need(quick: bool) -> Rows:
    """Hypervolume after five rounds, `profile` less `need`, paired over pools."""
    rows = []
    for what, landscape in (("rightly", LogLandscape()), ("wrongly", Misdeclared())):
        ahead = []
        for pool in range(1, 3 if quick else POOLS + 1):
            own, other = (
                Drive(landscape, pool).run(planner).volume
                for planner in (SurrogatePlanner(), NeedPlanner())
            )
            ahead.append(own - other)
        label = f"{OBJECTIVES} objectives of 12 slices, declared {what}: profile less need"
        rows.append(compared(label, ahead, "share of the volume"))
    return rows


def planning(quick: bool) -> Rows:
    """Processor seconds of one planning after 50 rounds, with 10 data sets and 60 buckets.

    And how far ahead of `need` it is there.
    """
    rounds = 10 if quick else ROUNDS
    planner = _Timed()
    Drive(LogLandscape(), seed=1).run(planner, rounds + 1)
    what = f"planning by profile after {rounds} rounds, {DATASETS * BUCKETS} buckets"
    rows = [figure(what, planner.seconds, "s of processor time", at_most=2)]
    return [*rows, *_ahead_of_need(quick)]
