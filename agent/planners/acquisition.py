"""What a mixture is worth: by how much it is expected to widen what the run can choose from.

    worth = P(floors hold) * (expected gain in hypervolume over the mixtures that were measured
                              + expected fall of the least shortfall from targets, in points / 4)

So targets pull until a mixture that meets them is known, and what the archive does not have yet
pulls always. What was measured is taken at what the fit makes of it, not at face value.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from agent.noise import believed_noise
from agent.pareto import MIN_NOISE
from agent.planners.response_model import ResponseModel
from agent.weights import Floats
from mosaic.core.types.plans import BASE_FLOOR
from mosaic.core.types.runs import Observation

# A point nearer to a target is worth this share of the volume, about what a point adds to the volume
# itself: both pull alike. A higher worth spends every round of a run whose targets are out of reach
# on the same corner, for next to nothing (docs/planner-profile.md).
TARGET_WORTH = 0.25
# The noise of a training is standard normal: nodes and weights of Gauss and Hermite's quadrature.
NOISE_NODES, NOISE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
NOISE_WEIGHTS = NOISE_WEIGHTS / NOISE_WEIGHTS.sum()
# What the fit is unsure of is drawn this often, in pairs of opposite signs, and volumes are averaged
# over so many directions.
DRAWS, DIRECTIONS = 16, 192
# A floor must hold on the lower end of an interval: so far below the mean, in points.
FLOOR_MARGIN = 0.2


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


class Acquisition:
    """Values mixtures that are given as rows of cell shares, against those that were measured."""

    def __init__(self, observation: Observation, model: ResponseModel, measured: Floats) -> None:
        """`measured` (m, cells) are the mixtures whose results the run could choose from."""
        self._observation = observation
        self._model = model
        self._targets = targets_of(observation)
        self._names = [n for n in observation.traded if n in model.objectives]
        self._floors = _floors(observation, model)
        self._draws = _draws(len(self._names))
        self._noise = _noise(observation)
        self._reached = np.zeros(DIRECTIONS)
        self._least = np.inf
        if len(measured) and self._names:
            self.add(measured)

    def add(self, rows: Floats) -> None:
        """Take mixtures (m, cells) as measured, at their predicted means."""
        points = self._drawn(rows, np.zeros((1, len(self._names))))[:, 0]
        held = self._floors_hold(rows) > 0.5
        scales = scalarized(points) * held[:, None]
        self._reached = np.maximum(self._reached, scales.max(axis=0))
        self._least = min(self._least, float(self._shortfall(rows).mean(axis=1).min()))

    def parts(self, rows: Floats) -> dict[str, Floats]:
        """What the worth of each mixture is made of, each of shape (n,)."""
        if not self._names:
            return {"volume": np.zeros(len(rows)), "targets": np.zeros(len(rows))}
        held = self._floors_hold(rows)
        nearer = np.clip(self._least - self._shortfall(rows), 0, None).mean(axis=1)
        if not np.isfinite(self._least):
            nearer = -self._shortfall(rows).mean(axis=1)
        return {"volume": held * self._gain(rows), "targets": held * TARGET_WORTH * nearer}

    def merits(self, rows: Floats) -> Floats:
        """The volume of each mixture's own result, less what is missed of targets: (n, draws)."""
        if not self._names:
            return np.zeros((len(rows), DRAWS))
        volumes = np.prod((self._drawn(rows, self._draws) - 1) / 4, axis=2)
        return np.asarray(volumes - TARGET_WORTH * self._shortfall(rows))

    def _drawn(self, rows: Floats, draws: Floats) -> Floats:
        """Means that the fit thinks possible: shape (n, draws, objectives)."""
        drawn = []
        for name, column in zip(self._names, draws.T, strict=True):
            drawn.append(self._model.predict(rows, name, 0.0, column))
        return np.stack(drawn, axis=2)

    def _gain(self, rows: Floats) -> Floats:
        """Expected gain in hypervolume over what was measured, as a share of the box: (n,)."""
        points = self._drawn(rows, self._draws)
        gains = np.zeros(len(rows))
        size = len(self._names)
        for draw in range(DRAWS):
            scales = scalarized(points[:, draw, :])
            gains += (np.maximum(scales, self._reached) ** size - self._reached**size).mean(axis=1)
        return np.asarray(ball_part(size) * gains / DRAWS)

    def _shortfall(self, rows: Floats) -> Floats:
        """Expected shortfall below targets in points, summed, for each draw: shape (n, draws)."""
        points = self._drawn(rows, self._draws)
        total = np.zeros(points.shape[:2])
        for place, name in enumerate(self._names):
            if name in self._targets:
                below = self._targets[name] - points[:, :, place]
                total += expected_shortfalls(below, self._noise[name])
        return total

    def _floors_hold(self, rows: Floats) -> Floats:
        """How probable it is that a mixture holds all floors, shape (n,)."""
        probable = np.ones(len(rows))
        for name, floor in self._floors.items():
            means = self._model.predict(rows, name, 0.0, NOISE_NODES)
            probable *= (means >= floor) @ NOISE_WEIGHTS
        return probable


