"""A smooth surface over a table of mixtures and losses: what a mixture that nobody trained would lose.

One Gaussian process for each loss, over the logarithms of the shares, with a length for each share
that is fitted by marginal likelihood.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from agent.weights import Floats
from benchmarks.figures import CannotRun

MIXTURES, LOSSES = "mixture_60m.csv", "loss_60m.csv"
INDEX, SHARE_PREFIX = "index", "train_the_pile_"
LOSS_PREFIX, LOSS_SUFFIX = "metric/the_pile_", "_val_loss"
# A share that is not in a mixture counts as this much, so that its logarithm is finite.
MIN_SHARE = 1e-3
# Where the fit of lengths starts, the steps it may take, and the noise that it may find.
LENGTH, STEPS, NOISE = 6.0, 40, (1e-4, 1.0)


@dataclass(frozen=True)
class Table:
    """Mixtures and their losses: `shares` (runs, domains), `losses` (runs, targets)."""

    domains: list[str]
    targets: list[str]
    shares: Floats
    losses: Floats


def read_table(folder: Path) -> Table:
    """Read both files, joined by their index. Raises CannotRun for a folder without them."""
    for name in (MIXTURES, LOSSES):
        if not (folder / name).is_file():
            raise CannotRun(f"{folder} has no {name}; give the folder of the table with --table")
    mixtures, losses = _rows(folder / MIXTURES), _rows(folder / LOSSES)
    runs = sorted(mixtures.keys() & losses.keys())
    first = runs[0]
    shares = np.array([list(mixtures[run].values()) for run in runs])
    return Table(
        domains=[name.removeprefix(SHARE_PREFIX) for name in mixtures[first]],
        targets=[
            name.removeprefix(LOSS_PREFIX).removesuffix(LOSS_SUFFIX) for name in losses[first]
        ],
        shares=shares / shares.sum(axis=1, keepdims=True),
        losses=np.array([list(losses[run].values()) for run in runs]),
    )


def _rows(path: Path) -> dict[int, dict[str, float]]:
    """Index -> column -> number."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            index = int(row.pop(INDEX))
            found[index] = {name: float(value) for name, value in row.items()}
    return found


class Surface:
    """One Gaussian process for each column of results."""

    def __init__(self, shares: Floats, results: Floats, lengths: Floats | None = None) -> None:
        """Fit (runs, k) shares and (runs, results).

        `lengths` (results, k + 1) are the kernel's logarithms if they are fitted already.
        """
        logs = np.log(shares + MIN_SHARE)
        self._center, self._scale = logs.mean(axis=0), logs.std(axis=0)
        self._features = self._scaled(shares)
        self._mean, self._spread = results.mean(axis=0), results.std(axis=0)
        targets = (results - self._mean) / self._spread
        if lengths is None:
            lengths = np.array([_fit(self._features, column) for column in targets.T])
        self.lengths = lengths
        self._solved = []
        for log_lengths, column in zip(lengths, targets.T, strict=True):
            kernel = _kernel(self._features, self._features, log_lengths)
            kernel[np.diag_indices_from(kernel)] += np.exp(log_lengths[-1])
            self._solved.append(cho_solve(cho_factor(kernel), column))

    def predict(self, shares: Floats) -> Floats:
        """Results of mixtures (n, k), shape (n, results)."""
        features = self._scaled(shares)
        columns = []
        for log_lengths, solved in zip(self.lengths, self._solved, strict=True):
            columns.append(_kernel(features, self._features, log_lengths) @ solved)
        return np.asarray(np.array(columns).T * self._spread + self._mean)

    def _scaled(self, shares: Floats) -> Floats:
        return np.asarray((np.log(shares + MIN_SHARE) - self._center) / self._scale)


def _kernel(a: Floats, b: Floats, log_lengths: Floats) -> Floats:
    """A squared exponential of variance 10: shape (len(a), len(b))."""
    inverse = np.exp(-log_lengths[:-1])
    a, b = a * inverse, b * inverse
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(10.0 * np.exp(-np.clip(squares, 0, None) / 2))


def _fit(features: Floats, targets: Floats) -> Floats:
    """Logarithms of the lengths and of the noise's variance, of greatest marginal likelihood."""
    size, dimensions = features.shape

    def loss(logs: Floats) -> tuple[float, Floats]:
        kernel = _kernel(features, features, logs)
        noisy = kernel + np.exp(logs[-1]) * np.eye(size)
        factor = cho_factor(noisy, lower=True)
        solved = cho_solve(factor, targets)
        value = targets @ solved / 2 + np.log(np.diag(factor[0])).sum()
        # d value = trace((K^-1 - s s^T) dK) / 2
        outer = cho_solve(factor, np.eye(size)) - np.outer(solved, solved)
        weighted = outer * kernel
        slopes = np.empty(dimensions + 1)
        scaled = features * np.exp(-logs[:-1])
        row_sums = weighted.sum(axis=1)
        for column in range(dimensions):
            one = scaled[:, column]
            # sum over pairs of weighted * (one_i - one_j)^2
            slopes[column] = row_sums @ one**2 - one @ weighted @ one
        slopes[-1] = np.trace(outer) * np.exp(logs[-1]) / 2
        return float(value), slopes

    start = np.log(np.array([LENGTH] * dimensions + [1e-2]))
    bounds = [(np.log(0.5), np.log(300.0))] * dimensions + [(np.log(NOISE[0]), np.log(NOISE[1]))]
    found = minimize(loss, start, jac=True, bounds=bounds, options={"maxiter": STEPS})
    return np.asarray(found.x)


def explained(table: Table, folds: int = 8) -> Floats:
    """Share of each loss's variance that is predicted for runs left out, shape (targets,).

    The lengths are fitted once, on all runs.
    """
    lengths = Surface(table.shares, table.losses).lengths
    order = np.random.default_rng(0).permutation(len(table.shares))
    predicted = np.zeros_like(table.losses)
    for left_out in np.array_split(order, folds):
        kept = np.setdiff1d(order, left_out)
        surface = Surface(table.shares[kept], table.losses[kept], lengths)
        predicted[left_out] = surface.predict(table.shares[left_out])
    missed = ((table.losses - predicted) ** 2).mean(axis=0)
    return np.asarray(1 - missed / table.losses.var(axis=0))
