"""The archive in order: which of its rounds is expected to be best, and how probably it is.

With one objective the noise keeps most rounds in the archive, and with six hardly one dominates
another. The archive alone then tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.pareto import MIN_NOISE, REFERENCE, SPAN, merit
from agent.weights import Floats
from eval.statistics import NoiseEstimate
from mosaic.core.types.base import SCALE
from mosaic.core.types.plans import ObjectiveSpec
from mosaic.core.types.runs import Round

DRAWS = 4000
SEED = 20260303
# Shortfalls count to a thousandth of a point, as in `merit`, and any outweighs all volume, 0-1.
SHORTFALL_STEP, SHORTFALL_WEIGHT = 1e-3, 1e4


@dataclass(frozen=True)
class Ranked:
    """A trial with its merit and the probability (0-1) that none of the others is better.

    `shortfall` is what is expected to miss the targets, in points summed over objectives, and
    `volume` the share of the box (0-1) that the round dominates alone.
    """

    round: int
    trial: str
    shortfall: float
    volume: float
    best: float


def ranked(
    rounds: Sequence[Round],
    kept: Sequence[int],
    objectives: Sequence[ObjectiveSpec],
    noise: Mapping[str, NoiseEstimate],
    calibrated: Mapping[str, float],
) -> list[Ranked]:
    """The archived trials by merit, the best first; of equals the earlier one.

    `rounds` has each as a round of its own (`RunState.archived`), `kept` the numbers of the rounds
    that are ranked; the base is left out, since it cannot be chosen. The
    order is that of `choose`, by the calibration's own noise; `noise` is what is believed of it,
    which the probabilities are drawn with.
    """
    names = [objective.name for objective in objectives]
    places, points = [], []
    for round_ in rounds:
        point = round_.point(names)
        if round_.round and round_.round in kept and point is not None:
            places.append((round_.round, round_.trial.id))
            points.append(point)
    if not points:
        return []
    deviations = {name: calibrated.get(name, MIN_NOISE) for name in names}
    chances = chances_of_best(np.array(points), objectives, noise)
    found = []
    for (number, trial), point, best in zip(places, points, chances, strict=True):
        gain, volume = merit(point, objectives, deviations)
        found.append(Ranked(number, trial, -gain, volume, float(best)))
    return sorted(found, key=lambda one: (one.shortfall, -one.volume, one.round))


def chances_of_best(
    points: Floats, objectives: Sequence[ObjectiveSpec], noise: Mapping[str, NoiseEstimate]
) -> Floats:
    """The probability that each of r measured points is the best in truth, shape (r,).

    `points` are selection means, shape (r, objectives). The truth is each mean plus a draw of
    Student's t with the believed noise, kept within the scale, and the best has the least shortfall
    below the targets and then the greatest volume, which is the product of (mean - 1) / 4.

    Two rounds that differ by half of a noise of 0.1 points, the difference having 0.14:

    >>> one = [ObjectiveSpec(name="safety", datasets=["guard"])]
    >>> sure = {"safety": NoiseEstimate(0.1, 1000)}
    >>> [round(float(p), 1) for p in chances_of_best(np.array([[3.0], [3.05]]), one, sure)]
    [0.4, 0.6]
    """
    generator = np.random.default_rng(SEED)
    shortfall = np.zeros((DRAWS, len(points)))
    volume = np.ones((DRAWS, len(points)))
    for column, objective in enumerate(objectives):
        estimate = noise[objective.name]
        off = estimate.deviation * generator.standard_t(estimate.freedom, shortfall.shape)
        truth = np.clip(points[:, column] + off, *SCALE)
        volume *= (truth - REFERENCE) / SPAN
        if objective.target is not None:
            shortfall += np.clip(objective.target - truth, 0, None)
    worth = volume - SHORTFALL_WEIGHT * SHORTFALL_STEP * np.round(shortfall / SHORTFALL_STEP)
    # Draws at the end of the scale may tie; the earlier round has them.
    wins: Floats = np.bincount(worth.argmax(axis=1), minlength=len(points)) / DRAWS
    return wins
