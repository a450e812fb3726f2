"""How often intervals cover, and how often a floor is passed falsely, on simulated scores.

The grid: 30 to 300 prompts; pass or fail, graded, nearly all at the top, and differences of two
models; clusters of 1 to 8 prompts, whose scores correlate by 0 to 0.6. The truth is known, and
`eval.statistics.interval_bounds` is what the product uses. The percentile bootstrap over prompts
that it replaced is the baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Rows, figure
from eval.statistics import DIFFERENCES, LEVEL, Floats, interval_bounds
from mosaic.core.types.base import SCALE
from mosaic.core.types.evaluation import MIN_CLUSTERS

DRAWS, QUICK_DRAWS = 4000, 400
# Draws that are weighed at once: what fits into memory beside the weights.
CHUNK = 400
PROMPTS = (30, 60, 120, 300)
CLUSTER_SIZES = (1, 2, 4, 8)
CORRELATIONS = (0.0, 0.3, 0.6)
BASELINE_RESAMPLES = 1000
SEED = 20260301
# A figure of thousands of simulated draws is off by this many of its standard errors at most.
STANDARD_ERRORS = 3


@dataclass(frozen=True)
class Population:
    """Values and their probabilities, on a bounded scale."""

    name: str
    values: tuple[float, ...]
    shares: tuple[float, ...]
    scale: tuple[float, float] = SCALE

    @property
    def mean(self) -> float:
        return float(np.dot(self.values, self.shares))


GRADES = (1.0, 2.0, 3.0, 4.0, 5.0)
POPULATIONS = (
    Population("pass or fail, half pass", (1.0, 5.0), (0.5, 0.5)),
    Population("pass or fail, 90 % pass", (1.0, 5.0), (0.1, 0.9)),
    Population("graded, spread", GRADES, (0.3, 0.1, 0.1, 0.2, 0.3)),
    Population("graded, 80 % fives", GRADES, (0.05, 0.05, 0.05, 0.05, 0.8)),
    Population("graded, 95 % fives", GRADES, (0.0125, 0.0125, 0.0125, 0.0125, 0.95)),
    Population("differences, 90 % none", (-2.0, 0.0, 2.0), (0.05, 0.9, 0.05), DIFFERENCES),
)

# (sums (d, k), sizes (k,)) of prompts (d, n) in clusters -> lower and upper ends, each (d,).
Method = Callable[[Floats, Floats, Population], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Cell:
    """A cell of the grid. `size` is the prompts of a cluster; 0 mixes 1 to 8."""

    prompts: int
    size: int
    correlation: float
    population: Population

    @property
    def sizes(self) -> Floats:
        """Prompts of each cluster, together `prompts`, shape (k,)."""
        if self.size:
            return _cut([self.size] * self.prompts, self.prompts)
        largest = CLUSTER_SIZES[-1]
        return _cut([1 + i % largest for i in range(self.prompts)], self.prompts)

    @property
    def few(self) -> bool:
        """Whether there are fewer clusters than floors need."""
        return len(self.sizes) < MIN_CLUSTERS

    @property
    def name(self) -> str:
        size = f"of {self.size}" if self.size else "of 1 to 8"
        return (
            f"{self.population.name}, {self.prompts} prompts, "
            f"{len(self.sizes)} clusters {size}, correlation {self.correlation:g}"
        )


def _cut(sizes: Sequence[int], total: int) -> Floats:
    """The first sizes that make up the total, the last one cut.

    >>> _cut([4, 4, 4], 10).tolist()
    [4.0, 4.0, 2.0]
    """
    kept: list[float] = []
    for size in sizes:
        left = total - sum(kept)
        if left > 0:
            kept.append(min(size, left))
    return np.array(kept, dtype=float)


def grid() -> Iterator[Cell]:
    """All cells. Prompts that are clusters of their own have no correlation."""
    for population in POPULATIONS:
        for prompts in PROMPTS:
            yield Cell(prompts, 1, 0.0, population)
            for size in (*CLUSTER_SIZES[1:], 0):
                for correlation in CORRELATIONS:
                    yield Cell(prompts, size, correlation, population)


def draw(cell: Cell, draws: int, generator: np.random.Generator) -> Floats:
    """Samples of a cell, shape (draws, prompts), clusters side by side.

    With probability sqrt(correlation) a prompt takes its cluster's draw and else one of its own:
    two prompts share a draw with the correlation as probability, which is then their correlation.
    """
    population, sizes = cell.population, cell.sizes.astype(int)
    values = np.array(population.values)
    own = generator.choice(values, p=population.shares, size=(draws, cell.prompts))
    shared = generator.choice(values, p=population.shares, size=(draws, len(sizes)))
    takes = generator.random((draws, cell.prompts)) < np.sqrt(cell.correlation)
    return np.where(takes, np.repeat(shared, sizes, axis=1), own)


def product(samples: Floats, sizes: Floats, population: Population) -> tuple[Floats, Floats]:
    """The product's intervals."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    sums = np.add.reduceat(samples, starts, axis=1)
    return interval_bounds(sums, sizes, population.scale, SEED)


