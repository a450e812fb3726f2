"""How slices answer to tokens: a small Bayesian regression per slice, fitted to the rounds of one run.

On the 1-5 scale, a slice's mean is linear in the log shares of its own bucket, of its objective's other buckets, and
of every other objective's data, cut off at the ends of the scale: a slice seen at an end may lie anywhere beyond it.
The prior says that an objective's tokens help all its slices, harder buckets more, and that other objectives' data
matter little; the rounds correct it. With no rounds yet the prior speaks alone. A mixture far from all that was tried
is less certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.weights import complexity_of

Cell = tuple[str, str]
Floats = npt.NDArray[np.float64]

MIN_SHARE = 0.01
# Means out here are taken to be cut off at the end of the scale, and to lie at least `SLACK` further out.
NEAR_BOTTOM, NEAR_TOP, SLACK = 1.1, 4.85, 0.3
# What a log share of all of an objective's tokens adds to each of its slices, in points, and how sure that is. Own bucket
# and neighbours have parts of it by their number.
ALL, ALL_SD = 1.0, 0.5
FAR, FAR_SD = 0.0, 0.1
INTERCEPT_SD = 5.0
NOISE_SD = 0.35


@dataclass(frozen=True)
class MeasuredMixture:
    """One mixture that was trained, or the base, trained on none: token share per cell, steering mean per (objective,
    slice)."""

    shares: Mapping[Cell, float]
    means: Mapping[Cell, float]


@dataclass(frozen=True)
class Slice:
    """A slice and the weights (groups, cells) of the cells that speak for it: its own, its objective's others, and
    those of each other objective."""

    key: Cell
    groups: Floats


class ResponseModel:
    """Predicts slice means (1-5) of mixtures given as rows of cell shares."""

    def __init__(
        self,
        cells: Sequence[Cell],
        datasets: Mapping[str, Sequence[str]],
        trials: Sequence[MeasuredMixture],
    ) -> None:
        """`datasets` is objective -> data sets. Slices are those that any trial measured."""
        self.cells = list(cells)
        keys = sorted({key for trial in trials for key in trial.means})
        self.slices = [self._slice(key, datasets) for key in keys]
        shares = np.array([[trial.shares.get(c, 0.0) for c in self.cells] for trial in trials])
        self._fitted = [self._fit(s, shares, trials) for s in self.slices]

    def _slice(self, key: Cell, datasets: Mapping[str, Sequence[str]]) -> Slice:
        objective, name = key
        mine = np.array([d in datasets[objective] for d, _ in self.cells])
        own = mine & np.array([b == name for _, b in self.cells])
        # A harder bucket's rows hold what easier ones ask for, and more.
        near = (mine & ~own) * np.array([complexity_of(b) for _, b in self.cells])
        far = [
            np.array([d in names for d, _ in self.cells])
            for other, names in sorted(datasets.items())
            if other != objective and names
        ]
        if near.any():
            near = near / near[near > 0].mean()
        return Slice(key, np.array([own, near, *far], dtype=float))

    def _features(self, slice_: Slice, shares: Floats) -> Floats:
        return np.hstack([np.ones((len(shares), 1)), np.log(shares @ slice_.groups.T + MIN_SHARE)])

    def _fit(
        self, slice_: Slice, shares: Floats, trials: Sequence[MeasuredMixture]
    ) -> tuple[Floats, Floats]:
        """Most probable coefficients, and their covariance as if what is cut off had been seen: too small where most
        results are at an end of the scale."""
        known = [i for i, t in enumerate(trials) if slice_.key in t.means]
        features = self._features(slice_, shares[known])
        seen = np.array([trials[i].means[slice_.key] for i in known])
        mine = (slice_.groups[:2] > 0).sum(axis=1)
        parts = mine / max(1, mine.sum())
        others = len(slice_.groups) - 2
        prior = np.array([0.0, *(ALL * parts), *[FAR] * others])
        # Where there is no bucket of its own, or no other, the coefficient is held at zero.
        weight = (
            np.array([INTERCEPT_SD, *np.maximum(ALL_SD * parts, 1e-3), *[FAR_SD] * others]) ** -2
        )
        low, high = seen < NEAR_BOTTOM, seen > NEAR_TOP
        edge = seen + SLACK * high - SLACK * low
        # What is cut off says only "at least" or "at most": a prediction further out is no error. Which of them bind is
        # found in a few passes; their number has a limit, since nothing proves that the set must settle.
        binding = np.ones(len(seen), dtype=bool)
        mean = prior
        for _ in range(2 * len(seen) + 1):
            rows = features[binding]
            precision = np.diag(weight) + rows.T @ rows / NOISE_SD**2
            mean = np.linalg.solve(precision, weight * prior + rows.T @ edge[binding] / NOISE_SD**2)
            beyond = np.where(high, features @ mean >= edge, low & (features @ mean <= edge))
            if (binding == ~beyond).all():
                break
            binding = ~beyond
        covariance = np.linalg.inv(np.diag(weight) + features.T @ features / NOISE_SD**2)
        return np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)

    def predict(self, shares: Floats, objective: str, noise: float, luck: Floats) -> Floats:
        """Predicted mean of an objective, its slices counting alike, as in the suites: for each row of `shares`
        (n, cells) and each `luck` (k,), standard normal deviates by which all slices lie higher or lower: (n, k). Their
        unit is what the fit does not know of the row and `noise`, the standard deviation of a training, together. An
        objective without slices is all NaN."""
        outcomes = []
        for slice_, (mean, covariance) in zip(self.slices, self._fitted, strict=True):
            if slice_.key[0] == objective:
                features = self._features(slice_, shares)
                unknown = ((features @ covariance) * features).sum(axis=1)
                spread = np.sqrt(unknown + noise**2)
                outcomes.append(
                    np.clip((features @ mean)[:, None] + spread[:, None] * luck, 1.0, 5.0)
                )
        return np.mean(outcomes, axis=0) if outcomes else np.full((len(shares), len(luck)), np.nan)

    def effect(self, key: Cell) -> float:
        """What doubling all of its objective's tokens is believed to add to a slice's mean."""
        index = next(i for i, s in enumerate(self.slices) if s.key == key)
        return float(self._fitted[index][0][1:3].sum() * np.log(2))