def _floors(observation: Observation, model: ResponseModel) -> dict[str, float]:
    """Objective -> the mean that it must reach for its floor to hold."""
    base: dict[str, float] = {}
    for past in observation.history:
        if past.plan is None and not past.failure:
            for name, roles in past.scores.items():
                mean = roles["selection"].mean
                if mean is not None:
                    base[name] = mean
    floors = {}
    for objective in observation.objectives:
        name, floor = objective.name, objective.floor
        if floor is None or name not in model.objectives:
            continue
        if floor != BASE_FLOOR:
            floors[name] = float(floor) + FLOOR_MARGIN
        elif name in base:
            floors[name] = base[name]
    return floors


def scalarized(points: Floats) -> Floats:
    """How far each point (n, objectives) reaches in each direction: shape (n, directions).

    It is min over objectives of (mean - 1) / 4 over the direction's component. Its power by the
    number of objectives, averaged over directions, is the dominated volume up to a constant.
    """
    inside = np.clip((points - 1) / 4, 0, None)
    directions = _directions(points.shape[1])
    reached = np.full((len(points), DIRECTIONS), np.inf)
    for column, component in zip(inside.T, directions.T, strict=True):
        np.minimum(reached, column[:, None] / component, out=reached)
    return reached


@lru_cache(maxsize=32)
def _directions(size: int) -> Floats:
    """Directions drawn evenly from the positive part of a sphere: shape (directions, size)."""
    drawn = np.abs(np.random.default_rng([size, 5]).standard_normal((DIRECTIONS, size))) + 1e-9
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@lru_cache(maxsize=32)
def _draws(size: int) -> Floats:
    """Standard normal draws in pairs of opposite signs: shape (draws, size)."""
    half = np.random.default_rng([size, 6]).standard_normal((DRAWS // 2, size))
    return np.vstack([half, -half])


def ball_part(size: int) -> float:
    """The volume of the part of a ball of radius 1 whose coordinates are all positive."""
    return math.pi ** (size / 2) / (2**size * math.gamma(size / 2 + 1))


def expected_shortfalls(below: Floats, noise: float) -> Floats:
    """Mean of max(0, below + noise z) for a standard normal z, as `agent.pareto` has it for one.

    >>> expected_shortfalls(np.array([-0.2, 0.0]), 0.2).round(3).tolist()
    [0.017, 0.08]
    """
    z = below / noise
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return np.asarray(below * ndtr(z) + noise * density)


def _noise(observation: Observation) -> dict[str, float]:
    """Objective -> the noise that a result is off by when it is chosen, in points."""
    measured = observation.calibration.noise if observation.calibration else {}
    return {name: max(MIN_NOISE, measured.get(name, 0.0)) for name in observation.traded}
