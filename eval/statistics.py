"""Means with intervals, paired changes, and which changes to believe. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mosaic.core.types.base import SCALE
from mosaic.core.types.evaluation import Difference, Score, Scored

RESAMPLES = 2000
PERMUTATIONS = 2000
LEVEL = 0.05
DISCOVERY = 0.10


def summarise(scored: Sequence[Scored], seed: int) -> Score:
    """Mean of valid scored prompts, from 1 to 5, with a 95 % percentile bootstrap interval.

    Unscored and invalid items are counted and not averaged. The mean is None if nothing was scored.

    A constant sample has no spread to resample. Its interval is the exact one for a share of n
    equal outcomes, m +- 4 (1 - 0.025^(1/n)), clipped to the scale. Three answers that all score 5:
    0.025^(1/3) = 0.292, so the lower end is 5 - 4 * 0.708 = 2.170.

    >>> three = [Scored(id=str(i), status="ok", score=5) for i in range(3)]
    >>> score = summarise(three, seed=0)
    >>> score.mean, round(score.low, 3), score.high
    (5.0, 2.17, 5.0)
    """
    averaged = [score for item in scored if (score := _score_of(item)) is not None]
    unscored = sum(s.status != "ok" for s in scored)
    invalid = sum(s.status == "ok" and not s.valid for s in scored)
    if not averaged:
        return Score(
            mean=None, low=None, high=None, n_scored=0, n_unscored=unscored, n_invalid=invalid
        )
    values = np.array(averaged, dtype=float)
    mean = float(values.mean())
    if np.all(values == values[0]):
        half = (SCALE[1] - SCALE[0]) * (1 - (LEVEL / 2) ** (1 / len(values)))
        low, high = max(SCALE[0], mean - half), min(SCALE[1], mean + half)
    else:
        generator = np.random.default_rng(seed)
        means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
        low, high = map(float, np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2]))
    return Score(
        mean=mean, low=low, high=high, n_scored=len(values), n_unscored=unscored, n_invalid=invalid
    )


def paired_change(
    before: Sequence[Scored], after: Sequence[Scored], seed: int
) -> tuple[float, float] | None:
    """(mean difference, p-value) over prompts that are valid and scored both times; else None.

    A two-sided sign-flip permutation test: if nothing changed, the sign of each difference is a
    coin's. p is (1 + k) / (1 + permutations), where k permutations have a mean difference at least
    as large. Differences of 1, 1 and 1 are matched by two of eight sign patterns, so p is near 1/4.

    >>> old = [Scored(id=str(i), status="ok", score=3) for i in range(3)]
    >>> new = [Scored(id=str(i), status="ok", score=4) for i in range(3)]
    >>> change, p = paired_change(old, new, seed=0)
    >>> change, round(p, 2)
    (1.0, 0.25)
    """
    difference = _differences(before, after)
    if not len(difference):
        return None
    observed = abs(float(difference.mean()))
    if not difference.any():
        return 0.0, 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(PERMUTATIONS, len(difference)))
    # Equal means may differ in the last digit.
    extreme = np.abs((signs * difference).mean(axis=1)) >= observed - 1e-12
    return float(difference.mean()), (1 + int(extreme.sum())) / (PERMUTATIONS + 1)


def paired_interval(
    before: Sequence[Scored], after: Sequence[Scored], seed: int
) -> Difference | None:
    """The mean difference over prompts that are valid and scored both times, with its interval.

    A 95 % percentile bootstrap over prompts. None if no prompt was scored both times.

    >>> old = [Scored(id=str(i), status="ok", score=3) for i in range(3)]
    >>> new = [Scored(id=str(i), status="ok", score=4) for i in range(3)]
    >>> paired_interval(old, new, seed=0)
    Difference(mean=1.0, low=1.0, high=1.0)
    """
    difference = _differences(before, after)
    if not len(difference):
        return None
    drawn = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return Difference(mean=float(difference.mean()), low=float(low), high=float(high))


def _differences(before: Sequence[Scored], after: Sequence[Scored]) -> npt.NDArray[np.float64]:
    """After less before, for the prompts that are valid and scored both times."""
    old = {item.id: _score_of(item) for item in before}
    differences = []
    for item in after:
        earlier, later = old.get(item.id), _score_of(item)
        if earlier is not None and later is not None:
            differences.append(later - earlier)
    return np.array(differences, dtype=float)


def _score_of(item: Scored) -> float | None:
    """The score of a valid scored item, else None."""
    return item.score if item.status == "ok" and item.valid else None


def discoveries(p_values: Sequence[float | None]) -> list[bool]:
    """Which p-values hold under false-discovery control at 10 %; None never does.

    Benjamini and Hochberg (1995): of m p-values in rising order, those up to the largest i with
    p_i <= 0.10 i / m hold. Of 0.01, 0.06 and 0.5 the limits are 0.033, 0.067 and 0.1: two hold.

    >>> discoveries([0.01, 0.5, None, 0.06])
    [True, False, False, True]
    """
    # Half a second to import, which starting a command need not wait for.
    from scipy.stats import false_discovery_control

    known = [p for p in p_values if p is not None]
    if not known:
        return [False] * len(p_values)
    adjusted = iter(false_discovery_control(known))
    return [p is not None and bool(next(adjusted) <= DISCOVERY) for p in p_values]
