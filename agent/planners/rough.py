"""Many mixtures at once, as arrays, roughly inside the limits: where a search looks first.

Steps, buckets that are held and stock are kept as `agent.feasible` keeps them, but for what is
asked of other buckets where one is scarce, and for floors. Whoever wants a plan projects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent.constraints import unreliable_cells
from agent.methods import kept_mixture_tokens
from agent.weights import Cell, Floats, Weights, weights_of
from mosaic.core.types.runs import Observation

# What a move adds to every weight, so that none stays at zero.
MOVE_FLOOR = 0.003
# The share of weights that a small move changes.
FEW = 0.25
TINY = 1e-12


class Wishes(NamedTuple):
    """Mixtures as arrays: `ratios` (n, data sets), `buckets` (n, cells), neither normalized."""

    ratios: Floats
    buckets: Floats


class RoughSpace:
    """The data sets and cells of one observation, in its order."""

    def __init__(self, observation: Observation) -> None:
        proportions = observation.bucket_proportions
        self.datasets = list(proportions)
        self.cells: list[Cell] = []
        for dataset, buckets in proportions.items():
            self.cells += [(dataset, bucket) for bucket in buckets]
        self._of = np.array([self.datasets.index(dataset) for dataset, _ in self.cells])
        held = unreliable_cells(observation)
        self._held = np.array([cell in held for cell in self.cells])
        limits = observation.limits
        self._ratio_step = np.inf if limits.max_ratio_step is None else limits.max_ratio_step
        self._bucket_step = np.inf if limits.max_bucket_step is None else limits.max_bucket_step
        last = weights_of(observation.last_plan, proportions)
        self._start = self.wishes([last])
        room = []
        budget = max(1, kept_mixture_tokens(observation))
        for dataset, bucket in self.cells:
            stock = observation.stock[dataset].get(bucket)
            tokens = stock.tokens if stock else 0
            room.append(tokens * limits.max_repeat / budget)
        self._room = np.array(room)

    def wishes(self, points: Sequence[Weights]) -> Wishes:
        """Points as arrays."""
        buckets = []
        for point in points:
            buckets.append([point.buckets[dataset].get(b, 0.0) for dataset, b in self.cells])
        return Wishes(self.ratios(points), np.array(buckets).reshape(len(points), len(self.cells)))

    def ratios(self, points: Sequence[Weights]) -> Floats:
        """The data sets' shares of each point: shape (points, data sets)."""
        rows = np.zeros((len(points), len(self.datasets)))
        for place, point in enumerate(points):
            rows[place] = [point.ratios.get(name, 0.0) for name in self.datasets]
        return rows

    def places(self, datasets: Sequence[str]) -> list[int]:
        """Columns of data sets."""
        return [self.datasets.index(dataset) for dataset in datasets]

    def moved(
        self, centers: Sequence[Weights], n: int, spread: float, generator: np.random.Generator
    ) -> Wishes:
        """`n` log-normal moves, of each center in turn; `spread` is that of a log-ratio."""
        ratios, buckets = self.wishes(centers)
        turn = np.arange(n) // 2 % len(centers)
        steps = generator.standard_normal((n, ratios.shape[1] + buckets.shape[1]))
        # Every second one moves a few weights only: with many of them, moving all rarely gains.
        still = generator.random(steps.shape) >= FEW
        steps[1::2][still[1::2]] = 0.0
        by_ratio, by_bucket = np.split(np.exp(spread * steps), [ratios.shape[1]], axis=1)
        return Wishes(
            (ratios[turn] + MOVE_FLOOR) * by_ratio, (buckets[turn] + MOVE_FLOOR) * by_bucket
        )

    def weights(self, wishes: Wishes, place: int) -> Weights:
        """One of them by names."""
        ratios = dict(zip(self.datasets, wishes.ratios[place].tolist(), strict=True))
        buckets: dict[str, dict[str, float]] = {dataset: {} for dataset in self.datasets}
        for (dataset, bucket), weight in zip(
            self.cells, wishes.buckets[place].tolist(), strict=True
        ):
            buckets[dataset][bucket] = weight
        return Weights(ratios, buckets)

    def rows(self, wishes: Wishes) -> tuple[Floats, Floats]:
        """Cell shares (n, cells) and data sets' shares (n, data sets), roughly inside the limits."""
        start = self._start
        ratios = wishes.ratios / wishes.ratios.sum(axis=1, keepdims=True)
        step = np.abs(ratios - start.ratios).sum(axis=1, keepdims=True)
        ratios = start.ratios + (ratios - start.ratios) * _share(self._ratio_step, step)
        buckets = self._normal(wishes.buckets)
        kept = np.where(self._held, np.minimum(buckets, start.buckets), 0.0)
        free = np.where(self._held, 0.0, buckets)
        left = (1 - self._sums(kept)) / np.maximum(self._sums(free), TINY)
        buckets = kept + free * left[:, self._of]
        step = self._sums(np.abs(buckets - start.buckets))
        share = _share(self._bucket_step, step)[:, self._of]
        buckets = start.buckets + (buckets - start.buckets) * share
        return np.minimum(ratios[:, self._of] * buckets, self._room), ratios

    def _sums(self, buckets: Floats) -> Floats:
        """Sums within each data set: shape (n, data sets)."""
        sums = np.zeros((len(buckets), len(self.datasets)))
        for place in range(len(self.datasets)):
            sums[:, place] = buckets[:, self._of == place].sum(axis=1)
        return sums

    def _normal(self, buckets: Floats) -> Floats:
        return np.asarray(buckets / self._sums(buckets)[:, self._of])


def _share(limit: float, step: Floats) -> Floats:
    """How far of the way to go so that no step is longer than the limit."""
    return np.asarray(np.minimum(1.0, limit / np.maximum(step, TINY)))
