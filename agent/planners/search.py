"""The surrogate of one observation: what it predicts of mixtures, and which it finds best.

Three use it: the planner `profile`, the tools of a model that plans, and whoever wants a prediction.
Inside, everything has names that say nothing (`canonical`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agent.constraints import refused_plans
from agent.feasible import FeasibleSpace
from agent.planners.acquisition import NOISE_WEIGHTS, Acquisition, predicted_means
from agent.planners.canonical import Names
from agent.planners.fallen import raised_ratios, shares_to_reach
from agent.planners.response_model import LookError, ResponseModel, fit_responses
from agent.planners.rough import RoughSpace
from agent.prediction import Change, expected_changes
from agent.weights import Floats, Weights, cell_shares, share_row, weights_of
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation, each_trial

# The search: so many mixtures in each pass, moved by a spread that narrows from pass to pass.
CANDIDATES = 96
SPREADS = (1.2, 0.9, 0.6, 0.4, 0.3, 0.2, 0.15, 0.15, 0.1, 0.1, 0.07, 0.05)
# Each pass moves the so many best points, and the first begins with at most so many of the plans
# that were executed.
CENTERS, MAX_STARTS = 4, 12
# Of each pass so many are drawn back inside the limits exactly, which takes most of the time.
KEPT = 8
# A mixture nearer than this (L1 over cells) to one that was trained would teach next to nothing,
# and is worth so much less.
MIN_NEWS, STALE_COST = 0.12, 1.0
# What a share costs that an objective which fell below the base would need and does not get: a
# hundredth of all tokens costs as much as 16 hundredths of the volume.
MISSING_COST = 16.0

# The same of a share outside of the bounds that somebody asked for.
OUTSIDE_COST = 16.0
# What rounding to millionths may take a share out of its bounds.
ROUNDING = 1e-5

# Half of a 90 % interval in standard deviations, and the least lag that counts as one.
HALF_90, MIN_LAG = 1.645, 0.01

# Data set -> least and largest share.
Bounds = Mapping[str, tuple[float, float]]


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


class Lag(NamedTuple):
    """How much worse a plan is predicted than the best mixture found, and half the 90 % interval of it.

    In shares of the volume, of which a point below a target costs a quarter.
    """

    mean: float
    half_width: float

    @property
    def clear(self) -> bool:
        """Whether the plan is worse by more than its interval."""
        return self.mean > max(self.half_width, MIN_LAG)


class Surrogate:
    """The fit of one observation. Names in and out are the observation's own."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self._names = Names(observation)
        self._seen = self._names.observation(observation)
        self.model: ResponseModel = fit_responses(self._seen)
        self._space = RoughSpace(self._seen)
        self._past = _Past.of(self._seen, self.model)
        self._searched: dict[object, tuple[list[Weights], Floats, int]] = {}

    @property
    def slices(self) -> dict[tuple[str, str], float]:
        """(objective, slice) -> what doubling the objective's tokens is believed to add to it."""
        effects = {}
        for objective, name in self.model.slices:
            real = self._names.real_objectives[objective], self._names.real_slice(name)
            effects[real] = self.model.doubling_effect((objective, name))
        return effects

    @property
    def influence_weights(self) -> dict[str, float]:
        """Objective -> the weight that the fit gives its influence; empty without influence."""
        real = self._names.real_objectives
        return {real[name]: weight for name, weight in self.model.influence_weights.items()}

    @property
    def looks(self) -> dict[str, dict[str, LookError]]:
        """Objective -> kind of look -> how such looks were off in this run; empty without looks."""
        real = self._names.real_objectives
        return {real[name]: dict(errors) for name, errors in self.model.looks.items()}

    def changes(self, plan: ActionPlan) -> dict[str, Change]:
        """What a plan's mixture is expected to change of each objective's selection mean."""
        plain = self._names.plan(plan)
        shares = cell_shares(*weights_of(plain, self._seen.bucket_proportions))
        found = expected_changes(shares, self._seen, self.model)
        real = self._names.real_objectives
        changes = {real[objective]: change for objective, change in found.items()}
        return {name: changes[name] for name in self.observation.names if name in changes}

    def lag(self, plan: ActionPlan) -> Lag:
        """How far a plan's own result is predicted to lie behind that of the best mixture found."""
        points = [*self.best(1), weights_of(plan, self.observation.bucket_proportions)]
        plain = []
        for point in points:
            draft = ActionPlan(rationale="", ratios=point.ratios, bucket_weights=point.buckets)
            plain.append(weights_of(self._names.plan(draft), self._seen.bucket_proportions))
        merits = self._worth({}).merits(plain)
        behind = merits[0] - merits[1]
        return Lag(float(behind.mean()), float(HALF_90 * behind.std()))

    def best(self, n: int, bounds: Bounds | None = None) -> list[Weights]:
        """The best `n` mixtures: each is chosen as if those before it were being tried.

        `bounds` is data set -> least and largest share. Fewer if fewer are found that lie within
        them and differ from each other.
        """
        points, values, _ = self._points(bounds or {})
        if bounds:
            inside = [_within(self._names.real(point), bounds) for point in points]
            points = [point for point, kept in zip(points, inside, strict=True) if kept]
            values = values[inside]
        chosen: list[Weights] = []
        worth = self._worth(bounds or {})
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

    def searched(self) -> list[Weights]:
        """All mixtures inside the limits that one search valued, the best first."""
        points, values, _ = self._points({})
        order = np.argsort(-values, kind="stable")
        return [self._names.real(points[place]) for place in order]

    def shown(self, most: int, apart: float) -> tuple[int, list[Candidate], Candidate]:
        """How many mixtures were looked at, the best that lie `apart` (L1), and the one executed last."""
        points, values, looked_at = self._points({})
        order = np.argsort(-values, kind="stable")
        best = self._different([points[place] for place in order], most, apart)
        last = weights_of(self._seen.last_plan, self._seen.bucket_proportions)
        *found, executed = self._candidates([*best, last])
        return looked_at, found, executed

    def candidate(self, plan: ActionPlan) -> Candidate:
        """What a plan's mixture is worth."""
        plain = weights_of(self._names.plan(plan), self._seen.bucket_proportions)
        return self._candidates([plain])[0]

    def _worth(self, bounds: Bounds) -> _Worth:
        plain = {self._names.datasets[dataset]: bound for dataset, bound in bounds.items()}
        return _Worth(self._seen, self.model, self._space, plain, self._past)

    def _points(self, bounds: Bounds) -> tuple[list[Weights], Floats, int]:
        """All points of one search and their values. A search is made once."""
        key = tuple(sorted(bounds.items()))
        if key not in self._searched:
            self._searched[key] = _search(self._seen, self._worth(bounds), self._space)
        return self._searched[key]

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
        parts = self._worth({}).parts(points)
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


