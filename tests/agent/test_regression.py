"""An error that results share is summed over, as if it had a coefficient of its own."""

import numpy as np
import pytest

from agent.planners.regression import Prior, Seen, fit_censored, log_evidence

LUCK = 0.4


@pytest.fixture
def draws():
    return np.random.default_rng(3)


def both(draws, groups, size, coefficients, bounded):
    """The same results with the luck of each group as a shared error, and as a coefficient."""
    n = groups * size
    features = draws.standard_normal((n, coefficients))
    results = np.clip(3 + features.sum(axis=1) + draws.standard_normal(n), 1, 5)
    noise, group = draws.uniform(0.1, 0.5, n), np.repeat(np.arange(groups), size)
    spread = draws.standard_normal((coefficients, coefficients))
    covariance = spread @ spread.T + np.eye(coefficients)
    mean, at_least_zero = draws.standard_normal(coefficients), np.full(coefficients, bounded)
    shared = Seen(features, results, noise, group, np.full(n, LUCK))
    wide = np.hstack([features, np.eye(groups)[group]])
    alone = Seen(wide, results, noise, group, np.zeros(n))
    more = np.eye(coefficients + groups) * LUCK**2
    more[:coefficients, :coefficients] = covariance
    unbounded = np.zeros(groups, dtype=bool)
    return (
        (shared, Prior(mean, covariance, at_least_zero)),
        (
            alone,
            Prior(np.append(mean, np.zeros(groups)), more, np.append(at_least_zero, unbounded)),
        ),
    )


@pytest.mark.parametrize("bounded", [False, True])
def test_a_shared_error_is_fitted_as_a_coefficient_would_be(draws, bounded):
    """Results at both ends of the scale among them, which say only "at least" or "at most"."""
    (shared, prior), (alone, wider) = both(draws, groups=9, size=5, coefficients=6, bounded=bounded)
    assert (shared.results == 1).any()
    assert (shared.results == 5).any()
    found, known = fit_censored(shared, prior), fit_censored(alone, wider)
    assert found.mean == pytest.approx(known.mean[:6], abs=1e-9)
    assert found.covariance == pytest.approx(known.covariance[:6, :6], abs=1e-9)


def test_results_are_as_probable_with_a_shared_error_as_with_a_coefficient(draws):
    (shared, prior), (alone, wider) = both(draws, groups=4, size=3, coefficients=2, bounded=False)
    assert log_evidence(shared, prior) == pytest.approx(log_evidence(alone, wider), abs=1e-9)


def test_groups_of_one_and_no_results_at_all_are_fitted(draws):
    (shared, prior), (alone, wider) = both(draws, groups=7, size=1, coefficients=3, bounded=False)
    assert fit_censored(shared, prior).mean == pytest.approx(
        fit_censored(alone, wider).mean[:3], abs=1e-9
    )
    nothing = Seen(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, dtype=int), np.zeros(0))
    assert fit_censored(nothing, prior).mean == pytest.approx(prior.mean)
