"""The surrogate of one observation: what it predicts of mixtures, and which it finds best.

Three use it: the planner `profile`, the tools of a model that plans, and whoever wants a prediction.
Inside, everything has names that say nothing (`canonical`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.constraints import refused_plans
from agent.feasible import FeasibleSpace
from agent.planners.acquisition import NOISE_WEIGHTS, Acquisition, predicted_means
from agent.planners.canonical import Names
from agent.planners.fallen import missing_share, raised_ratios, shares_to_reach
from agent.planners.response_model import ResponseModel, fit_responses
from agent.prediction import Change, expected_changes
from agent.weights import Floats, Weights, cell_shares, perturb, share_row, weights_of
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation

# The search: so many mixtures in each pass, moved by a spread that narrows from pass to pass.
CANDIDATES = 96
SPREADS = (1.2, 0.9, 0.6, 0.4, 0.3, 0.2, 0.15, 0.15, 0.1, 0.1, 0.07, 0.05)
# Each pass moves the so many best points, and the first begins with at most so many of the plans
# that were executed.
CENTERS, MAX_STARTS = 4, 12
# What a move adds to every weight, so that none stays at zero.
MOVE_FLOOR = 0.003
# A mixture nearer than this (L1 over cells) to one that was trained would teach next to nothing,
# and is worth so much less.
MIN_NEWS, STALE_COST = 0.12, 1.0
# What a share costs that an objective which fell below the base would need and does not get: a
# hundredth of all tokens costs as much as 16 hundredths of the volume.
MISSING_COST = 16.0

# Whether a mixture, under its real names, may be suggested.
Allowed = Callable[[Weights], bool]


@dataclass(frozen=True)
class Candidate:
    """A mixture that was searched, and what it is worth: value = volume + targets - price.

    `predicted` is objective -> selection mean, 1-5. `volume` is the expected gain in hypervolume,
    `targets` what coming nearer to the targets is worth, `price` what is taken off.
    """

    weights: Weights
    predicted: dict[str, float]
    value: float
    volume: float
    targets: float
    price: float


class Surrogate:
    """The fit of one observation. Names in and out are the observation's own."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self._names = Names(observation)
        self._seen = self._names.observation(observation)
        self.model: ResponseModel = fit_responses(self._seen)
        self._searched: tuple[list[Weights], Floats] | None = None

    @property
    def slices(self) -> dict[tuple[str, str], float]:
        """(objective, slice) -> what doubling the objective's tokens is believed to add to it."""
        effects = {}
        for objective, name in self.model.slices:
            real = self._names.real_objectives[objective], self._names.real_slice(name)
            effects[real] = self.model.doubling_effect((objective, name))
        return effects

    def changes(self, plan: ActionPlan) -> dict[str, Change]:
        """What a plan's mixture is expected to change of each objective's selection mean."""
        plain = self._names.plan(plan)
        shares = cell_shares(*weights_of(plain, self._seen.bucket_proportions))
        found = expected_changes(shares, self._seen, self.model)
        real = self._names.real_objectives
        changes = {real[objective]: change for objective, change in found.items()}
        return {name: changes[name] for name in self.observation.names if name in changes}

    def best(self, n: int, allowed: Allowed | None = None) -> list[Weights]:
        """The best `n` mixtures: each is chosen as if those before it were being tried.

        Fewer if fewer are found that are `allowed` and differ from each other.
        """
        points, values = self._points()
        if allowed is not None:
            kept = [place for place, point in enumerate(points) if allowed(self._names.real(point))]
            points, values = [points[place] for place in kept], values[kept]
        chosen: list[Weights] = []
        worth = self._worth()
        while points and len(chosen) < n:
            point = points[int(np.argmax(values))]
            chosen.append(point)
            if len(chosen) == n:
                break
            rows = _rows([point], self.model)
            worth.pretend(rows)
            far = np.abs(_rows(points, self.model) - rows).sum(axis=1) >= MIN_NEWS
            points = [one for one, is_far in zip(points, far, strict=True) if is_far]
            values = worth.of(points) if points else np.zeros(0)
        return [self._names.real(point) for point in chosen]

    def shown(self, most: int, apart: float) -> tuple[int, list[Candidate], Candidate]:
        """How many mixtures were valued, the best that lie `apart` (L1), and the one executed last."""
        points, values = self._points()
        order = np.argsort(-values, kind="stable")
        best = self._different([points[place] for place in order], most, apart)
        last = weights_of(self._seen.last_plan, self._seen.bucket_proportions)
        *found, executed = self._candidates([*best, last])
        return len(points), found, executed

    def _worth(self) -> _Worth:
        return _Worth(self._seen, self.model)

    def _points(self) -> tuple[list[Weights], Floats]:
        """All points of one search and their values. It is made once."""
        if self._searched is None:
            self._searched = _search(self._seen, self._worth())
        return self._searched

    def _different(self, points: Sequence[Weights], most: int, apart: float) -> list[Weights]:
        """The first `most` of some points that lie further than `apart` from all before them."""
        kept: list[Weights] = []
        taken: list[Floats] = []
        for point, row in zip(points, _rows(points, self.model), strict=True):
            if all(np.abs(row - other).sum() > apart for other in taken):
                kept.append(point)
                taken.append(row)
            if len(kept) == most:
                break
        return kept

    def _candidates(self, points: Sequence[Weights]) -> list[Candidate]:
        means = predicted_means(self.model, _rows(points, self.model), self._seen)
        parts = self._worth().parts(points)
        real = self._names.real_objectives
        found = []
        for number, point in enumerate(points):
            told = {name: round(float(part[number]), 4) for name, part in parts.items()}
            predicted = {}
            for name, mean in means.items():
                predicted[real[name]] = round(float(mean[number] @ NOISE_WEIGHTS), 4)
            value = round(told["volume"] + told["targets"] - told["price"], 4)
            found.append(Candidate(self._names.real(point), predicted, value, **told))
        return found


