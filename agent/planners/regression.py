"""Bayesian linear regression with results that are cut off and coefficients that have a sign."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from agent.weights import Floats

Mask = npt.NDArray[np.bool_]

# Means beyond these are taken to be cut off at the end of the scale, and to lie at least
# `CENSORED_BY` further out.
NEAR_BOTTOM, NEAR_TOP, CENSORED_BY = 1.1, 4.85, 0.3
# Which cut-off results bind is settled in a few passes. Nothing proves that it must settle.
MAX_PASSES = 20
# A gain smaller than this, of the largest evidence, is rounding.
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Prior:
    """What is believed of coefficients before anything is measured.

    `mean` has shape (k,), `covariance` (k, k); `at_least_zero` (k,) marks those that cannot be
    negative.
    """

    mean: Floats
    covariance: Floats
    at_least_zero: Mask


@dataclass(frozen=True)
class Fitted:
    """The most probable coefficients (k,), and their covariance (k, k).

    The covariance is as if what is cut off had been seen and no coefficient had a bound: too small
    where most results are at an end of the scale.
    """

    mean: Floats
    covariance: Floats


@dataclass(frozen=True)
class Seen:
    """What was seen: `features` (n, k), `results` (n,) and the deviations of their errors, `noise` (n,).

    Neighbours of one `group` (n,) share one more error, of deviation `luck` (n,), which is the same
    within a group; 0 is none. Such an error costs no coefficient: it is summed over.
    """

    features: Floats
    results: Floats
    noise: Floats
    group: npt.NDArray[np.int_]
    luck: Floats

    def whitened(self, counted: Mask) -> tuple[Floats, Floats]:
        """Features and results whose errors are independent and of deviation 1; 0 unless `counted`.

        With u the inverse noise of a group's results, their covariance in units of the noise is
        1 + luck^2 u u', and what makes it 1 is

            x - (1 - 1 / sqrt(1 + luck^2 u'u)) u u'x / u'u
        """
        inverse = counted / self.noise
        rows = np.column_stack([self.features, self.results]) * inverse[:, None]
        sizes = self._summed(inverse**2)
        shares = (1 - 1 / np.sqrt(1 + self.luck**2 * sizes)) / np.where(sizes > 0, sizes, 1.0)
        rows -= self._summed(rows * inverse[:, None]) * (inverse * shares)[:, None]
        return rows[:, :-1], rows[:, -1]

    def lucks(self, left: Floats, counted: Mask) -> Floats:
        """The most probable shared error of each result, given what is `left` to explain (n,)."""
        weights = counted / self.noise**2
        variance = self.luck**2
        return variance * self._summed(weights * left) / (1 + variance * self._summed(weights))

    def log_volume(self, counted: Mask) -> float:
        """Half the logarithm of the determinant of the covariance that `whitened` makes 1."""
        within = 1 + self.luck**2 * self._summed(counted / self.noise**2)
        return float(np.log(self.noise[counted]).sum() + np.log(within[self._starts]).sum() / 2)

    def _summed(self, values: Floats) -> Floats:
        """For each result the sum over its group: shape of `values`, (n, ...)."""
        if not len(values):
            return values
        sums = np.add.reduceat(values, self._starts)
        return np.asarray(sums[np.cumsum(self._begins) - 1])

    @property
    def _begins(self) -> Mask:
        return np.diff(self.group, prepend=-1) != 0

    @property
    def _starts(self) -> npt.NDArray[np.int_]:
        return np.flatnonzero(self._begins)


def fit_censored(seen: Seen, prior: Prior) -> Fitted:
    """Fit a linear model whose results are cut off at 1 and 5.

    Three results around 3 give about 3, drawn a little toward the prior at 0:

    >>> wide = Prior(np.zeros(1), np.array([[25.0]]), np.array([False]))
    >>> def fit(*results, luck=0.0):
    ...     n = len(results)
    ...     lucks, group = np.full(n, luck), np.zeros(n, dtype=int)
    ...     seen = Seen(np.ones((n, 1)), np.array(results), np.full(n, 0.35), group, lucks)
    ...     return round(float(fit_censored(seen, wide).mean[0]), 2)
    >>> fit(2.9, 3.0, 3.1)
    3.0

    A result of 5.0 says "at least 5.3". One beside it drags it down only as far as it must:

    >>> fit(5.0), fit(5.0, 4.8)
    (5.27, 5.04)

    Results that share an error of 5 points say little more than one of them:

    >>> fit(2.9, 3.0, 3.1, luck=5.0)
    1.5
    """
    prior_precision = np.linalg.inv(prior.covariance)
    prior_evidence = prior_precision @ prior.mean
    low, high = seen.results < NEAR_BOTTOM, seen.results > NEAR_TOP
    edge = seen.results + CENSORED_BY * high - CENSORED_BY * low
    seen = replace(seen, results=edge)
    # What is cut off says only "at least" or "at most": a prediction further out is not wrong.
    every = binding = np.ones(len(edge), dtype=bool)
    mean = prior.mean
    for _ in range(MAX_PASSES):
        rows, results = seen.whitened(binding)
        precision = prior_precision + rows.T @ rows
        mean = solve_bounded(precision, prior_evidence + rows.T @ results, prior.at_least_zero)
        predicted = seen.features @ mean
        predicted += seen.lucks(edge - predicted, binding)
        beyond = np.where(high, predicted >= edge, low & (predicted <= edge))
        if (binding == ~beyond).all():
            break
        binding = ~beyond
    rows, _ = seen.whitened(every)
    factor = cho_factor(prior_precision + rows.T @ rows)
    covariance = cho_solve(factor, np.eye(len(mean)))
    return Fitted(np.asarray(mean), np.asarray(covariance))


def log_evidence(seen: Seen, prior: Prior) -> float:
    """Logarithm of how probable the results were beforehand, up to a constant of the data.

    Results that are cut off, and bounds, are not counted.
    Results near 4 are more probable under a prior that has its mean there:

    >>> near = Prior(np.array([4.0]), np.array([[1.0]]), np.array([False]))
    >>> far = Prior(np.array([1.0]), np.array([[1.0]]), np.array([False]))
    >>> alone, none = np.arange(2), np.zeros(2)
    >>> seen = Seen(np.ones((2, 1)), np.array([3.9, 4.1]), np.full(2, 0.3), alone, none)
    >>> log_evidence(seen, near) > log_evidence(seen, far)
    True
    """
    whole = (seen.results >= NEAR_BOTTOM) & (seen.results <= NEAR_TOP)
    rest = replace(seen, results=seen.results - seen.features @ prior.mean)
    rows, results = rest.whitened(whole)
    prior_factor = cho_factor(prior.covariance)
    precision = cho_solve(prior_factor, np.eye(len(prior.mean))) + rows.T @ rows
    factor = cho_factor(precision)
    evidence = rows.T @ results
    fitted = results @ results - evidence @ cho_solve(factor, evidence)
    volumes = np.log(np.diag(prior_factor[0])).sum() + np.log(np.diag(factor[0])).sum()
    return float(-0.5 * fitted - volumes - seen.log_volume(whole))


def solve_bounded(precision: Floats, evidence: Floats, at_least_zero: Mask) -> Floats:
    """The most probable x (k,) of a normal distribution, some of its elements being at least zero.

    It minimises x precision x / 2 - evidence x. `precision` (k, k) is positive definite.

    Free, the two would be -1 and 2. Held at zero, the first leaves the second nearer to its mean:

    >>> precision, evidence = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([0.0, 3.0])
    >>> solve_bounded(precision, evidence, np.array([False, False])).round(2).tolist()
    [-1.0, 2.0]
    >>> solve_bounded(precision, evidence, np.array([True, False])).round(2).tolist()
    [0.0, 1.5]
    """
    factor = cho_factor(precision)
    solution = cho_solve(factor, evidence)
    if not (solution[at_least_zero] < 0).any():
        return np.asarray(solution)
    # The free elements follow from the bounded ones, which are solved for alone: with a = bounded
    # and b = free, (P_aa - P_ab P_bb^-1 P_ba) x_a = e_a - P_ab P_bb^-1 e_b, at least zero.
    a, b = np.flatnonzero(at_least_zero), np.flatnonzero(~at_least_zero)
    inner, wanted = precision[np.ix_(a, a)], evidence[a]
    across = precision[np.ix_(a, b)]
    if len(b):
        free = cho_factor(precision[np.ix_(b, b)])
        inner = inner - across @ cho_solve(free, across.T)
        wanted = wanted - across @ cho_solve(free, evidence[b])
    bounded = _at_least_zero((inner + inner.T) / 2, wanted)
    solution = np.zeros(len(evidence))
    solution[a] = bounded
    if len(b):
        solution[b] = cho_solve(free, evidence[b] - across.T @ bounded)
    return solution


def _at_least_zero(precision: Floats, evidence: Floats) -> Floats:
    """The same with all elements at least zero, by the active sets of Lawson and Hanson.

    An element is let go from zero where that gains; where the solution would then take others below
    zero, the step ends at the first of them, which is held again. Each pass lowers the cost, so that
    no set comes twice.
    """
    solution = np.zeros(len(evidence))
    free = np.zeros(len(evidence), dtype=bool)
    tolerance = TOLERANCE * max(1.0, float(np.abs(evidence).max()))
    while True:
        gain = np.where(free, -np.inf, evidence - precision @ solution)
        if gain.max() <= tolerance:
            return solution
        free[int(np.argmax(gain))] = True
        while True:
            wish = np.zeros(len(evidence))
            wish[free] = np.linalg.solve(precision[np.ix_(free, free)], evidence[free])
            below = free & (wish <= 0)
            if not below.any():
                break
            share = (solution[below] / (solution[below] - wish[below])).min()
            solution = solution + share * (wish - solution)
            free &= solution > tolerance
            solution[~free] = 0.0
        solution = wish
