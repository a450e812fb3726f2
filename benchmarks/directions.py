"""`profile` with influence beside `profile` without, on a landscape: right, wrong, and nothing but noise.

No model is trained, so nothing can be estimated by gradients. What stands in for influence is made
of the landscape's true slopes at the mixture executed last: it is as good as influence could be, or
as bad, and says nothing about how good it is on a model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from agent.planners.base import require_one_plan
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import Cell, Floats, plan_shares
from benchmarks.drive import Landscape
from mosaic.core.types.influence import BucketInfluence, Effect, Influence, SteeringPrompts
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

# Estimates are too large by a factor of hundreds; any other would do.
SCALE = 300.0
# Noise of an estimate, in root mean squares of the true effects of its objective.
NOISE = 0.5
# The step in a cell's share that slopes are taken over, before all are scaled to 1 again.
STEP = 1e-3
# How far the true effects enter what is told: all of them, none, or turned round.
TRUTH = {"right": 1.0, "noise": 0.0, "wrong": -1.0}


class WithInfluence:
    """`profile`, told of influence that is `right`, `wrong` or `noise`.

    The standard errors that it is told are those of the noise. Influence that is `wrong` states them
    too, and so claims to be as sure as what is right.
    """

    kind = SurrogatePlanner.kind

    def __init__(self, landscape: Landscape, told: str) -> None:
        self._landscape, self._told = landscape, told

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        influence = landscape_influence(self._landscape, observation, self._told)
        told = observation.model_copy(update={"influence": influence})
        own = Toolbox(told, lambda *wanted: [], lambda draft: [])
        return SurrogatePlanner().propose(told, own)


def landscape_influence(landscape: Landscape, observation: Observation, told: str) -> Influence:
    """What stands in for influence at the mixture executed last."""
    shares = plan_shares(observation.last_plan, observation.bucket_proportions)
    names = observation.names
    slopes = _slopes(landscape, shares, names)
    draws = np.random.default_rng([observation.seed, observation.round, zlib.crc32(told.encode())])
    errors = NOISE * np.sqrt((slopes**2).mean(axis=0))
    estimates = TRUTH[told] * slopes + errors * draws.standard_normal(slopes.shape)
    buckets = []
    for (dataset, bucket), row in zip(shares, SCALE * estimates, strict=True):
        effects = {}
        for name, value, error in zip(names, row, SCALE * errors, strict=True):
            effects[name] = Effect(value=float(value), standard_error=float(error))
        mean = Effect(value=float(row.mean()), standard_error=float(SCALE * errors.max()))
        buckets.append(
            BucketInfluence(
                dataset=dataset,
                bucket=bucket,
                share=shares[dataset, bucket],
                rows=100,
                tokens=2000,
                effects=effects,
                mean=mean,
            )
        )
    prompts = {name: SteeringPrompts(used=100, loss=1.0) for name in names}
    return Influence(adapters=["landscape"], prompts=prompts, buckets=buckets)


def _slopes(landscape: Landscape, shares: Mapping[Cell, float], names: list[str]) -> Floats:
    """What a little more of each cell adds to each objective's mean: shape (cells, objectives)."""
    before = _objective_means(landscape, shares, names)
    rows = []
    for cell in shares:
        moved = {**shares, cell: shares[cell] + STEP}
        scaled = {one: share / (1 + STEP) for one, share in moved.items()}
        rows.append((_objective_means(landscape, scaled, names) - before) / STEP)
    return np.array(rows)


def _objective_means(
    landscape: Landscape, shares: Mapping[Cell, float], names: list[str]
) -> Floats:
    means = landscape.means(shares)
    found = []
    for name in names:
        found.append(np.mean([mean for (of, _), mean in means.items() if of == name]))
    return np.array(found)