def _search(
    observation: Observation, worth: _Worth, space: RoughSpace
) -> tuple[list[Weights], Floats, int]:
    """Mixtures inside the limits, their values, and how many were looked at.

    Random moves in log-ratios around the best points so far, narrower each time. All of a pass are
    valued where they roughly lie; the best of them are drawn back inside the limits and valued again.
    """
    generator = np.random.default_rng([observation.seed, observation.round, 17])
    exact = FeasibleSpace(observation)
    needed = shares_to_reach(observation)
    points = []
    for start in _starts(observation):
        points.append(exact.project(raised_ratios(start.ratios, needed), start.buckets))
    values = worth.of(points)
    looked_at = len(points)
    for spread in SPREADS:
        centers = np.argsort(-values, kind="stable")[:CENTERS]
        moved = space.moved([points[place] for place in centers], CANDIDATES, spread, generator)
        rough = worth.of_rows(*space.rows(moved))
        kept = []
        for place in np.argsort(-rough, kind="stable")[:KEPT]:
            wish = space.weights(moved, int(place))
            kept.append(exact.project(wish.ratios, wish.buckets))
        points += kept
        values = np.concatenate([values, worth.of(kept)])
        looked_at += len(rough)
    return points, values, looked_at


def _starts(observation: Observation) -> list[Weights]:
    """Where the search begins: plans that were executed, latest first, the pools' proportions, and
    even shares.
    """
    plans = [observation.last_plan]
    for past in reversed(each_trial(observation.history)):
        if len(plans) == MAX_STARTS:
            break
        if past.plan and past.plan not in plans:
            plans.append(past.plan)
    starts = [weights_of(plan, observation.bucket_proportions) for plan in plans]
    buckets = {d: dict(weights) for d, weights in observation.bucket_proportions.items()}
    ratios = {dataset: observation.proportions[dataset] for dataset in buckets}
    even = {d: dict.fromkeys(weights, 1.0) for d, weights in buckets.items()}
    starts.append(Weights(ratios, buckets))
    starts.append(Weights(ratios, even))
    starts.append(Weights(dict.fromkeys(ratios, 1.0), even))
    return starts


