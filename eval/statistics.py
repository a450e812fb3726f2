"""Means with intervals, paired changes, and which changes to believe. Pure and seeded.

Prompts of one `group` are a cluster: variants of one seed prompt rise and fall together, so that
what is weighed at random, or has its sign flipped, is a whole cluster. A prompt without a group is
a cluster of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mosaic.core.types.base import SCALE
from mosaic.core.types.evaluation import Difference, Score, Scored

RESAMPLES = 4000
PERMUTATIONS = 2000
CHANCES = 100_000
LEVEL = 0.05
DISCOVERY = 0.10
# The ends of the scale of a difference of two scores.
DIFFERENCES = (SCALE[0] - SCALE[1], SCALE[1] - SCALE[0])

Floats = npt.NDArray[np.float64]


def interval_bounds(
    sums: Floats, sizes: Floats, scale: tuple[float, float], seed: int
) -> tuple[Floats, Floats]:
    """Lower and upper ends of 95 % intervals for the mean of values on a bounded scale.

    `sums` are the cluster sums of d samples, shape (d, k), `sizes` the prompts of each cluster, the
    same for all samples, shape (k,); both results have shape (d,).

    Clusters get random weights w, exponential draws (Rubin's Bayesian bootstrap). One more cluster
    of average size m and weight v stands at the low end of the scale for the lower bound, and at
    the high end for the upper one, since what was not seen may be as bad as the scale allows:

        lower bound = 2.5 % quantile of (w . sums + v m low) / (w . sizes + v m)

    Where each prompt is its own cluster this is the bound of Gaffke (2005), which Learned-Miller and
    Thomas (arXiv 1905.06208) conjecture to cover always. Of passes and failures it is the exact
    interval of Clopper and Pearson. `python -m benchmarks coverage` measures how often it covers.

    27 of 30 pass; Clopper and Pearson's interval for the share is 0.735 to 0.979:

    >>> passes = np.array([[1.0] * 27 + [0.0] * 3])
    >>> low, high = interval_bounds(passes, np.ones(30), (0.0, 1.0), seed=0)
    >>> round(float(low[0]), 2), round(float(high[0]), 2)
    (0.73, 0.98)
    """
    drawn = np.random.default_rng(seed).standard_exponential((RESAMPLES, len(sizes) + 1))
    weights, unseen = drawn[:, :-1], drawn[:, -1] * sizes.mean()
    totals = sums @ weights.T
    prompts = weights @ sizes + unseen
    low = np.quantile((totals + unseen * scale[0]) / prompts, LEVEL / 2, axis=1)
    high = np.quantile((totals + unseen * scale[1]) / prompts, 1 - LEVEL / 2, axis=1)
    # Rounding may leave the scale, or miss the mean of a constant sample, by the last digit.
    means = sums.sum(axis=1) / sizes.sum()
    low, high = np.minimum(low, means), np.maximum(high, means)
    return np.clip(low, *scale), np.clip(high, *scale)


def summarise(scored: Sequence[Scored], seed: int) -> Score:
    """Mean of valid scored prompts, from 1 to 5, with its 95 % interval (`interval_bounds`).

    Unscored and invalid items are counted and not averaged. The mean is None if nothing was scored.
    Clusters are counted if some prompt has a group.

    Three answers that all score 5 leave room for an unseen 1, down to 5 - 4 * (1 - 0.025^(1/3)):

    >>> three = [Scored(id=str(i), status="ok", score=5) for i in range(3)]
    >>> score = summarise(three, seed=0)
    >>> score.mean, round(score.low, 1), score.high
    (5.0, 2.2, 5.0)
    """
    averaged = []
    for item in scored:
        value = _score_of(item)
        if value is not None:
            averaged.append((item, value))
    unscored = sum(s.status != "ok" for s in scored)
    invalid = sum(s.status == "ok" and not s.valid for s in scored)
    if not averaged:
        return Score(
            mean=None, low=None, high=None, n_scored=0, n_unscored=unscored, n_invalid=invalid
        )
    sums, sizes = _clusters(averaged)
    low, high = interval_bounds(sums[np.newaxis], sizes, SCALE, seed)
    grouped = any(item.group is not None for item, _ in averaged)
    return Score(
        mean=float(sums.sum() / sizes.sum()),
        low=float(low[0]),
        high=float(high[0]),
        n_scored=len(averaged),
        n_unscored=unscored,
        n_invalid=invalid,
        n_clusters=len(sizes) if grouped else None,
    )


@dataclass(frozen=True)
class NoiseEstimate:
    """A standard deviation in points, and what it is known from: its degrees of freedom."""

    deviation: float
    freedom: float

    def interval(self) -> tuple[float, float]:
        """Between which values the true deviation lies with 95 %, from the chi-squared quantiles.

        0.1 from five degrees of freedom: 0.1 sqrt(5 / 12.83) to 0.1 sqrt(5 / 0.831).

        >>> low, high = NoiseEstimate(0.1, 5).interval()
        >>> round(low, 3), round(high, 3)
        (0.062, 0.245)
        """
        from scipy.special import chdtri

        largest = chdtri(self.freedom, LEVEL / 2)
        smallest = chdtri(self.freedom, 1 - LEVEL / 2)
        spread = self.deviation * math.sqrt(self.freedom)
        return spread / math.sqrt(largest), spread / math.sqrt(smallest)

    def of_difference(self, trainings: int) -> NoiseEstimate:
        """The noise of a difference that so many trainings take part in.

        >>> round(NoiseEstimate(0.1, 5).of_difference(2).deviation, 3)
        0.141
        """
        return NoiseEstimate(self.deviation * math.sqrt(trainings), self.freedom)


def shrink_noise(measured: float, repeats: int, usual: float, worth: float) -> NoiseEstimate:
    """A measured standard deviation, drawn toward what is usual, since few repeats say little.

    `repeats` are those beyond the first training. What is usual counts as `worth` of them:

        sqrt((worth * usual^2 + repeats * measured^2) / (worth + repeats))

    >>> round(shrink_noise(0.9, repeats=2, usual=0.5, worth=8).deviation, 2)
    0.6
    >>> shrink_noise(0.0, repeats=0, usual=0.5, worth=8)
    NoiseEstimate(deviation=0.5, freedom=8)
    """
    total = worth * usual**2 + repeats * measured**2
    return NoiseEstimate(math.sqrt(total / (worth + repeats)), worth + repeats)


def paired_change(
    before: Sequence[Scored],
    after: Sequence[Scored],
    seed: int,
    noise: NoiseEstimate | None = None,
) -> tuple[float, float] | None:
    """(mean difference, p-value) over prompts that are valid and scored both times; else None.

    A two-sided sign-flip permutation test: if nothing changed, the sign of each cluster's
    difference is a coin's. `noise` is what trainings add to the difference of means without any
    change of the data; a draw of it, from Student's t distribution, is added to each permutation.
    p is (1 + k) / (1 + permutations), where k permutations have a mean difference at least as
    large. Differences of 1, 1 and 1 are matched by two of eight sign patterns, so p is near 1/4.
    Twenty of them are matched by next to none, but half a point of noise may come to one:

    >>> old = [Scored(id=str(i), status="ok", score=3) for i in range(20)]
    >>> new = [Scored(id=str(i), status="ok", score=4) for i in range(20)]
    >>> [round(paired_change(old[:n], new[:n], seed=0)[1], 2) for n in (3, 20)]
    [0.25, 0.0]
    >>> change, p = paired_change(old, new, seed=0, noise=NoiseEstimate(0.5, 5))
    >>> change, round(p, 2)
    (1.0, 0.11)
    """
    differences = _differences(before, after)
    if not differences:
        return None
    sums, sizes = _clusters(differences)
    mean = float(sums.sum() / sizes.sum())
    if not sums.any():
        return mean, 1.0
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], size=(PERMUTATIONS, len(sums)))
    means = signs @ sums / sizes.sum()
    if noise is not None:
        means += noise.deviation * generator.standard_t(noise.freedom, PERMUTATIONS)
    # Equal means may differ in the last digit.
    extreme = np.abs(means) >= abs(mean) - 1e-12
    return mean, (1 + int(extreme.sum())) / (PERMUTATIONS + 1)


def smallest_difference(clusters: int, spread: float, noise: NoiseEstimate) -> float:
    """The smallest true difference that `paired_change` shows in four of five cases, in points.

    It is shown if p <= 0.05. `clusters` of prompts have differences with the standard deviation
    `spread`; `noise` is of the difference of two means. Without noise it is (1.96 + 0.84) spread /
    sqrt(clusters), 0.35 for 144 of them that scatter by 1.5. Infinite if there are none.

    >>> round(smallest_difference(144, 1.5, NoiseEstimate(0.0, 5)), 2)
    0.35
    """
    if not clusters:
        return math.inf
    generator = np.random.default_rng(0)
    of_prompts = spread / math.sqrt(clusters)
    chance = of_prompts * generator.standard_normal(CHANCES)
    luck = noise.deviation * generator.standard_t(noise.freedom, CHANCES)
    threshold = float(np.quantile(np.abs(chance + luck), 1 - LEVEL))
    # 80 % of a normal distribution lie above its mean less 0.84 standard deviations.
    return threshold + 0.84 * math.hypot(of_prompts, noise.deviation)


def paired_interval(
    before: Sequence[Scored], after: Sequence[Scored], seed: int
) -> Difference | None:
    """The mean difference over prompts that are valid and scored both times, with its interval.

    The interval is `interval_bounds` of the differences, which lie between -4 and 4: three equal
    ones do not prove that a fourth would be the same. None if no prompt was scored both times.

    >>> old = [Scored(id=str(i), status="ok", score=3) for i in range(3)]
    >>> new = [Scored(id=str(i), status="ok", score=4) for i in range(3)]
    >>> gain = paired_interval(old, new, seed=0)
    >>> gain.mean, round(gain.low, 1), round(gain.high, 1)
    (1.0, -2.5, 3.1)
    """
    differences = _differences(before, after)
    if not differences:
        return None
    sums, sizes = _clusters(differences)
    low, high = interval_bounds(sums[np.newaxis], sizes, DIFFERENCES, seed)
    mean = float(sums.sum() / sizes.sum())
    return Difference(mean=mean, low=float(low[0]), high=float(high[0]), clusters=len(sizes))


def _differences(before: Sequence[Scored], after: Sequence[Scored]) -> list[tuple[Scored, float]]:
    """Prompts that are valid and scored both times, as scored later, each with after less before."""
    old = {item.id: _score_of(item) for item in before}
    differences = []
    for item in after:
        earlier, later = old.get(item.id), _score_of(item)
        if earlier is not None and later is not None:
            differences.append((item, later - earlier))
    return differences


def _clusters(values: Iterable[tuple[Scored, float]]) -> tuple[Floats, Floats]:
    """Sums of the values and numbers of prompts, by cluster in order of appearance, shape (k,)."""
    sums: dict[tuple[str, str], float] = {}
    sizes: dict[tuple[str, str], int] = {}
    for item, value in values:
        cluster = ("prompt", item.id) if item.group is None else ("group", item.group)
        sums[cluster] = sums.get(cluster, 0.0) + value
        sizes[cluster] = sizes.get(cluster, 0) + 1
    return np.array(list(sums.values())), np.array(list(sizes.values()), dtype=float)


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