def _search(observation: Observation, worth: _Worth) -> tuple[list[Weights], Floats]:
    """Mixtures inside the limits, and their values.

    Random moves in log-ratios around the best points so far, narrower each time. Every point is
    drawn back inside the limits before it is valued.
    """
    generator = np.random.default_rng([observation.seed, observation.round, 17])
    space = FeasibleSpace(observation)
    needed = shares_to_reach(observation)
    points = []
    for start in _starts(observation):
        points.append(space.project(raised_ratios(start.ratios, needed), start.buckets))
    values = worth.of(points)
    for spread in SPREADS:
        centers = np.argsort(-values, kind="stable")[:CENTERS]
        moved = []
        for number in range(CANDIDATES):
            center = points[centers[number % len(centers)]]
            moved.append(space.project(*_moved(center, spread, generator)))
        points += moved
        values = np.concatenate([values, worth.of(moved)])
    return points, values


def _starts(observation: Observation) -> list[Weights]:
    """Where the search begins: the pools' proportions, and plans that were executed, latest first."""
    plans = [observation.last_plan]
    for past in reversed(observation.history):
        if past.plan and past.plan not in plans:
            plans.append(past.plan)
    starts = [weights_of(plan, observation.bucket_proportions) for plan in plans[:MAX_STARTS]]
    buckets = {d: dict(weights) for d, weights in observation.bucket_proportions.items()}
    ratios = {dataset: observation.proportions[dataset] for dataset in buckets}
    return [*starts, Weights(ratios, buckets)]


def _moved(point: Weights, spread: float, generator: np.random.Generator) -> Weights:
    ratios = perturb(point.ratios, spread, generator, MOVE_FLOOR)
    buckets = {}
    for dataset, weights in sorted(point.buckets.items()):
        buckets[dataset] = perturb(weights, spread, generator, MOVE_FLOOR)
    return Weights(ratios, buckets)


class _Worth:
    """Values points: what they are expected to gain, less a price if they were tried before.

    What a point leaves an objective that fell below the base has a price too (`fallen`).
    """

    def __init__(self, observation: Observation, model: ResponseModel) -> None:
        self._model = model
        self._needed = shares_to_reach(observation)
        executed = [past.plan for past in observation.history if past.plan and not past.failure]
        if observation.calibration:
            executed.append(observation.calibration.mixture)
        refused = refused_plans(observation)
        tried = [past.plan for past in observation.history if past.plan] + refused
        self._tried = self._rows_of(tried, observation)
        self._acquisition = Acquisition(observation, model, self._rows_of(executed, observation))

    def pretend(self, rows: Floats) -> None:
        """Value points from now on as if these mixtures (m, cells) had come out as predicted."""
        self._acquisition.add(rows)

    def of(self, points: Sequence[Weights]) -> Floats:
        """The value of each point, shape (points,)."""
        parts = self.parts(points)
        return parts["volume"] + parts["targets"] - parts["price"]

    def parts(self, points: Sequence[Weights]) -> dict[str, Floats]:
        """What each value is made of, each of shape (points,)."""
        rows = _rows(points, self._model)
        news = np.abs(rows[:, None, :] - self._tried[None, :, :]).sum(axis=2)
        stale = (news < MIN_NEWS).any(axis=1)
        missing = np.array([missing_share(point.ratios, self._needed) for point in points])
        price = STALE_COST * stale + MISSING_COST * missing
        return {**self._acquisition.parts(rows), "price": price}

    def _rows_of(self, plans: Sequence[ActionPlan], observation: Observation) -> Floats:
        points = [weights_of(plan, observation.bucket_proportions) for plan in plans]
        return _rows(points, self._model).reshape(len(plans), len(self._model.cells))


def _rows(points: Sequence[Weights], model: ResponseModel) -> Floats:
    """Cell shares of each point, shape (points, cells)."""
    return np.array([share_row(model.cells, cell_shares(*point)) for point in points])