def percentile_bootstrap(
    samples: Floats, sizes: Floats, population: Population
) -> tuple[Floats, Floats]:
    """What the product had up to 0.2: prompts drawn again one by one, whatever their cluster.

    A constant sample of n scores had the exact interval of n equal outcomes.
    """
    count = samples.shape[1]
    generator = np.random.default_rng(SEED)
    picks = generator.multinomial(count, np.full(count, 1 / count), size=BASELINE_RESAMPLES)
    means = samples @ picks.T.astype(float) / count
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    if population.scale == SCALE:
        constant = (samples == samples[:, :1]).all(axis=1)
        half = (SCALE[1] - SCALE[0]) * (1 - (LEVEL / 2) ** (1 / count))
        low = np.where(constant, np.maximum(SCALE[0], low - half), low)
        high = np.where(constant, np.minimum(SCALE[1], high + half), high)
    return low, high


@dataclass(frozen=True)
class Found:
    """What a method does in a cell: shares of draws (0-1), and its mean width in points."""

    covered: float
    passed: float
    width: float


def tried(cell: Cell, draws: int, method: Method) -> Found:
    """Coverage, width, and how often a floor at the truth is passed, which it should not be."""
    generator = np.random.default_rng(SEED)
    truth = cell.population.mean
    covered = passed = 0
    width = 0.0
    for start in range(0, draws, CHUNK):
        samples = draw(cell, min(CHUNK, draws - start), generator)
        low, high = method(samples, cell.sizes, cell.population)
        # Means that equal the truth may differ from it in the last digit.
        above, below = low > truth + 1e-9, high < truth - 1e-9
        covered += int((~above & ~below).sum())
        passed += int(above.sum())
        width += float((high - low).sum())
    return Found(covered / draws, passed / draws, width / draws)


def coverage(quick: bool) -> Rows:
    """The worst cells of the grid with 15 or more clusters, beside the percentile bootstrap."""
    draws = QUICK_DRAWS if quick else DRAWS
    cells, before, now = [], [], []
    for cell in grid():
        if cell.few:
            continue
        cells.append(cell)
        before.append(tried(cell, draws, percentile_bootstrap))
        now.append(tried(cell, draws, product))
        print(_line(cell, before[-1], now[-1]), file=sys.stderr)
    rows = []
    for title, found in (("percentile bootstrap", before), ("product", now)):
        rows += _worst(title, cells, found, draws, goal=found is now)
    wider = [n.width / b.width for n, b in zip(now, before, strict=True)]
    alone = [w for w, cell in zip(wider, cells, strict=True) if cell.size == 1]
    what = "width of the product's intervals over the percentile bootstrap's, prompts on their own"
    rows.append(figure(f"{what}, mean of {len(alone)} cells", float(np.mean(alone)), "times"))
    return rows


def _worst(
    title: str, cells: Sequence[Cell], found: Sequence[Found], draws: int, goal: bool
) -> Rows:
    """The cells that cover least and that pass a floor falsely most often, and mean width."""
    least = min(range(len(cells)), key=lambda i: found[i].covered)
    most = max(range(len(cells)), key=lambda i: found[i].passed)
    error = np.sqrt(LEVEL / 2 * (1 - LEVEL / 2) / draws)
    allowed = round(100 * (LEVEL / 2 + STANDARD_ERRORS * float(error)), 2)
    count = f"{len(cells)} cells of {draws} draws"
    return [
        figure(
            f"{title}: least coverage of {count} ({cells[least].name})",
            100 * found[least].covered,
            "%",
            at_least=93.5 if goal else None,
        ),
        figure(
            f"{title}: floor at the truth passed, mean of {count}",
            100 * float(np.mean([one.passed for one in found])),
            "%",
            at_most=2.5 if goal else None,
        ),
        figure(
            f"{title}: floor at the truth passed, most ({cells[most].name}); "
            f"2.5 % and {STANDARD_ERRORS} standard errors of the simulation",
            100 * found[most].passed,
            "%",
            at_most=allowed if goal else None,
        ),
        figure(f"{title}: mean width", float(np.mean([one.width for one in found])), "points"),
    ]


def _line(cell: Cell, before: Found, now: Found) -> str:
    """A cell of the table: coverage, false floors and width, before and now."""
    parts = [
        f"{100 * one.covered:5.1f} % covered, {100 * one.passed:4.1f} % passed, {one.width:.2f} wide"
        for one in (before, now)
    ]
    return f"{cell.name}: {parts[0]} | {parts[1]}"
