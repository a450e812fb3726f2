"""How slices answer to tokens: a small Bayesian regression per slice, fitted to the rounds of one run.

On the 1-5 scale, a slice's mean is linear in the log shares of its own bucket, of its objective's other buckets, and
of every other objective's data, cut off at the ends of the scale; a slice at an end is taken to lie a little beyond
it. The prior says that a bucket's own tokens help most, neighbouring ones some, and other objectives' data are
unknown; the rounds correct it. With no rounds yet the prior speaks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cell = tuple[str, str]
Floats = npt.NDArray[np.float64]

LEAST_SHARE = 0.01
SLACK = 0.3
OWN, OWN_SD = 0.8, 0.4
NEAR, NEAR_SD = 0.4, 0.3
FAR, FAR_SD = -0.1, 0.3
INTERCEPT_SD = 5.0
NOISE_SD = 0.35
BASE_NOISE_SD = 0.7


@dataclass(frozen=True)
class Trial:
    """One mixture that was trained: token share per cell, steering mean per (objective, slice).

    The base, trained on nothing, says less about mixtures and is believed less.
    """

    shares: Mapping[Cell, float]
    means: Mapping[Cell, float]
    is_base: bool = False


@dataclass(frozen=True)
class Slice:
    """A slice and the cells that speak for it: its own, its objective's others, and those of each other objective."""

    key: Cell
    own: list[int]
    near: list[int]
    far: list[list[int]]


def beyond(mean: float) -> float:
    """A mean on 1-5, moved outwards where it lies at an end of the scale: what is cut off cannot be seen."""
    return mean + SLACK if mean > 4.85 else mean - SLACK if mean < 1.1 else mean


class Response:
    """Predicts slice means (1-5) of mixtures given as rows of cell shares."""

    def __init__(self, cells: Sequence[Cell], datasets: Mapping[str, Sequence[str]], trials: Sequence[Trial]) -> None:
        """`datasets` is objective -> data sets. Slices are those that any trial measured."""
        self.cells = list(cells)
        keys = sorted({key for trial in trials for key in trial.means})
        self.slices = [self._slice(key, datasets) for key in keys]
        shares = np.array([[trial.shares.get(c, 0.0) for c in self.cells] for trial in trials])
        self._fitted = [self._fit(s, shares, trials) for s in self.slices]

    def _slice(self, key: Cell, datasets: Mapping[str, Sequence[str]]) -> Slice:
        objective, name = key
        mine = [i for i, (d, _) in enumerate(self.cells) if d in datasets[objective]]
        own = [i for i in mine if self.cells[i][1] == name]
        far = [
            [i for i, (d, _) in enumerate(self.cells) if d in names]
            for other, names in sorted(datasets.items())
            if other != objective and names
        ]
        return Slice(key, own, [i for i in mine if i not in own], far)

    def _features(self, slice_: Slice, shares: Floats) -> Floats:
        groups = [slice_.own, slice_.near, *slice_.far]
        logs = [np.log(shares[:, group].sum(axis=1) + LEAST_SHARE) for group in groups]
        return np.stack([np.ones(len(shares)), *logs], axis=1)

    def _fit(self, slice_: Slice, shares: Floats, trials: Sequence[Trial]) -> tuple[Floats, Floats]:
        """Posterior mean and covariance of the coefficients."""
        known = [i for i, t in enumerate(trials) if slice_.key in t.means]
        features = self._features(slice_, shares[known])
        wanted = np.array([beyond(trials[i].means[slice_.key]) for i in known])
        noise = np.array([BASE_NOISE_SD if trials[i].is_base else NOISE_SD for i in known])
        prior = np.array([0.0, OWN, NEAR, *[FAR] * len(slice_.far)])
        spread = np.array([INTERCEPT_SD, OWN_SD, NEAR_SD, *[FAR_SD] * len(slice_.far)])
        precision = np.diag(1 / spread**2) + (features / noise[:, None] ** 2).T @ features
        covariance = np.linalg.inv(precision)
        mean = covariance @ (prior / spread**2 + (features / noise[:, None] ** 2).T @ wanted)
        return mean, covariance

    def predict(self, shares: Floats, objective: str, luck: Floats) -> Floats:
        """Predicted mean of an objective, its slices counting alike, as in the suites: for each row of `shares`
        (n, cells) and each `luck` (k,), by which one training's slices all lie higher or lower: (n, k). An objective
        without slices is all NaN."""
        outcomes = [
            np.clip((self._features(slice_, shares) @ mean)[:, None] + luck, 1.0, 5.0)
            for slice_, (mean, _) in zip(self.slices, self._fitted, strict=True)
            if slice_.key[0] == objective
        ]
        return np.mean(outcomes, axis=0) if outcomes else np.full((len(shares), len(luck)), np.nan)

    def own_effect(self, key: Cell) -> float:
        """What doubling a slice's own tokens is believed to add to its mean."""
        index = next(i for i, s in enumerate(self.slices) if s.key == key)
        return float(self._fitted[index][0][1] * np.log(2))