@dataclass(frozen=True)
class _Past:
    """Cell shares of earlier plans, shape (plans, cells): all that were tried or refused, and those
    that were accepted.
    """

    tried: Floats
    executed: Floats

    @classmethod
    def of(cls, observation: Observation, model: ResponseModel) -> _Past:
        def rows_of(plans: Sequence[ActionPlan]) -> Floats:
            points = [weights_of(plan, observation.bucket_proportions) for plan in plans]
            return _rows(points, model).reshape(len(plans), len(model.cells))

        # The calibration's mixture is none that the run can choose.
        history = each_trial(observation.history)
        executed = [past.plan for past in history if past.plan and past.accepted]
        tried = [past.plan for past in history if past.plan] + refused_plans(observation)
        return cls(rows_of(tried), rows_of(executed))


class _Worth:
    """Values points: what they are expected to gain, less a price if they were tried before.

    What a point leaves an objective that fell below the base has a price too (`fallen`), and what lies
    outside of bounds on data sets' shares that somebody asked for.
    """

    def __init__(
        self,
        observation: Observation,
        model: ResponseModel,
        space: RoughSpace,
        bounds: Mapping[str, tuple[float, float]],
        past: _Past,
    ) -> None:
        self._model = model
        self._space = space
        self._bounds = bounds
        self._needed = shares_to_reach(observation)
        self._tried = past.tried
        self._acquisition = Acquisition(observation, model, past.executed)

    def pretend(self, rows: Floats) -> None:
        """Value points from now on as if these mixtures (m, cells) had come out as predicted."""
        self._acquisition.add(rows)

    def of(self, points: Sequence[Weights]) -> Floats:
        """The value of each point, shape (points,)."""
        parts = self.parts(points)
        return parts["volume"] + parts["targets"] - parts["price"]

    def of_rows(self, rows: Floats, ratios: Floats) -> Floats:
        """The value of cell shares (n, cells) and the data sets' shares (n, data sets): (n,)."""
        parts = self._parts(rows, ratios)
        return parts["volume"] + parts["targets"] - parts["price"]

    def merits(self, points: Sequence[Weights]) -> Floats:
        """What each point's own result is worth, as often as the fit draws it: (points, draws)."""
        return self._acquisition.merits(_rows(points, self._model))

    def parts(self, points: Sequence[Weights]) -> dict[str, Floats]:
        """What each value is made of, each of shape (points,)."""
        return self._parts(_rows(points, self._model), self._space.ratios(points))

    def _parts(self, rows: Floats, ratios: Floats) -> dict[str, Floats]:
        news = np.abs(rows[:, None, :] - self._tried[None, :, :]).sum(axis=2)
        stale = (news < MIN_NEWS).any(axis=1)
        missing = np.zeros(len(rows))
        for rank, (datasets, share) in enumerate(self._needed, start=1):
            held = ratios[:, self._space.places(datasets)].sum(axis=1)
            missing += np.clip(share - held, 0, None) / rank
        outside = np.zeros(len(rows))
        for dataset, (low, high) in self._bounds.items():
            held = ratios[:, self._space.places([dataset])[0]]
            outside += np.clip(low - held, 0, None) + np.clip(held - high, 0, None)
        price = STALE_COST * stale + MISSING_COST * missing + OUTSIDE_COST * outside
        return {**self._acquisition.parts(rows), "price": price}


def _rows(points: Sequence[Weights], model: ResponseModel) -> Floats:
    """Cell shares of each point, shape (points, cells)."""
    return np.array([share_row(model.cells, cell_shares(*point)) for point in points])


def _within(weights: Weights, bounds: Bounds) -> bool:
    for dataset, (low, high) in bounds.items():
        if not low - ROUNDING <= weights.ratios.get(dataset, 0.0) <= high + ROUNDING:
            return False
    return True
