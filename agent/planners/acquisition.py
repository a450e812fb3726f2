"""What a mixture is worth: the volume it is expected to dominate, less a price for missed targets.

Both are averaged over the noise of a training. A mixture whose mean lies just at the top of the
scale or at a target is therefore worth less than one with room to spare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from agent.noise import believed_noise
from agent.planners.response_model import ResponseModel
from agent.weights import Floats
from mosaic.core.types.runs import Calibration, Observation

# A point below a target costs four times the whole volume: targets come first, as when the result
# is chosen.
SHORTFALL_COST = 16.0
# The noise of a training is standard normal: nodes and weights of Gauss and Hermite's quadrature.
NOISE_NODES, NOISE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
NOISE_WEIGHTS = NOISE_WEIGHTS / NOISE_WEIGHTS.sum()


def noise_prior(observation: Observation) -> dict[str, float]:
    """Objective that has data -> standard deviation of its mean from one training to the next."""
    return believed_noise(observation.calibration, observation.traded)


def predicted_means(
    model: ResponseModel, rows: Floats, observation: Observation
) -> dict[str, Floats]:
    """Objective -> predicted means of each mixture (n) at each noise node (k), shape (n, k).

    Objectives without data or without slices are left out.
    """
    predicted = {}
    for objective, noise in noise_prior(observation).items():
        means = model.predict(rows, objective, noise, NOISE_NODES)
        if not np.isnan(means).any():
            predicted[objective] = means
    return predicted


def targets_of(observation: Observation) -> dict[str, float]:
    """Objective -> target, for those that have one."""
    return {o.name: o.target for o in observation.objectives if o.target}


def expected_values(
    means: Mapping[str, Floats], targets: Mapping[str, float], weights: Floats = NOISE_WEIGHTS
) -> Floats:
    """What is maximised: the value of each mixture, shape (n,).

    `means` is objective -> (n, k) means at k noise nodes with `weights` (k,). The noise of
    objectives is independent:

        value = product of E[(mean - 1) / 4] - 16 / 4 * sum of E[max(0, target - mean)]

    A mixture at 3.0 with one objective and at 5.0 with another dominates 0.5 * 1.0 of the volume.
    A target of 4.5 for the first is missed by 1.5, which costs 4 * 1.5:

    >>> at = {"safety": np.array([[3.0]]), "help": np.array([[5.0]])}
    >>> expected_values(at, {"safety": 4.5}, np.ones(1)).tolist()
    [-5.5]
    """
    volume: Floats = np.ones(())
    for mean in means.values():
        volume = volume * (np.clip((mean - 1) / 4, 0, None) @ weights)
    shortfall: Floats = np.zeros(())
    for objective, target in targets.items():
        if objective in means:
            shortfall = shortfall + np.clip(target - means[objective], 0, None) @ weights
    return np.asarray(volume - SHORTFALL_COST * shortfall / 4)


def measured_value(means: Mapping[str, float], targets: Mapping[str, float]) -> float:
    """The value of a result that was measured.

    >>> measured_value({"safety": 3.0, "help": 5.0}, {"safety": 2.5})
    0.5
    """
    certain = {objective: np.array([[mean]]) for objective, mean in means.items()}
    return float(expected_values(certain, targets, np.ones(1))[0])


def calibration_means(calibration: Calibration, names: Sequence[str]) -> dict[str, float]:
    """Selection means over the repeats; objectives that none of them scored are left out."""
    means = {}
    for name in names:
        scored = []
        for scores in calibration.scores:
            mean = scores[name]["selection"].mean
            if mean is not None:
                scored.append(mean)
        if scored:
            means[name] = fmean(scored)
    return means
