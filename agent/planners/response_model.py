"""How slices answer to tokens: a small Bayesian regression per slice, fitted to one run.

On the 1-5 scale, a slice's mean is linear in log shares of tokens:

    mean = c + b_own log(own + 0.01) + b_neighbours log(neighbours + 0.01)
             + for each other objective: b_other log(other + 0.01)

`own` is the share of the slice's own bucket, `neighbours` that of its objective's other buckets,
and `other` that of another objective's data, or of general data that no objective names. With
b_own + b_neighbours = 1, doubling all of an objective's tokens adds log 2 = 0.69 points.

The mean is cut off at the ends of the scale: a slice seen at an end may lie anywhere beyond it.
The prior says that an objective's tokens help all its slices, harder buckets more, and that other
objectives' data help or hurt. The rounds correct it, but for one thing: an objective's own data are
never believed to hurt it. Where a score falls, the other data are charged with the fall. With no
rounds yet the prior speaks alone. A mixture far from all that was tried is less certain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from agent.weights import Cell, Floats, complexity_of, plan_shares, share_row
from mosaic.core.types.evaluation import FailureProfile
from mosaic.core.types.runs import Observation

# (objective, slice)
SliceKey = tuple[str, str]

MIN_SHARE = 0.01
# Means beyond these are taken to be cut off at the end of the scale, and to lie at least
# `CENSORED_BY` further out.
NEAR_BOTTOM, NEAR_TOP, CENSORED_BY = 1.1, 4.85, 0.3
# What a log share of all of an objective's tokens adds to each of its slices, in points, and how
# sure that is. The slice's own bucket and its neighbours have parts of it by their number.
OWN_EFFECT, OWN_EFFECT_SD = 1.0, 0.5
# The same of other objectives' data, which may hurt. A run tries few mixtures, in most of which all
# data grow together: what is believed beforehand decides whom a fall is charged to.
OTHER_EFFECT, OTHER_EFFECT_SD = 0.0, 0.5
INTERCEPT_SD = 5.0
# The standard deviation of one measured slice mean around the model.
RESIDUAL_SD = 0.35


@dataclass(frozen=True)
class MeasuredMixture:
    """One mixture that was trained, or the base, trained on none.

    `shares` are token shares per cell, `means` steering means per (objective, slice).
    """

    shares: Mapping[Cell, float]
    means: Mapping[SliceKey, float]


@dataclass(frozen=True)
class SliceGroups:
    """A slice and the cells that speak for it.

    `groups` has shape (2 + other objectives, cells): the weights of its own bucket, of its
    objective's other buckets, and of the data of each other objective.
    """

    key: SliceKey
    groups: Floats


class ResponseModel:
    """Predicts slice means (1-5) of mixtures that are given as rows of cell shares."""

    def __init__(
        self,
        cells: Sequence[Cell],
        datasets: Mapping[str, Sequence[str]],
        measured: Sequence[MeasuredMixture],
    ) -> None:
        """Fit one regression for each slice that any mixture measured.

        `datasets` is objective -> data sets; `cells` gives the columns of all rows.
        """
        self.cells = list(cells)
        self.slices: list[SliceGroups] = []
        self._fitted: list[tuple[Floats, Floats]] = []
        shares = np.array([share_row(self.cells, mixture.shares) for mixture in measured])
        keys: set[SliceKey] = set()
        for mixture in measured:
            keys.update(mixture.means)
        for key in sorted(keys):
            slice_ = self._groups(key, datasets)
            self.slices.append(slice_)
            self._fitted.append(self._fit(slice_, shares, measured))

    def predict(self, shares: Floats, objective: str, noise: float, deviates: Floats) -> Floats:
        """Predicted mean of an objective, its slices counting alike, as in the suites.

        `shares` are mixtures, shape (n, cells). `deviates`, shape (k,), are standard normal: by
        each, all slices lie higher or lower together. One unit of them is

            sqrt(variance of the fit at this mixture + noise^2)        0.5 = sqrt(0.4^2 + 0.3^2)

        with `noise` the standard deviation of a training. Returns shape (n, k), in 1-5; all NaN
        for an objective without slices.
        """
        per_slice = []
        for slice_, (coefficients, covariance) in zip(self.slices, self._fitted, strict=True):
            if slice_.key[0] != objective:
                continue
            features = log_share_features(shares, slice_.groups)
            variance = ((features @ covariance) * features).sum(axis=1)
            spread = np.sqrt(variance + noise**2)
            latent = (features @ coefficients)[:, None] + spread[:, None] * deviates
            per_slice.append(np.clip(latent, 1.0, 5.0))
        if not per_slice:
            return np.full((len(shares), len(deviates)), np.nan)
        return np.mean(per_slice, axis=0)

    def difference(
        self, after: Floats, before: Floats, objective: str
    ) -> tuple[float, float] | None:
        """Predicted change of an objective's mean from one mixture to another, and how unsure.

        `after` and `before` have shape (cells,). The uncertainty is the standard deviation of the
        fit at the difference of the features d, sqrt(d covariance d), averaged over slices as if
        they erred together. None for an objective without slices.
        """
        changes, deviations = [], []
        for slice_, (coefficients, covariance) in zip(self.slices, self._fitted, strict=True):
            if slice_.key[0] != objective:
                continue
            features = log_share_features(np.array([after, before]), slice_.groups)
            then, now = np.clip(features @ coefficients, 1.0, 5.0)
            step = features[0] - features[1]
            changes.append(float(then - now))
            deviations.append(float(np.sqrt(step @ covariance @ step)))
        if not changes:
            return None
        return float(np.mean(changes)), float(np.mean(deviations))

    def doubling_effect(self, key: SliceKey) -> float:
        """What doubling all of its objective's tokens is believed to add to a slice's mean.

        It is (b_own + b_neighbours) log 2: with coefficients 0.4 and 0.6, 0.69 points. Raises
        KeyError for a slice that no mixture measured.
        """
        for slice_, (coefficients, _) in zip(self.slices, self._fitted, strict=True):
            if slice_.key == key:
                return float(coefficients[1:3].sum() * np.log(2))
        raise KeyError(key)

    def _groups(self, key: SliceKey, datasets: Mapping[str, Sequence[str]]) -> SliceGroups:
        objective, name = key
        of_objective = self._cells_of(datasets[objective])
        own = of_objective & np.array([bucket == name for _, bucket in self.cells])
        # A harder bucket's rows hold what easier ones ask for, and more.
        complexities = np.array([complexity_of(bucket) for _, bucket in self.cells])
        neighbours = (of_objective & ~own) * complexities
        if neighbours.any():
            neighbours = neighbours / neighbours[neighbours > 0].mean()
        # A data set that also serves this objective speaks for it already.
        mine = set(datasets[objective])
        others = []
        for other, names in sorted(datasets.items()):
            foreign = set(names) - mine
            if other != objective and foreign:
                others.append(self._cells_of(foreign))
        general = self._general_cells(datasets)
        if general.any():
            others.append(general)
        return SliceGroups(key, np.array([own, neighbours, *others], dtype=float))

    def _general_cells(self, datasets: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_]:
        """Cells of general data, which no objective names."""
        named: set[str] = set()
        for names in datasets.values():
            named |= set(names)
        return ~self._cells_of(named)

    def _cells_of(self, datasets: Collection[str]) -> npt.NDArray[np.bool_]:
        return np.array([dataset in datasets for dataset, _ in self.cells])

    def _fit(
        self, slice_: SliceGroups, shares: Floats, measured: Sequence[MeasuredMixture]
    ) -> tuple[Floats, Floats]:
        """Coefficients (2 + groups,) of a slice, and their covariance."""
        known, seen = [], []
        for number, mixture in enumerate(measured):
            if slice_.key in mixture.means:
                known.append(number)
                seen.append(mixture.means[slice_.key])
        features = log_share_features(shares[known], slice_.groups)
        n_cells = (slice_.groups[:2] > 0).sum(axis=1)
        parts = n_cells / max(1, n_cells.sum())
        n_others = len(slice_.groups) - 2
        prior = np.array([0.0, *(OWN_EFFECT * parts), *[OTHER_EFFECT] * n_others])
        # Without a bucket of its own, or without others, the coefficient is held at zero.
        own_sd = np.maximum(OWN_EFFECT_SD * parts, 1e-3)
        prior_sd = np.array([INTERCEPT_SD, *own_sd, *[OTHER_EFFECT_SD] * n_others])
        own = np.array([False, True, True, *[False] * n_others])
        return fit_censored(features, np.array(seen), prior, prior_sd, own)


def log_share_features(shares: Floats, groups: Floats) -> Floats:
    """A one, then the log share of each group: shape (n, 1 + groups).

    A group without tokens counts as a hundredth, so that its log is finite.

    >>> features = log_share_features(np.array([[0.24, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> features.round(2).tolist()
    [[1.0, -1.39, -4.61]]
    """
    return np.hstack([np.ones((len(shares), 1)), np.log(shares @ groups.T + MIN_SHARE)])


def fit_censored(
    features: Floats,
    seen: Floats,
    prior: Floats,
    prior_sd: Floats,
    at_least_zero: npt.NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """Most probable coefficients of a linear model whose results are cut off at 1 and 5.

    `features` has shape (n, k), `seen` (n,), `prior` and `prior_sd` (k,), and `at_least_zero` (k,)
    marks coefficients that cannot be negative. Returns the coefficients (k,) and their covariance
    (k, k). The covariance is as if what is cut off had been seen and no coefficient was bounded:
    too small where most results are at an end of the scale.

    Three results around 3 give about 3, drawn a little toward the prior at 0:

    >>> def fit(*seen):
    ...     coefficients, _ = fit_censored(
    ...         np.ones((len(seen), 1)), np.array(seen), np.zeros(1), np.array([5.0])
    ...     )
    ...     return round(float(coefficients[0]), 2)
    >>> fit(2.9, 3.0, 3.1)
    3.0

    A result of 5.0 says "at least 5.3". One beside it drags it down only as far as it must:

    >>> fit(5.0), fit(5.0, 4.8)
    (5.27, 5.04)
    """
    if at_least_zero is None:
        at_least_zero = np.zeros(len(prior), dtype=bool)
    prior_precision = prior_sd**-2
    low, high = seen < NEAR_BOTTOM, seen > NEAR_TOP
    edge = seen + CENSORED_BY * high - CENSORED_BY * low
    # What is cut off says only "at least" or "at most": a prediction further out is not wrong.
    # Which of these bounds bind is found in a few passes. Their number has a limit, since nothing
    # proves that the set must settle.
    binding = np.ones(len(seen), dtype=bool)
    coefficients = prior
    for _ in range(2 * len(seen) + 1):
        rows = features[binding]
        precision = np.diag(prior_precision) + rows.T @ rows / RESIDUAL_SD**2
        evidence = prior_precision * prior + rows.T @ edge[binding] / RESIDUAL_SD**2
        coefficients = solve_bounded(precision, evidence, at_least_zero)
        predicted = features @ coefficients
        beyond = np.where(high, predicted >= edge, low & (predicted <= edge))
        if (binding == ~beyond).all():
            break
        binding = ~beyond
    covariance = np.linalg.inv(np.diag(prior_precision) + features.T @ features / RESIDUAL_SD**2)
    return np.asarray(coefficients, dtype=np.float64), np.asarray(covariance, dtype=np.float64)


def solve_bounded(
    precision: Floats, evidence: Floats, at_least_zero: npt.NDArray[np.bool_]
) -> Floats:
    """The most probable x (k,) of a normal distribution, some of its elements being at least zero.

    It minimises x precision x / 2 - evidence x. `precision` (k, k) is positive definite.

    Free, the two would be -1 and 2. Held at zero, the first leaves the second nearer to its mean:

    >>> precision, evidence = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([0.0, 3.0])
    >>> solve_bounded(precision, evidence, np.array([False, False])).round(2).tolist()
    [-1.0, 2.0]
    >>> solve_bounded(precision, evidence, np.array([True, False])).round(2).tolist()
    [0.0, 1.5]
    """
    solution = np.linalg.solve(precision, evidence)
    if not (solution[at_least_zero] < 0).any():
        return np.asarray(solution, dtype=np.float64)
    # Few are bounded: every choice of those that lie at zero is tried, and the best one kept.
    bounded = np.flatnonzero(at_least_zero)
    best, best_cost = np.zeros(len(evidence)), np.inf
    for choice in product((False, True), repeat=len(bounded)):
        free = np.ones(len(evidence), dtype=bool)
        free[bounded[list(choice)]] = False
        tried = np.zeros(len(evidence))
        tried[free] = np.linalg.solve(precision[np.ix_(free, free)], evidence[free])
        cost = tried @ precision @ tried / 2 - evidence @ tried
        if (tried[at_least_zero] >= 0).all() and cost < best_cost:
            best, best_cost = tried, float(cost)
    return best


def fit_responses(observation: Observation) -> ResponseModel:
    """The model of everything that was measured in this run, over all cells that have stock."""
    cells: list[Cell] = []
    for dataset, per_bucket in observation.bucket_proportions.items():
        for bucket in per_bucket:
            cells.append((dataset, bucket))
    datasets = {objective.name: objective.datasets for objective in observation.objectives}
    return ResponseModel(cells, datasets, measured_mixtures(observation))


def measured_mixtures(observation: Observation) -> list[MeasuredMixture]:
    """Everything that was trained in this run, with the base as a mixture of no tokens."""
    proportions = observation.bucket_proportions
    measured = []
    for past in observation.history:
        if past.failure or (past.plan and not past.trial.spec.tokens):
            continue  # nothing was trained, or nothing on a mixture
        shares = plan_shares(past.plan, proportions) if past.plan else {}
        measured.append(MeasuredMixture(shares, slice_means(past.profile)))
    if observation.calibration:
        shares = plan_shares(observation.calibration.mixture, proportions)
        for profile in observation.calibration.profiles:
            measured.append(MeasuredMixture(shares, slice_means(profile)))
    return measured


def slice_means(profile: FailureProfile) -> dict[SliceKey, float]:
    """Mean of every slice that is scored."""
    means = {}
    for slice_ in profile.slices:
        if slice_.score.mean is not None:
            means[slice_.objective, slice_.slice] = slice_.score.mean
    return means
