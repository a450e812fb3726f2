"""Bayesian linear regression with results that are cut off and coefficients that have a sign."""

from __future__ import annotations

from dataclasses import dataclass

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


def fit_censored(features: Floats, seen: Floats, noise: Floats, prior: Prior) -> Fitted:
    """Fit a linear model whose results are cut off at 1 and 5.

    `features` has shape (n, k), `seen` and `noise` (n,): results and their standard deviations.

    Three results around 3 give about 3, drawn a little toward the prior at 0:

    >>> wide = Prior(np.zeros(1), np.array([[25.0]]), np.array([False]))
    >>> def fit(*seen):
    ...     n = len(seen)
    ...     fitted = fit_censored(np.ones((n, 1)), np.array(seen), np.full(n, 0.35), wide)
    ...     return round(float(fitted.mean[0]), 2)
    >>> fit(2.9, 3.0, 3.1)
    3.0

    A result of 5.0 says "at least 5.3". One beside it drags it down only as far as it must:

    >>> fit(5.0), fit(5.0, 4.8)
    (5.27, 5.04)
    """
    prior_precision = np.linalg.inv(prior.covariance)
    prior_evidence = prior_precision @ prior.mean
    low, high = seen < NEAR_BOTTOM, seen > NEAR_TOP
    edge = seen + CENSORED_BY * high - CENSORED_BY * low
    scaled, results = features / noise[:, None], edge / noise
    # What is cut off says only "at least" or "at most": a prediction further out is not wrong.
    binding = np.ones(len(seen), dtype=bool)
    mean = prior.mean
    for _ in range(MAX_PASSES):
        rows = scaled[binding]
        precision = prior_precision + rows.T @ rows
        evidence = prior_evidence + rows.T @ results[binding]
        mean = solve_bounded(precision, evidence, prior.at_least_zero)
        predicted = features @ mean
        beyond = np.where(high, predicted >= edge, low & (predicted <= edge))
        if (binding == ~beyond).all():
            break
        binding = ~beyond
    factor = cho_factor(prior_precision + scaled.T @ scaled)
    covariance = cho_solve(factor, np.eye(len(mean)))
    return Fitted(np.asarray(mean), np.asarray(covariance))


def log_evidence(features: Floats, seen: Floats, noise: Floats, prior: Prior) -> float:
    """Logarithm of how probable the results were beforehand, up to a constant of the data.

    Arguments are those of `fit_censored`. Results that are cut off, and bounds, are not counted.
    Results near 4 are more probable under a prior that has its mean there:

    >>> near = Prior(np.array([4.0]), np.array([[1.0]]), np.array([False]))
    >>> far = Prior(np.array([1.0]), np.array([[1.0]]), np.array([False]))
    >>> rows, seen, noise = np.ones((2, 1)), np.array([3.9, 4.1]), np.full(2, 0.3)
    >>> log_evidence(rows, seen, noise, near) > log_evidence(rows, seen, noise, far)
    True
    """
    whole = (seen >= NEAR_BOTTOM) & (seen <= NEAR_TOP)
    scaled = features[whole] / noise[whole, None]
    rest = (seen[whole] - features[whole] @ prior.mean) / noise[whole]
    prior_factor = cho_factor(prior.covariance)
    precision = cho_solve(prior_factor, np.eye(len(prior.mean))) + scaled.T @ scaled
    factor = cho_factor(precision)
    evidence = scaled.T @ rest
    fitted = rest @ rest - evidence @ cho_solve(factor, evidence)
    volumes = np.log(np.diag(prior_factor[0])).sum() + np.log(np.diag(factor[0])).sum()
    return float(-0.5 * fitted - volumes - np.log(noise[whole]).sum())


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
